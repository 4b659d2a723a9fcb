"""What a definition becomes: which branches, slots and coefficients; and what is refused.

Most optimizers here are defined by the test that needs them, as anybody would add one.
"""

import ast
import json
import runpy
from decimal import Decimal, localcontext
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import pytest

from stepwell_server.core.arguments import REQUIRED
from stepwell_server.core.compiler.definition import OPTIMIZERS, optimizer
from stepwell_server.core.compiler.functions import cbrt, exp, log, maximum, minimum, sign, sqrt, where
from stepwell_server.core.compiler.numba_emitter import emit
from stepwell_server.core.compiler.program import specialise
from stepwell_server.core.errors import InvalidSpec, InvalidValue, UnknownArgument, UnknownFlavor, UnknownOptimizer
from stepwell_server.core.optimizers import find_optimizer
from tests.core.local import LocalRun

FLAVORS = [
    (name, flavor)
    for name, definition in OPTIMIZERS.items()
    if definition.arrays is None
    for flavor in definition.flavors
]

define = partial(optimizer, reference="a test", flavors={"torch": {}}, decay=False)

pytestmark = pytest.mark.usefixtures("registry")


def specialised(definition, live=(), **given):
    return specialise(definition, definition.resolve(definition.flavor(None), given), live)


def coefficients(definition, step, **given):
    values = definition.resolve(definition.flavor(None), given)
    return specialise(definition, values).host(step, values, ())[0]


def stepped(device, definition, param, grads, dtype="float64", **given):
    """The parameter after every step, by the kernel."""
    run = LocalRun({"w": np.asarray(param, dtype)}, definition.name, device=device, hyperparameters=given)
    return [run.step({"w": np.asarray(grad, dtype)})["w"] for grad in grads]


# Hoisting.


@pytest.mark.parametrize("step", [1, 2, 10, 1000, 10**6])
@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999, 0.999999])
def test_a_coefficient_is_evaluated_in_float64(beta2, step):
    @define()
    def corrected(param, grad, *, step, beta2=0.999):
        """What Adam divides by."""
        return param - grad / (1 - beta2**step)

    with localcontext(prec=60):
        exact = 1 - Decimal(beta2) ** step
        (got,) = coefficients(corrected, step, beta2=beta2)
        # The power is rounded once, near 1; the subtraction is exact or rounds once more.
        assert abs(Decimal(got) - exact) <= Decimal(2) ** -52
        if step <= 2 and beta2 >= 0.99:
            single = np.float32(1) - np.float32(beta2) ** np.float32(step)
            assert abs(Decimal(float(single)) - exact) / exact > Decimal("1e-7"), "float32 would have done"


def test_a_float32_kernel_divides_by_the_float64_coefficient(device):
    @define()
    def corrected(param, grad, *, step, beta2=0.999):
        """What Adam divides by."""
        return param - grad / (1 - beta2**step)

    (after,) = stepped(device, corrected, [0.0], [[1.0]], "float32")
    np.testing.assert_allclose(after, [-1 / (1 - 0.999)], rtol=2e-7)
    in_float32 = np.float32(-1) / (np.float32(1) - np.float32(0.999))
    assert abs(after[0] / in_float32 - 1) > 1e-5


@pytest.mark.parametrize(("name", "flavor"), FLAVORS)
def test_elements_see_no_hyperparameter_and_coefficients_are_python_floats(name, flavor):
    definition = find_optimizer(name)
    required = {key: 0.1 for key, value in definition.defaults(flavor).items() if value is REQUIRED}
    values = definition.resolve(flavor, required)
    program = specialise(definition, values, live=["momentum", "weight_decay"])
    expressions = [expression for stage in program.stages for expression in stage.expressions]
    seen = {part.id for expression in expressions for part in ast.walk(expression) if isinstance(part, ast.Name)}
    assert not seen & {*definition.arguments, "step"}
    for step in (1, 2, 10**6):
        known: list[float] = []
        for number, stage in enumerate(program.stages):
            scalars = [definition.scalars[key] for key in program.scalars]
            hoisted, advanced = program.host(
                step, values, scalars, stage=number, reductions=known, size=7.0, given={"loss": 0.5}
            )
            assert len(hoisted) == stage.coefficients
            known += [0.5] * len(stage.reductions)
        # NEP 50: a np.float64 would silently promote float32 arrays.
        assert {type(number) for number in hoisted + advanced} <= {float, int, bool}


def test_equal_subexpressions_are_one_coefficient():
    @define()
    def repeated(param, grad, *, step, lr=0.1, beta=0.9):
        """The same correction three times."""
        update = grad / (1 - beta**step)
        return param - lr * update * (1 - beta**step) - lr * grad / (1 - beta**step)

    assert sorted(coefficients(repeated, 1)) == [1 - 0.9, 0.1]


def test_a_reassigned_scalar_is_another_coefficient(device):
    @define()
    def reassigned(param, grad, *, step, lr=0.5):
        """The same text, rate * grad, with two meanings."""
        rate = lr
        first = rate * grad
        rate = rate / 4
        second = rate * grad
        lr = 8.0
        return param - first - second - lr * grad

    assert coefficients(reassigned, 1) == (0.5, 0.125, 8.0)
    assert stepped(device, reassigned, [0.0], [[1.0]]) == [[-8.625]]
    assert reassigned(np.zeros(1), np.ones(1), step=1) == ([-8.625],)


def test_a_reassigned_element_is_read_in_order(device):
    @define()
    def twice(param, grad, slow, *, step):
        """The slot, and the gradient itself, are reassigned between uses."""
        before = slow
        slow = slow + grad
        grad = grad * 10
        slow = slow * 2
        return param + before + grad, slow

    first, second = stepped(device, twice, [0.0], [[1.0], [1.0]])
    assert (first, second) == ([10.0], [22.0])  # slow is 2 after the first step


def test_a_scalar_may_become_elements(device):
    @define()
    def widened(param, grad, *, step, lr=0.5):
        """`change` is a number and then an array."""
        change = lr * step
        change = change * grad
        return param - change

    assert stepped(device, widened, [0.0], [[2.0], [2.0]]) == [[-1.0], [-3.0]]


def test_coefficients_that_divide_by_zero_are_refused():
    @define()
    def singular(param, grad, *, step, lr=0.5):
        """Not defined at the first step."""
        return param - lr / (step - 1) * grad

    with pytest.raises(InvalidValue, match=r"'singular' at step 1: .*division by zero.*change them"):
        coefficients(singular, 1)
    assert coefficients(singular, 3) == (0.25,)


# Conditions.


@pytest.mark.parametrize(
    ("name", "given", "live", "slots"),
    [
        ("adam", {}, (), ("exp_avg", "exp_avg_sq")),
        ("adam", {"amsgrad": True}, (), ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")),
        ("sgd", {}, (), ()),
        ("sgd", {"momentum": 0.9}, (), ("momentum_buffer",)),
        ("sgd", {}, ("momentum",), ("momentum_buffer",)),
        ("sgd", {}, ("lr", "dampening"), ()),
        ("adagrad", {"weight_decay": 0.1}, (), ("sum",)),
        ("adagrad", {}, ("momentum",), ("sum", "momentum_buffer")),
        ("rmsprop", {}, (), ("square_avg",)),
        ("rmsprop", {"centered": True}, (), ("square_avg", "grad_avg")),
        ("rmsprop", {"momentum": 1e-300}, (), ("square_avg", "momentum_buffer")),
        ("rmsprop", {"momentum": 0.9, "centered": True}, (), ("square_avg", "grad_avg", "momentum_buffer")),
    ],
)
def test_flags_and_numbers_that_are_not_zero_decide_the_slots(name, given, live, slots):
    assert specialised(find_optimizer(name), live, **given).slots == slots


BRANCHES = [
    ({}, 13.0, ()),
    ({"kind": "minus"}, 7.0, ()),
    ({"extra": 5.0}, 18.0, ()),
    ({"extra": 0.0}, 13.0, ()),
    ({"flag": True}, 16.0, ("slow",)),
    ({"flag": True, "factor": 0.0}, 13.0, ()),
    ({"flag": True, "factor": 0.0, "kind": "minus", "extra": 1.0}, 8.0, ()),
    ({"kind": "zero"}, 0.0, ()),
]


@pytest.mark.parametrize(("given", "expected", "slots"), BRANCHES)
def test_a_plain_if_picks_its_branch(device, given, expected, slots):
    @define(choices={"kind": ("plus", "minus", "zero")})
    def branching(param, grad, slow, *, step, flag=False, kind="plus", extra: float | None = None, factor=1.0):
        """Every kind of static condition."""
        if kind == "plus":
            out = param + grad
        elif kind != "minus":
            return 0 * param, slow
        else:
            out = param - grad
        out = out + extra if extra is not None else out
        if flag and not (factor == None or not factor):  # noqa: E711  # as allowed as `is None`
            slow = slow + grad
            out = out + factor * slow
        return out, slow

    assert stepped(device, branching, [10.0], [[3.0]], **given) == [[expected]]
    assert specialised(branching, **given).slots == slots
    assert branching(np.array([10.0]), np.array([3.0]), *[np.zeros(1) for _ in slots], step=1, **given)[0] == [expected]


def test_a_condition_on_scalars_is_decided_by_the_host():
    @define()
    def conditional(param, grad, *, step, lr=0.5):
        """The branch that is not taken is not evaluated."""
        return param - (lr if step == 1 else lr / (step - 1) if step < 4 else 0.0) * grad

    assert [coefficients(conditional, step) for step in (1, 2, 3, 4)] == [(0.5,), (0.5,), (0.25,), (0.0,)]
    assert "if" not in emit(specialised(conditional), "float32")


def test_a_scalar_condition_chooses_between_expressions_of_elements(device):
    @define()
    def rectified(param, grad, *, step, lr=0.5):
        """RAdam's form: another expression once a condition on the step holds."""
        update = grad / sqrt(param * param + 1) if step > 2 and lr < 1 else where(grad > 0, 2 * grad, grad)
        return param - update

    grads = [[1.0, -1.0], [1.0, -1.0], [1.0, 4.0]]
    first, second, third = stepped(device, rectified, [0.0, 0.0], grads)
    assert (first.tolist(), second.tolist()) == ([-2.0, 1.0], [-4.0, 2.0])
    np.testing.assert_allclose(third, [-4 - 1 / np.sqrt(17), 2 - 4 / np.sqrt(5)], rtol=1e-15)
    np.testing.assert_array_equal(rectified(second, np.array(grads[2]), step=3)[0], third)


def test_a_condition_on_elements_is_where(device):
    @define()
    def leaky(param, grad, *, step, slope=0.25):
        """Comparisons of elements with each other, with numbers and with scalars."""
        small = where((grad < slope) & (grad > -slope), 0.0, grad)
        return param - where(param >= grad, small, where(grad != 3.0, slope, 100.0))

    param, grad = [1.0, 1.0, 1.0, 1.0, -9.0], [0.1, 0.5, 2.0, 3.0, -0.3]
    expected = [1.0, 0.5, 0.75, -99.0, -9.25]
    (after,) = stepped(device, leaky, param, [grad])
    assert after.tolist() == expected
    assert leaky(np.array(param), np.array(grad), step=1)[0].tolist() == expected


# Arithmetic.


def test_small_integer_powers_are_products(device):
    @define()
    def powers(param, grad, square, cube, fourth, *, step):
        """pow() would not vectorise, and would round differently."""
        return param + grad**1, grad**2, (grad + 1) ** 3, grad**4

    assert "**" not in emit(specialised(powers), "float32")
    grad = np.random.default_rng(1).normal(size=100)
    run = LocalRun({"w": np.zeros(100)}, "powers", device=device)
    run.step({"w": grad})
    np.testing.assert_array_equal(run.arrays("square")["w"], grad * grad)
    np.testing.assert_allclose(run.arrays("cube")["w"], (grad + 1) ** 3, rtol=1e-14)
    np.testing.assert_allclose(run.arrays("fourth")["w"], grad**4, rtol=1e-15)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_every_function_agrees_with_numpy(device, dtype):
    @define()
    def functions(param, grad, a, b, c, d, e, f, *, step):
        """Every function that a body may call, on elements, and some odd powers."""
        large = abs(grad) + 0.5
        powers = large**5 + large**-1 + large**0.5 + 2**grad
        return (
            param + powers,
            sqrt(large),
            exp(grad),
            log(large),
            cbrt(grad),
            maximum(grad, 0.1),
            sign(minimum(grad, 0)),
        )

    grad = np.array([-3.0, -0.5, -0.0, 0.0, 0.1, 2.0, 7.5], dtype)
    run = LocalRun({"w": np.zeros(7, dtype)}, "functions", device=device)
    param = run.step({"w": grad})["w"]
    size = abs(grad) + dtype_of(dtype)(0.5)
    expected = [size**5 + 1 / size + np.sqrt(size) + 2**grad, np.sqrt(size), np.exp(grad), np.log(size), np.cbrt(grad)]
    expected += [np.maximum(grad, dtype_of(dtype)(0.1)), np.sign(np.minimum(grad, 0))]
    for got, wanted in zip([param, *(run.arrays(slot)["w"] for slot in "abcdef")], expected, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(got, wanted, rtol=1e-14 if dtype == "float64" else 1e-6, atol=1e-15)


@pytest.mark.parametrize(("dtype", "bits"), [("float64", "uint64"), ("float32", "uint32")])
def test_the_cube_root_is_accurate_for_every_number(device, dtype, bits):
    @define()
    def root(param, grad, *, step):
        """The function that the compiler writes itself."""
        return cbrt(grad)

    limits = np.finfo(dtype)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, limits.smallest_subnormal, limits.smallest_normal, limits.max, -8.0]
    wide = np.random.default_rng(3).integers(0, np.iinfo(bits).max, 20_000, bits).view(dtype)
    with np.errstate(invalid="ignore"):  # random bits are signalling NaNs, too
        grad = np.concatenate([np.array(special, dtype), wide])
        expected = np.cbrt(grad.astype("longdouble")).astype(dtype)
    run = LocalRun({"w": np.zeros(len(grad), dtype)}, "root", device=device, nonfinite="allow")
    got = run.step({"w": grad})["w"]
    np.testing.assert_array_max_ulp(got, expected, 4 if dtype == "float64" else 1)
    assert np.signbit(got[1])


def dtype_of(name):
    return np.dtype(name).type


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_nan_passes_through_maximum_and_minimum_as_in_numpy(device, dtype):
    @define()
    def clipped(param, grad, a, b, c, *, step):
        """A NaN stands on either side of either function."""
        return maximum(grad, 0.0), minimum(grad, 0.0), maximum(0.0, grad), minimum(0.0, grad)

    run = LocalRun({"w": np.zeros(3, dtype)}, "clipped", device=device, nonfinite="allow")
    run.step({"w": np.array([np.nan, np.inf, -np.inf], dtype)})
    for slot, expected in {"": [np.inf, 0.0], "a": [0.0, -np.inf], "b": [np.inf, 0.0], "c": [0.0, -np.inf]}.items():
        np.testing.assert_array_equal(run.arrays(slot)["w"], [np.nan, *expected])


# A new optimizer.


def test_a_new_optimizer_needs_nothing_but_its_definition(device):
    @optimizer(
        reference="a test",
        flavors={"torch": {}, "keras": {"lr": 0.5, "floor": 2.0}},
        scalars={"product": 1.0, "sum_of_steps": 0.0},
        init={"total": "floor", "start": "param"},
    )
    def tethered(
        param, grad, total, start, product, sum_of_steps, *, step, lr=0.1, beta=0.9, floor=1.0, tether: bool = True
    ):
        """A scaled gradient, with a tether to where the parameters began."""
        product = product * beta
        sum_of_steps = sum_of_steps + step
        total = total + grad**2
        if not tether:
            return param - lr * grad / sqrt(total), total, start, product, sum_of_steps
        pull = param - start
        change = grad / sqrt(total) + (1 - product) / sum_of_steps * pull
        return param - lr * change, total, start, product, sum_of_steps

    random = np.random.default_rng(3)
    for flavor, lr, floor in (("torch", 0.1, 1.0), ("keras", 0.5, 2.0)):
        values = {name: random.normal(size=shape) for name, shape in {"a": (3, 2), "b": (), "c": (5,)}.items()}
        run = LocalRun(
            values, "tethered", device=device, flavor=flavor, hyperparameters={"weight_decay": 0.125, "maximize": True}
        )
        state: dict[str, Any] = {}
        for name, value in values.items():
            state[name] = [value, np.full_like(value, floor), value, 1.0, 0.0, 0]
        for number in range(6):
            grads: dict[str, Any] = {name: random.normal(size=np.shape(value)) for name, value in values.items()}
            if flavor == "torch":
                grads["abc"[number % 3]] = None
            for name, grad in grads.items():
                if grad is None:
                    continue
                param, total, start, product, sum_of_steps, step = state[name]
                step, product, sum_of_steps = step + 1, product * 0.9, sum_of_steps + step + 1
                grad = -grad if flavor == "keras" else -grad + 0.125 * param
                param = param * (1 - lr * 0.125) if flavor == "keras" else param
                total = total + grad**2
                param = param - lr * (grad / np.sqrt(total) + (1 - product) / sum_of_steps * (param - start))
                state[name] = [param, total, start, product, sum_of_steps, step]
            after = run.step(grads)
            for name, (param, total, start, *_) in state.items():
                np.testing.assert_allclose(after[name], param, rtol=1e-12)
                np.testing.assert_allclose(run.arrays("total")[name], total, rtol=1e-12)
                np.testing.assert_array_equal(run.arrays("start")[name], start)
        (group,) = run.run.groups
        assert list(group.scalars) == ["product", "sum_of_steps"]
        assert group.scalars["sum_of_steps"].tolist() == [state[name][4] for name in values]
    # The tether alone uses its slot and its scalars.
    assert specialised(tethered, tether=False).slots == ("total",)


def test_a_variant_has_its_own_name_defaults_and_decided_flags():
    @define(refuse={"lr is 13, expected luck; choose another": lambda values: values["lr"] == 13})
    def base(param, grad, slow, *, step, lr=0.1, flag=False, factor=1.0):
        """The base."""
        if flag:
            slow = slow + grad
            return param - factor * slow, slow
        return param - lr * grad, slow

    other = base.variant(
        "other",
        "Other: a summary.",
        reference="a test",
        flavors={"lecture": {"lr": 0.2}},
        fixed={"flag": True},
        without=["factor"],
    )
    assert find_optimizer("other") is other
    assert json.dumps(other.resolve("lecture", {})) == json.dumps(
        {"lr": 0.2, "flag": True, "factor": 1.0, "maximize": False}
    )
    assert list(other.arguments_of("lecture")) == ["lr", "maximize"]
    assert specialised(other).slots == ("slow",)
    assert specialised(base).slots == ()
    for definition, flavor in ((base, "torch"), (other, "lecture")):
        with pytest.raises(InvalidSpec, match=f"optimizer '{definition.name}': lr is 13, expected luck"):
            definition.resolve(flavor, {"lr": 13})
    for decided in ("flag", "factor"):
        with pytest.raises(UnknownArgument, match=f"'{decided}' is not known"):
            other.resolve("lecture", {decided: True})
    with pytest.raises(UnknownFlavor, match="optimizer 'other': flavor 'torch' is not known, expected one of lecture"):
        other.flavor("torch")
    with pytest.raises(UnknownOptimizer, match="did you mean 'other'"):
        find_optimizer("othr")


# What has no place in an optimizer.

_NUMBERS = count()


def define_text(tmp_path, body, *, state="", extra="", hyperparameters="lr=0.5"):
    """Define an optimizer from the text of its body."""
    name = f"text_{next(_NUMBERS)}"
    lines = "\n    ".join(body.splitlines())
    path = tmp_path / f"{name}.py"
    path.write_text(
        "from stepwell_server.core.compiler.definition import optimizer\n"
        "from stepwell_server.core.compiler.functions import *\n\n"
        f"@optimizer(reference='a test', flavors={{'torch': {{}}}}, decay=False{extra})\n"
        f"def {name}(param, grad{state}, *, step, {hyperparameters}):\n"
        f'    """A test."""\n    {lines}\n'
    )
    return runpy.run_path(str(path))[name]


REFUSED = {
    "for": ("for _ in range(3):\n    grad = grad + 1\nreturn param - grad", "For has no place"),
    "while": ("while step:\n    grad = grad + 1\nreturn param - grad", "While has no place"),
    "with": ("with open('x'):\n    pass\nreturn param - grad", "With has no place"),
    "try": ("try:\n    pass\nfinally:\n    pass\nreturn param - grad", "Try has no place"),
    "def": ("def inner(): pass\nreturn param - grad", "FunctionDef has no place"),
    "import": ("import os\nreturn param - grad", "Import has no place"),
    "statement": ("print(grad)\nreturn param - grad", "Expr has no place"),
    "augmented": ("grad += 1\nreturn param - grad", "AugAssign has no place"),
    "attribute": ("return param - grad.T", "grad.T: Attribute has no place"),
    "attribute of a scalar": ("return param - lr.real * grad", "lr.real: Attribute has no place"),
    "method": ("return param - lr * grad.mean()", r"grad.mean\(\): Call has no place"),
    "subscript": ("return param - grad[0]", r"grad\[0\]: Subscript has no place"),
    "subscript of a scalar": ("return param - [lr][0] * grad", "Subscript has no place"),
    "comprehension": ("return param - [g for g in grad]", "ListComp has no place"),
    "tuple": ("return param - (grad, grad)", "Tuple has no place"),
    "lambda": ("rate = (lambda: lr)()\nreturn param - rate * grad", "Call has no place"),
    "text made of values": ("return param - f'{lr}' * grad", "JoinedStr has no place"),
    "way out": ("rate = abs(().__class__.__base__)\nreturn param - rate * grad", "Attribute has no place"),
    "a name from outside": ("return param - lr * __import__", "'__import__' is not known"),
    "a call from outside": ("return param - lr * __import__('os')", "'__import__' is not known"),
    "walrus": ("return param - (rate := lr) * grad", "NamedExpr has no place"),
    "matrix product": ("return param @ grad", "BinOp has no place"),
    "membership": ("return param - (lr if step in (1, 2) else 0.0) * grad", "Compare has no place"),
    "bytes": ("return param - lr * grad * b'x'", "Constant has no place"),
    "unknown function": ("return param - lr * tanh(grad)", "'tanh' is not known, expected one of abs, cbrt, exp"),
    "unknown function on scalars": ("return param - tanh(lr) * grad", "'tanh' is not known"),
    "unknown name": ("return param - lr * gradient", "'gradient' is not known, expected one of grad, infinity, lr, "),
    "used before it is set": ("change = rate * grad\nrate = lr\nreturn param - change", "'rate' is not known"),
    "named arguments": ("return param - lr * maximum(x=grad, y=0.0)", "Call has no place"),
    "too few arguments": ("return param - lr * maximum(grad)", "'maximum' takes 2"),
    "too many arguments": ("return param - lr * sqrt(grad, 1.0)", "'sqrt' takes 1"),
    "two targets": ("update = grad = grad * 2\nreturn param - lr * grad", "Assign has no place"),
    "a tuple as target": ("first, second = grad, grad\nreturn param - lr * first", "Assign has no place"),
    "a name of the compiler's": ("_c0 = lr * grad\nreturn param - _c0", "'_c0' has no place"),
    "a function's name": ("sqrt = lr * grad\nreturn param - sqrt", "'sqrt' has no place"),
    "a condition that is not static": (
        "if step > 3:\n    return param\nreturn param - grad",
        "if step > 3: has no place",
    ),
    "an if on elements": ("if grad > 0:\n    return param\nreturn param - grad", "where on elements"),
    "and": ("return param - (grad and param)", "BoolOp has no place in an element's .*; use where"),
    "if on elements": (
        "return param - (grad if grad > 0 else 0.0)",
        "IfExp has no place in an element's .*; use where",
    ),
}


@pytest.mark.parametrize(("body", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_place_in_an_optimizer_is_refused(tmp_path, body, message):
    definition = define_text(tmp_path, body)
    with pytest.raises(TypeError, match=message):
        specialised(definition)


@pytest.mark.parametrize("name", ["c0", "i", "begin", "new_param", "math"])
def test_a_local_may_be_called_as_the_kernel_calls_something(device, tmp_path, name):
    shadowing = define_text(tmp_path, f"{name} = lr * grad\nreturn param - {name}")
    assert [after.tolist() for after in stepped(device, shadowing, [0.0, 0.0], [[2.0, 2.0]])] == [[-1.0, -1.0]]


# What is easy to get wrong.


def test_a_slot_that_only_the_returned_expression_reads_is_kept(device):
    @define(init={"start": "param"})
    def anchored(param, grad, start, *, step, lr=0.5):
        """A pull towards the first values."""
        return param - lr * (grad + (param - start)), start

    assert specialised(anchored).slots == ("start",)
    assert stepped(device, anchored, [1.0], [[1.0], [1.0]]) == [[0.5], [0.25]]


def test_a_renamed_scalar_is_not_taken_for_an_argument():
    @define()
    def colliding(param, grad, *, step, t_0=5.0):
        """t is renamed to t_0 in the host code."""
        t = step + 100
        return param - t * grad - t_0

    assert coefficients(colliding, 1) == (101, 5.0)


@pytest.mark.parametrize("given", [{"lr": 1e200, "weight_decay": 1e200}, {"lr": 1e308, "weight_decay": 10.0}])
def test_coefficients_that_overflow_are_refused(given):
    values = find_optimizer("adamw").resolve("torch", given)
    with pytest.raises(InvalidValue):
        specialise(find_optimizer("adamw"), values).host(1, values, ())


def test_the_reference_gives_infinities_on_single_numbers_too():
    @define()
    def exponential(param, grad, *, step):
        """Overflows."""
        return param - exp(grad)

    with np.errstate(over="ignore"):
        assert exponential(np.zeros(1), np.array([1000.0]), step=1)[0] == [-np.inf]
        assert exponential(np.zeros(()), np.array(1000.0) * 1.0, step=1)[0] == -np.inf


# Bugs.


@pytest.mark.parametrize("name", ["np", "math", "range"])
def test_a_local_may_hide_what_the_kernel_calls(device, tmp_path, name):
    shadowing = define_text(tmp_path, f"{name} = maximum(sqrt(grad), 0.0)\nreturn param - {name}")
    assert stepped(device, shadowing, [0.0], [[4.0]]) == [[-2.0]]


@pytest.mark.parametrize("name", ["c0", "i", "begin", "end", "new_param", "param_out"])
def test_a_slot_may_be_called_as_the_kernel_calls_something(device, tmp_path, name):
    body = f"{name} = {name} + grad\nreturn param - lr * {name}, {name}"
    shadowing = define_text(tmp_path, body, state=f", {name}")
    assert stepped(device, shadowing, [0.0], [[1.0], [1.0]]) == [[-0.5], [-1.5]]


INCOMPLETE = {
    "a scalar made of elements": ("total = total + grad\nreturn param - lr * grad, total", ", total"),
    "a name that another branch sets": ("if flag:\n    rate = lr\nreturn param - rate * grad", ""),
    "a path that does not return": ("if flag:\n    return param - grad", ""),
    "no return at all": ("change = lr * grad", ""),
    "too few returned": ("return param - lr * grad", ", slow"),
    "elements that become a scalar": ("change = grad\nchange = lr\nreturn param - change * grad", ""),
}


@pytest.mark.parametrize(("body", "state"), INCOMPLETE.values(), ids=INCOMPLETE)
def test_a_body_that_is_not_complete_is_refused(tmp_path, body, state):
    extra = ", scalars={'total': 1.0}" if "total" in state else ""
    definition = define_text(tmp_path, body, state=state, extra=extra, hyperparameters="lr=0.5, flag=False")
    with pytest.raises(TypeError):
        specialised(definition)


def test_a_complex_coefficient_is_refused():
    @define()
    def rooted(param, grad, *, step, offset=1.0):
        """offset may be negative."""
        return param - grad * offset**0.5

    with pytest.raises(InvalidValue):
        coefficients(rooted, 1, offset=-1.0)
