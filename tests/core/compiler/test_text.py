"""Optimizers as text: what a client sends gets what a built-in one gets, or an error with its line and column."""

import json
import warnings
from textwrap import dedent

import numpy as np
import pytest

from stepwell_server.core.compiler.bounds import DEPTH_MAX, OPERATIONS_MAX
from stepwell_server.core.compiler.first_step import check_first_step
from stepwell_server.core.compiler.program import specialise
from stepwell_server.core.compiler.signature import HYPERPARAMETERS_MAX, SLOTS_MAX
from stepwell_server.core.compiler.text import TEXT_CHARACTERS_MAX, define_from_text, digest
from stepwell_server.core.errors import ChangeRefused, InvalidSpec, InvalidValue, UnknownArgument, UnknownFlavor
from stepwell_server.core.layout import ParameterSpec
from stepwell_server.core.optimizers import OPTIMIZERS
from stepwell_server.core.settings import Moment, make_settings, settings_from_data
from stepwell_server.core.spec import GroupSpec, RunSpec
from tests.core.local import LocalRun

START = Moment(0, 0.0, None)

ADAM = '''
def my_adam(param, grad, exp_avg, exp_avg_sq, *, step, lr=1e-3, beta1=0.9, beta2=0.999, eps=1e-8, eps_root=0.0):
    """Adam: momentum, scaled by the root of a running mean of squared gradients.

    param, grad and both slots: one shape, one float dtype. step counts from 1.
    eps lies outside the root, as in Algorithm 1 and PyTorch; eps_root lies inside.
    """
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * grad**2
    corrected = exp_avg / (1 - beta1**step)
    scale = sqrt(exp_avg_sq / (1 - beta2**step) + eps_root) + eps
    return param - lr * corrected / scale, exp_avg, exp_avg_sq
'''

HEAVY_BALL = """
def heavy_ball(param, grad, velocity, *, step, lr=0.5, momentum=0.9, nesterov=False, mode="plain", floor=None):
    if not momentum and mode == "plain":
        return param - lr * grad, velocity
    velocity = momentum * velocity + grad
    if floor is not None:
        velocity = where(abs(velocity) < floor, 0, velocity)
    ahead = grad + momentum * velocity if nesterov else velocity
    return param - lr * ahead, velocity
"""


def run_text(device, text, param, grads, dtype="float64", **spec):
    run = LocalRun({"w": np.asarray(param, dtype)}, "", device=device, definition=text, **spec)
    return [run.step({"w": np.asarray(grad, dtype)})["w"] for grad in grads]


def body(*lines, signature="param, grad, *, step, lr=0.1"):
    return "\n".join([f"def mine({signature}):", *(f"    {line}" for line in lines)])


# What is the same as in a built-in one.


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    "hyperparameters",
    [
        {},
        {"lr": 0.1, "beta1": 0.5, "eps_root": 1e-9},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True, "maximize": True},
    ],
)
def test_adam_as_text_equals_the_built_in_one(device, dtype, hyperparameters):
    random = np.random.default_rng(20)
    param, grads = random.normal(size=(3, 5)), random.normal(size=(100, 3, 5))
    ours = run_text(device, ADAM, param, grads, dtype, hyperparameters=hyperparameters)
    built_in = LocalRun({"w": param.astype(dtype)}, "adam", device=device, hyperparameters=hyperparameters)
    for mine, grad in zip(ours, grads, strict=True):
        np.testing.assert_array_equal(mine, built_in.step({"w": grad.astype(dtype)})["w"])


def test_a_definition_is_not_registered():
    definition = define_from_text(ADAM)
    assert definition.name not in OPTIMIZERS
    assert definition.summary == "Adam: momentum, scaled by the root of a running mean of squared gradients."
    assert definition.slots == ("exp_avg", "exp_avg_sq")
    assert list(definition.flavors) == ["custom"]
    decays = ["weight_decay", "decoupled_weight_decay", "maximize"]
    assert list(definition.arguments) == ["lr", "beta1", "beta2", "eps", "eps_root", *decays]


def test_flags_texts_and_none_pick_the_variant(device):
    settings = make_settings("", None, {"momentum": 0.0}, {}, START, text=HEAVY_BALL)
    assert settings.slots == ()
    assert run_text(device, HEAVY_BALL, [0.0], [[1.0], [1.0]], hyperparameters={"momentum": 0.0})[1] == [-1.0]
    floored = {"momentum": 0.5, "floor": 1.2}
    assert run_text(device, HEAVY_BALL, [0.0], [[1.0], [2.0]], hyperparameters=floored)[1] == [-1.0]
    ahead = {"momentum": 0.5, "nesterov": True, "mode": "other"}
    assert run_text(device, HEAVY_BALL, [0.0], [[1.0]], hyperparameters=ahead)[0] == [-0.75]


def test_a_step_counts_per_parameter(device):
    run = LocalRun({"a": np.zeros(1), "b": np.zeros(1)}, "", device=device, definition=ADAM)
    run.step({"a": np.ones(1), "b": None})
    run.step({"a": np.ones(1), "b": np.ones(1)})
    after = run.parameters()
    assert after["b"] == pytest.approx(-1e-3)
    assert make_settings("", None, {}, {}, START, text=ADAM).step_per_parameter


def test_a_loss_that_the_signature_names_comes_with_every_update(device):
    text = body("return param - lr * loss * grad", signature="param, grad, *, step, loss, lr=1.0")
    run = LocalRun({"w": np.zeros(1)}, "", device=device, definition=text)
    assert run.step({"w": np.ones(1)}, loss=0.25)["w"] == [-0.25]
    assert define_from_text(text).numbers == ("loss",)


def test_reductions_run_over_a_parameter(device):
    text = body("return param - lr * grad / norm(grad)", signature="param, grad, *, step, lr=1.0")
    assert run_text(device, text, [0.0, 0.0], [[3.0, 4.0]])[0].tolist() == pytest.approx([-0.6, -0.8])


def test_a_reduction_that_nothing_uses_is_left_out(device):
    text = body("unused = max_abs(param)", "return param - lr * grad / norm(grad)", signature="param, grad, *, lr=1.0")
    assert run_text(device, text, [0.0, 0.0], [[3.0, 4.0]])[0].tolist() == pytest.approx([-0.6, -0.8])


def test_conditions_of_the_host_and_of_elements_combine(device):
    text = body(
        "moves = (grad > 0) & (lr < 1) | (step == 2)",
        "return where(moves, param - lr * grad, param)",
        signature="param, grad, *, step, lr=0.5",
    )
    after = run_text(device, text, [0.0, 0.0], [[1.0, -1.0], [1.0, -1.0]])
    assert [value.tolist() for value in after] == [[-0.5, 0.0], [-1.0, 0.5]]


def test_equality_with_a_number_is_decided_by_the_number(device):
    """Whether a hyperparameter is zero is known early; what it is equal to is not."""
    text = body("return param - (1.0 if lr == 0.5 else 2.0) * grad", signature="param, grad, *, step, lr=0.25")
    assert run_text(device, text, [0.0], [[1.0]])[0] == [-2.0]
    assert run_text(device, text, [0.0], [[1.0]], hyperparameters={"lr": 0.5})[0] == [-1.0]


def test_wrappers_transforms_schedules_and_groups_go_with_a_text(device):
    run = LocalRun(
        {"a": np.zeros(2), "b": np.zeros(2)},
        "my_adam",
        device=device,
        definition=ADAM,
        schedules={"lr": {"name": "constant", "factor": 0.5, "total_iters": 10}},
        wrappers=({"name": "ema", "decay": 0.5},),
        transforms=({"name": "clip_by_global_norm", "max_norm": 1.0},),
        groups=(GroupSpec("other", ("b",), definition=HEAVY_BALL, hyperparameters={"momentum": 0.0}),),
    )
    after = run.step({"a": np.full(2, 3.0), "b": np.full(2, 4.0)})
    assert after["a"] == pytest.approx(np.full(2, -5e-4))
    assert after["b"] == pytest.approx(np.full(2, -0.5 * 4 / np.sqrt(50)))
    vectors = {group.layout.name: set(group.vectors) for group in run.run.groups}
    assert vectors == {"default": {"", "exp_avg", "exp_avg_sq", "ema_average"}, "other": {"", "ema_average"}}


@pytest.mark.parametrize("text", ["", "    ", "\t", "\n\n  "])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_a_text_may_be_indented_and_have_any_newlines(text, newline):
    indented = "\n".join(text + line for line in ADAM.splitlines()).replace("\n", newline)
    assert digest(define_from_text(indented)) == digest(define_from_text(ADAM))


def test_annotations_of_one_name_are_not_read():
    text = body("return param - lr * grad", signature="param: Any, grad: Any, *, step: int, lr: float = 1")
    assert define_from_text(text).arguments["lr"].default == 1.0


def test_the_same_text_is_the_same_definition():
    assert define_from_text(str(ADAM)) is define_from_text("".join(ADAM))


def test_a_text_says_nothing_on_stderr():
    text = body(r'"""\\beta, \eta and \d"""', "return param - lr * grad if 1else param")
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        define_from_text(text)
    assert not said


# In a spec.


def spec(definition, optimizer="", names=("w",), **more):
    parameters = tuple(ParameterSpec(name, (2,), np.dtype("float32")) for name in names)
    return RunSpec(parameters, optimizer, definition=definition, **more)


def test_white_space_comments_and_docstrings_make_no_other_run():
    dressed = ADAM.replace("    exp_avg = ", "    # The first moment.\n    exp_avg   =  ").replace(
        "Adam: ", "My Adam: "
    )
    assert spec(ADAM).differences(spec(dressed, "my_adam")) == []
    changed = spec(ADAM).differences(spec(ADAM.replace("grad**2", "grad**4")))
    assert len(changed) == 1
    assert "optimizer is my_adam (custom), definition " in changed[0]
    assert spec("", "adam").differences(spec(ADAM))


def test_a_spec_and_its_settings_survive_a_snapshot():
    described = spec(ADAM, groups=(GroupSpec("g", ("w",), definition=HEAVY_BALL),))
    again = RunSpec.from_data(json.loads(json.dumps(described.data)))
    assert described.differences(again) == []
    assert again == described
    settings = make_settings("", "", {"lr": 0.1, "mode": "other"}, {}, START, text=HEAVY_BALL)
    assert settings_from_data(json.loads(json.dumps(settings.to_data()))) == settings


def test_a_group_with_the_runs_definition_begins_with_the_runs_hyperparameters():
    for group in (
        GroupSpec("g", ("w",)),
        GroupSpec("g", ("w",), "heavy_ball"),
        GroupSpec("g", ("w",), definition=HEAVY_BALL),
    ):
        described = spec(HEAVY_BALL, hyperparameters={"lr": 0.25}, groups=(group,))
        assert described.settings(described.layout())[0].own["lr"] == 0.25
    for group in (GroupSpec("g", ("w",), definition=ADAM), GroupSpec("g", ("w",), "adam")):
        described = spec(HEAVY_BALL, hyperparameters={"lr": 0.25}, groups=(group,))
        assert described.settings(described.layout())[0].own["lr"] == 1e-3


SPEC_REFUSALS = {
    "another name": (spec(ADAM, "adam"), "optimizer is 'adam' and the definition's function is 'my_adam'"),
    "a name that is taken": (spec(ADAM.replace("my_adam", "adam")), "'adam', which is an optimizer of the server's"),
    "a frozen group": (
        spec(ADAM, groups=(GroupSpec("g", ("w",), definition=ADAM, frozen=True),), names=("w", "x")),
        "group 'g' is frozen and has an optimizer",
    ),
    "a wrapper's name": (
        spec(ADAM.replace("exp_avg_sq", "ema_average"), wrappers=({"name": "ema"},)),
        "'ema_average' is also what a wrapper or transform of the run keeps",
    ),
    "flags that leave no number": (
        spec(body("return param - lr * grad * a", signature="param, grad, *, step, lr=0.1, a=None")),
        "None",
    ),
}


@pytest.mark.parametrize(("described", "message"), SPEC_REFUSALS.values(), ids=SPEC_REFUSALS)
def test_what_is_wrong_with_a_spec_is_said(described, message):
    with pytest.raises(InvalidSpec, match=message):
        described.settings(described.layout())


def test_hyperparameters_are_checked_as_those_of_built_in_optimizers():
    for given, error in (
        ({"lr": -1.0}, InvalidValue),
        ({"momentun": 0.5}, UnknownArgument),
        ({"lr": "a"}, InvalidValue),
    ):
        with pytest.raises(error):
            make_settings("", None, given, {}, START, text=HEAVY_BALL)
    with pytest.raises(UnknownFlavor, match="expected one of custom"):
        make_settings("", "torch", {}, {}, START, text=HEAVY_BALL)
    with pytest.raises(InvalidValue, match="'rate' is missing"):
        make_settings(
            "", None, {}, {}, START, text=body("return param - rate * grad", signature="param, grad, *, rate")
        )


def test_a_change_that_picks_another_part_is_checked():
    text = body(
        "if odd:",
        "    rate = lr",
        "return param - rate * grad",
        signature="param, grad, *, step, lr=0.1, odd=True",
    )
    settings = make_settings("", None, {}, {}, START, text=text)
    with pytest.raises(InvalidSpec, match="line 4, column 20: 'rate' is not known"):
        settings.changed(START, {"odd": False}, {})
    before = make_settings("", None, {}, {}, START, text=HEAVY_BALL)
    with pytest.raises(ChangeRefused):
        before.changed(START, {"momentum": 0.0}, {})


# What is refused, and where: (text, line, column, what is said).

REFUSED = {
    "nothing": ("", 1, 1, "one function and nothing else"),
    "only a comment": ("# def", 1, 1, "one function and nothing else"),
    "no function": ("lr = 1", 1, 1, "one function and nothing else has a place in the text, expected def name"),
    "an expression": ("__import__('os').system('true')", 1, 1, "one function and nothing else"),
    "an import before it": ("import os\n" + body("return param"), 1, 1, "one function and nothing else"),
    "two functions": (body("return param") + "\n\n" + body("return param"), 4, 1, "one function and nothing else"),
    "a class": ("class A:\n    pass", 1, 1, "one function"),
    "an async function": ("async " + body("return param"), 1, 1, "one function"),
    "no Python": ("def mine(param, grad):\n    return param -* grad", 2, 19, "invalid syntax"),
    "an open bracket": ("def mine(param, grad):\n    return (param", 2, 12, "was never closed"),
    "a body that is missing": ("def mine(param, grad):\n", 1, 23, "expected an indented block"),
    "an indent too many": (body("return param").replace("    return", "     x = lr\n    return"), 3, 17, "unindent"),
    "in an indented text": ("\n    def mine(param, grad):\n        return param.T\n", 3, 16, "param.T: Attribute"),
    "after letters beyond ASCII": (body("return where(lr == 'ηη', param, grad.T)"), 2, 37, "grad.T: Attribute"),
    # The signature.
    "a decorator": ("@print\n" + body("return param"), 1, 2, "a decorator has no place in the signature"),
    "a type of what is returned": ("def mine(param, grad) -> int:\n    return param", 1, 26, "an annotation of what"),
    "an annotation to evaluate": (body("return param", signature="param, grad: print()"), 1, 23, "one name"),
    "*args": (body("return param", signature="param, grad, *args"), 1, 24, r"\*args has no place"),
    "**kwargs": (body("return param", signature="param, grad, **kwargs"), 1, 25, r"\*\*kwargs has no place"),
    "positional-only": (body("return param", signature="param, /, grad"), 1, 10, "a positional-only argument"),
    "a default of a slot": (body("return param", signature="param, grad=1"), 1, 22, "a default of param"),
    "no param": (body("return grad", signature="grad, param"), 1, 10, "expected param, grad"),
    "no arguments": (body("return 1", signature=""), 1, 1, "expected param, grad"),
    "a name twice": (body("return param, lr", signature="param, grad, lr, *, lr=1"), 1, 30, "stands twice"),
    "a slot called step": (body("return param, step", signature="param, grad, step"), 1, 23, "a name of the server's"),
    "a slot called as a function": (body("return param, exp", signature="param, grad, exp"), 1, 23, "the server's own"),
    "a slot with two underscores": (body("return param, __a", signature="param, grad, __a"), 1, 23, "the server's own"),
    "an input": (body("return param", signature="param, grad, hessian"), 1, 23, "a name of the server's own"),
    "maximize": (body("return param", signature="param, grad, *, maximize=False"), 1, 26, "'maximize' is woven in"),
    "weight decay": (body("return param", signature="param, grad, *, weight_decay=0"), 1, 26, "is woven in"),
    "betas": (body("return param", signature="param, grad, *, betas=(0.9, 0.99)"), 1, 26, "the server's own"),
    "the function's name": ("def exp(param, grad):\n    return param", 1, 1, "'exp' is a name of the server's own"),
    "the function's underscores": ("def __init__(param, grad):\n    return param", 1, 1, "the server's own"),
    "letters beyond ASCII": (body("return param", signature="param, grad, *, η=1"), 1, 26, "'η' is no name here"),
    "a step with a default": (body("return param", signature="param, grad, *, step=1"), 1, 31, "is given by the run"),
    "a default that is computed": (body("return param", signature="param, grad, *, lr=1 + 1"), 1, 29, "no literal"),
    "a default that is called": (body("return param", signature="param, grad, *, lr=print()"), 1, 29, "no literal"),
    "a default that is a name": (body("return param", signature="param, grad, *, lr=inf"), 1, 29, "no literal"),
    "a default of bytes": (body("return param", signature="param, grad, *, a=b'x'"), 1, 28, "no literal"),
    "a default that is complex": (body("return param", signature="param, grad, *, a=1j"), 1, 28, "no literal"),
    "a default of ...": (body("return param", signature="param, grad, *, a=..."), 1, 28, "no literal"),
    "a list of texts": (body("return param", signature="param, grad, *, a=[1, 'b']"), 1, 32, "no literal"),
    "a default out of range": (
        body("return param", signature="param, grad, *, lr=-1"),
        1,
        29,
        r"expected a .*\[0, inf\)",
    ),
    "too many slots": (
        body("return param", signature="param, grad, " + ", ".join(f"s{n}" for n in range(SLOTS_MAX + 1))),
        1,
        23 + sum(len(f"s{n}, ") for n in range(SLOTS_MAX)),
        f"{SLOTS_MAX + 1} slots, expected at most {SLOTS_MAX}",
    ),
    "too many hyperparameters": (
        body("return param", signature="param, grad, *, " + ", ".join(f"h{n}" for n in range(HYPERPARAMETERS_MAX + 1))),
        1,
        26 + sum(len(f"h{n}, ") for n in range(HYPERPARAMETERS_MAX)),
        f"at most {HYPERPARAMETERS_MAX}",
    ),
    # Statements.
    "import": (
        body("import os", "return param"),
        2,
        5,
        "import os: Import has no place in an optimizer, expected 'name =",
    ),
    "from import": (body("from os import system", "return param"), 2, 5, "ImportFrom has no place"),
    "for": (body("for i in grad:", "    lr = i", "return param"), 2, 5, "For has no place"),
    "while": (body("while True:", "    pass", "return param"), 2, 5, "While has no place"),
    "with": (body("with grad:", "    pass", "return param"), 2, 5, "With has no place"),
    "try": (body("try:", "    pass", "finally:", "    pass", "return param"), 2, 5, "Try has no place"),
    "a nested function": (body("def f():", "    pass", "return param"), 2, 5, "FunctionDef has no place"),
    "a nested class": (body("class A:", "    pass", "return param"), 2, 5, "ClassDef has no place"),
    "a call as a statement": (body("print(grad)", "return param"), 2, 5, "Expr has no place"),
    "augmented": (body("grad += 1", "return param"), 2, 5, "AugAssign has no place"),
    "annotated": (body("a: print() = 1", "return param"), 2, 5, "AnnAssign has no place"),
    "two targets": (body("a = b = grad", "return param"), 2, 5, "Assign has no place"),
    "a tuple as target": (body("a, b = grad, grad", "return param"), 2, 5, "Assign has no place"),
    "an attribute as target": (body("grad.flags = 1", "return param"), 2, 5, "Assign has no place"),
    "a subscript as target": (body("grad[0] = 1", "return param"), 2, 5, "Assign has no place"),
    "global": (body("global lr", "return param"), 2, 5, "Global has no place"),
    "del": (body("del grad", "return param"), 2, 5, "Delete has no place"),
    "assert": (body("assert grad", "return param"), 2, 5, "Assert has no place"),
    "raise": (body("raise grad", "return param"), 2, 5, "Raise has no place"),
    "match": (body("match lr:", "    case _: pass", "return param"), 2, 5, "Match has no place"),
    "pass": (body("pass", "return param"), 2, 5, "Pass has no place"),
    "yield": (body("yield grad"), 2, 5, "Expr has no place"),
    "an empty return": (body("return"), 2, 5, "Return has no place"),
    "only a docstring": (body('"""Nothing."""'), 1, 1, "a path ends without a return"),
    "no return": (body("change = lr * grad"), 2, 5, "a path ends without a return"),
    "a path without a return": (body("if lr:", "    return param"), 2, 5, "a path ends without a return"),
    "too few values": (body("return param", signature="param, grad, slow"), 2, 5, "1 values are returned, expected"),
    "too many values": (body("return param, grad"), 2, 5, "2 values are returned, expected those of param"),
    # Expressions.
    "an attribute": (
        body("return param - grad.T"),
        2,
        20,
        "grad.T: Attribute has no place in an optimizer, expected names",
    ),
    "a method": (body("return param - grad.mean()"), 2, 20, r"grad.mean\(\): Call has no place"),
    "a way out": (body("return param - abs(().__class__.__base__)"), 2, 24, "Attribute has no place"),
    "a subscript": (body("return param - grad[0]"), 2, 20, "Subscript has no place"),
    "a slice": (body("return param - grad[1:]"), 2, 20, "Subscript has no place"),
    "a list": (body("return param - [lr]"), 2, 20, "List has no place"),
    "a set": (body("return param - {lr}"), 2, 20, "Set has no place"),
    "a dictionary": (body("return param - {1: lr}"), 2, 20, "Dict has no place"),
    "a tuple": (body("return param - (lr, lr)"), 2, 20, "Tuple has no place"),
    "a starred value": (body("return (*param,)"), 2, 13, "Starred has no place"),
    "a list comprehension": (body("return param - [g for g in grad]"), 2, 20, "ListComp has no place"),
    "a generator": (body("return param - sum_all(g for g in grad)"), 2, 27, "GeneratorExp has no place"),
    "a set comprehension": (body("return param - {g for g in grad}"), 2, 20, "SetComp has no place"),
    "a lambda": (body("return param - (lambda: lr)()"), 2, 20, "Call has no place"),
    "a lambda as a value": (body("f = lambda: lr", "return param"), 2, 9, "Lambda has no place"),
    "an f-string": (body("return param - f'{lr}'"), 2, 20, "JoinedStr has no place"),
    "a walrus": (body("return param - (rate := lr)"), 2, 21, "NamedExpr has no place"),
    "await": (body("return await grad"), 2, 12, "Await has no place"),
    "a matrix product": (body("return param @ grad"), 2, 12, "BinOp has no place"),
    "a floor division": (body("return param // lr"), 2, 12, "BinOp has no place"),
    "a shift": (body("return param - (1 << step)"), 2, 21, "BinOp has no place"),
    "an inversion": (body("return where(~(grad > 0), param, grad)"), 2, 18, "UnaryOp has no place"),
    "a chain of comparisons": (body("return where(0 < grad < 1, param, grad)"), 2, 18, "Compare has no place"),
    "membership": (body("return param if step in (1, 2) else grad"), 2, 21, "Compare has no place"),
    "bytes": (body("return param - b'x'"), 2, 20, "Constant has no place"),
    "a complex number": (body("return param - 1j * grad"), 2, 20, "Constant has no place"),
    "...": (body("return param - ..."), 2, 20, "Constant has no place"),
    "an unknown name": (body("return param - gradient"), 2, 20, "'gradient' is not known, expected one of grad, "),
    "a builtin": (body("return param - print"), 2, 20, "'print' is not known"),
    "a dunder name": (body("return param - __builtins__"), 2, 20, "'__builtins__' is not known"),
    "a call of a builtin": (
        body("return param - __import__('os')"),
        2,
        20,
        "'__import__' is not known, expected one of abs",
    ),
    "a call of eval": (body("return param - eval('lr')"), 2, 20, "'eval' is not known"),
    "a call of a slot": (body("return param - grad(lr)"), 2, 20, "'grad' is not known"),
    "a name before it is set": (body("a = b", "b = lr", "return param - a"), 2, 9, "'b' is not known"),
    "infinity": (body("return minimum(param, infinity)"), 2, 27, "infinity has no place here"),
    "a dunder as target": (body("__a = grad", "return param"), 2, 5, "'__a' has no place in an optimizer as a name"),
    "a function as target": (
        body("sqrt = grad", "return param"),
        2,
        5,
        "'sqrt' has no place in an optimizer as a name",
    ),
    "keyword arguments": (body("return maximum(param, y=grad)"), 2, 12, "Call has no place"),
    "starred arguments": (body("return maximum(*grad)"), 2, 12, r"takes 2"),
    "too few arguments": (body("return maximum(param)"), 2, 12, "'maximum' takes 2"),
    "too many arguments": (body("return sqrt(param, grad)"), 2, 12, "'sqrt' takes 1"),
    # Kinds.
    "a text times a number": (body("return param - 'a' * 1000000000"), 2, 20, "'a' is a text, expected a number"),
    "a text hyperparameter times a number": (
        body("return param - mode * 1000000000", signature="param, grad, *, mode='a'"),
        2,
        20,
        "mode is a text, expected a number",
    ),
    "a list times a number": (
        body("return param - a * 1000000000", signature="param, grad, *, a=(1, 2)"),
        2,
        20,
        "a is a list of numbers, expected a number",
    ),
    "a text that is returned": (body("return 'param'"), 2, 12, "'param' is a text, expected a number"),
    "a text that is assigned": (body("a = 'x'", "return param"), 2, 9, "'a' becomes a text, expected a number"),
    "none that is assigned": (body("a = None", "return param"), 2, 9, "None has no place here"),
    "a sum of conditions": (body("return param - ((lr > 0) + (lr > 0))"), 2, 22, "is a condition, expected a number"),
    "a sum of flags": (body("return param - True * grad"), 2, 20, "True is a condition, expected a number"),
    "a condition that is returned": (body("return param > 0"), 2, 12, "is a condition, expected a number"),
    "numbers with &": (body("return param & grad"), 2, 12, "param is a number, expected a condition"),
    "a number as where's condition": (
        body("return where(grad, param, 0)"),
        2,
        18,
        "grad is a number, expected a condition",
    ),
    "conditions that are compared": (
        body("return where((grad > 0) == (param > 0), 1, 0)"),
        2,
        18,
        "compares a condition",
    ),
    "a text with a number": (body("return param if 'a' == 1 else grad"), 2, 21, "compares a text with a number"),
    "texts that are ordered": (body("return param if 'a' < 'b' else grad"), 2, 21, "compares a text, expected numbers"),
    "is with a number": (
        body("return param if lr is 1 else grad"),
        2,
        21,
        "'is' has a place between a hyperparameter and",
    ),
    "none with ==": (body("return param if lr == None else grad"), 2, 27, "None has no place here"),
    "a plain if on the step": (
        body("if step > 3:", "    return param", "return grad"),
        2,
        8,
        "if step > 3: a plain if is",
    ),
    "a plain if on a number's value": (body("if lr == 1:", "    return param", "return grad"), 2, 8, "a plain if is"),
    "a plain if on elements": (body("if grad:", "    return param", "return grad"), 2, 8, "where.c, x, y. on elements"),
    "a plain if on a local": (body("a = lr", "if a:", "    return param", "return grad"), 3, 8, "a plain if is"),
    "and on elements": (body("return where(grad > 0 and lr > 0, 1, 0)"), 2, 18, "only where, & and | can decide"),
    "not on elements": (body("return where(not grad > 0, 1, 0)"), 2, 22, "only where, & and | can decide"),
    "a conditional on elements": (body("return param if grad > 0 else grad"), 2, 21, "only where, & and | can decide"),
    "a norm of a number": (body("return param - norm(lr)"), 2, 25, "reduces a number, expected elements"),
    "a hyperparameter that changes": (body("lr = lr / 2", "return param"), 2, 5, "'lr' is given and does not change"),
    "a step that changes": (body("step = step + 1", "return param"), 2, 5, "'step' is given and does not change"),
    "a name of what is woven in": (body("maximize = lr > 0", "return param"), 2, 5, "does not change in a body"),
    "a number that becomes a condition": (
        body("a = lr", "a = lr > 0", "return param"),
        3,
        9,
        "and becomes a condition",
    ),
    # Sizes.
    "a million characters": (body("return param" + " + grad" * 150_000), 1, 1, f"at most {TEXT_CHARACTERS_MAX}"),
    "a million spaces": (" " * 10**6, 1, 1, f"1000000 characters, expected at most {TEXT_CHARACTERS_MAX}"),
    "a NUL": (body("return param - '\0'"), 2, 21, r"the character '\\x00' has no place in the text"),
    "a NUL in an indented text": ("    def mine(param, grad):\n        return param\0", 2, 21, r"'\\x00'"),
    "half a surrogate pair": (body("return param  # \ud800"), 2, 21, r"the character '\\ud800' has no place"),
    "an escaped NUL": (body("return param if '\\x00' == 'a' else grad"), 2, 21, "expected at most 64 printable ones"),
    "a long text": (body(f"return param if '{'a' * 65}' == 'a' else grad"), 2, 21, "a text of 65 characters"),
    "a long number": (body(f"return param - {'9' * 41} * grad"), 2, 20, "a number of more than 40 characters"),
    "a number of 10,000 digits": (body(f"return -{'9' * 10_000} * grad"), 2, None, "Exceeds the limit|more than 40"),
    "a hexadecimal number": (body(f"return param - 0x{'f' * 10_000}"), 2, 20, "a number of more than 40 characters"),
    "a number of many zeros": (
        body(f"return param - 1{'0' * 4000} * grad"),
        2,
        20,
        "a number of more than 40 characters",
    ),
    "a number beyond float64": (body("return param - 1e999 * grad"), 2, 20, "a number beyond float64"),
    "a long name": (body(f"{'a' * 65} = lr", "return param"), 2, 5, "expected at most 64 of A-Z"),
    "deep brackets": (
        body(f"return {'(' * 150}param{')' * 150} + {'abs(' * 60}grad{')' * 60}"),
        2,
        468,
        "deeper here than 40",
    ),
    "brackets too deep for Python": (body(f"return {'(' * 5000}param"), 2, 212, "too many nested parentheses"),
    "deep signs": (body(f"return {'- ' * 60}param"), 2, 90, "deeper here than 40"),
    "signs too deep for Python": (body(f"return {'-' * 10_000}param"), 1, 1, "the text nests too deep|deeper here"),
    "a long sum": (body("return param" + " + grad" * 60), 2, 12, "deeper here than 40"),
    "a sum too long for Python": (body("return param" + "+grad" * 3000), 1, 1, "the text nests too deep|deeper here"),
    "nested ifs": (
        body(*(" " * n + "if lr:" for n in range(50)), " " * 50 + "return param", "return param"),
        41,
        47,
        "deeper here than 40",
    ),
    "too many operations": (
        body(*["grad = grad + grad"] * (OPERATIONS_MAX + 1), "return param"),
        2 + OPERATIONS_MAX,
        5,
        f"more than {OPERATIONS_MAX} operations up to here",
    ),
    "a tower of powers": (body("return ((((grad**4)**4)**4)**4)**4"), 2, 5, f"more than {OPERATIONS_MAX} operations"),
    "too many roots": (
        body(*["grad = cbrt(grad)"] * 20, "return param"),
        7,
        5,
        f"more than {OPERATIONS_MAX} operations",
    ),
    "too many reductions": (body("return param" + " + norm(grad)" * 9), 2, 124, "more than 8 reductions"),
}


@pytest.mark.parametrize(("text", "line", "column", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_place_in_a_text_is_refused_with_its_place(text, line, column, message):
    with pytest.raises(InvalidSpec, match=message) as caught:
        define_from_text(text)
    details = caught.value.details
    # Where a number of too many digits stands only newer parsers say.
    column = int(details["column"]) if column is None else column
    assert (int(details["line"]), int(details["column"])) == (line, column), caught.value
    assert details["argument"] == "definition"
    assert str(caught.value).startswith(f"definition, line {line}, column {column}: ")
    assert "expected" in str(caught.value)
    assert len(str(caught.value)) < 1200


# What the variant that is picked, or its first step, shows: (text, hyperparameters, line, column, what is said).

FIRST_STEP = {
    "a name of the other branch": (
        body("if flag:", "    rate = lr", "return param - rate * grad", signature="param, grad, *, lr=0.1, flag=False"),
        {},
        4,
        20,
        "'rate' is not known",
    ),
    "elements that become a scalar": (
        body("a = grad", "a = lr", "return param - a * grad"),
        {},
        3,
        9,
        "holds elements",
    ),
    "a division by zero": (
        body("a = lr / (step - 1)", "return param - a * grad"),
        {},
        2,
        9,
        r"at the first step the formula fails \(float division by zero\), with the hyperparameters lr=0.1, .*mend",
    ),
    "a division by zero of elements": (
        body("a = grad / (step - 1)", "return param - a"),
        {},
        2,
        5,
        "'a' is no finite number",
    ),
    "a logarithm of the parameter": (body("return param - lr * log(param)"), {}, 2, 12, "the new 'param' is no finite"),
    "a root of the gradient": (
        body("a = sqrt(grad)", "b = a * lr", "return param - b"),
        {},
        2,
        5,
        "'a' is no finite number",
    ),
    "a slot": (
        body("return param, grad / slow", signature="param, grad, slow"),
        {},
        2,
        19,
        "the new 'slow' is no finite",
    ),
    "an overflow": (body("a = 1e300 * 1e300", "return param - a * grad"), {}, 2, 5, "'a' is no finite number"),
    "an exponential": (body("a = exp(1000)", "return param - a * grad"), {}, 2, 9, "math range error"),
    "a root of a negative number": (
        body("a = (-lr) ** 0.5", "return param - a * grad"),
        {},
        2,
        5,
        "'a' is no finite number",
    ),
    "a tower of literals": (
        body("return param - 2**10**10 * grad"),
        {},
        2,
        20,
        "Result too large|Numerical result out of",
    ),
    "a tower of steps": (body("a = (step + 99) ** 999", "return param - a ** a"), {}, 2, 9, "out of range|too large"),
    "none that is returned": (body("return a", signature="param, grad, *, a=None"), {}, 2, 12, "the new 'param' is no"),
    "none where a number is needed": (
        body("return param - a * grad", signature="param, grad, *, a=None"),
        {},
        2,
        20,
        "NoneType",
    ),
    "hyperparameters that do not go": (
        body("return param - grad / lr"),
        {"lr": 0.0},
        2,
        12,
        "'param' is no finite number",
    ),
    "a coefficient that elements hide": (
        body("return where(grad > 1000, 1e300 * lr * 1e300, param)", signature="param, grad, *, lr=1.0"),
        {},
        1,
        1,
        "no finite number",
    ),
}


@pytest.mark.parametrize(("text", "given", "line", "column", "message"), FIRST_STEP.values(), ids=FIRST_STEP)
def test_what_the_first_step_shows_is_refused_with_its_place(text, given, line, column, message):
    with pytest.raises(InvalidSpec, match=message) as caught:
        make_settings("", None, given, {}, START, text=text)
    details = caught.value.details
    assert (int(details["line"]), int(details["column"])) == (line, column), caught.value


def test_what_is_not_finite_on_the_way_may_be_finite_in_the_end():
    text = body("a = where(param > 0, grad / param, grad)", "return param - lr * a")
    definition = define_from_text(text)
    check_first_step(definition, definition.resolve("custom", {}), [])


def test_every_number_of_the_host_is_a_float():
    """An integer could grow without end; nothing here does, however large the step."""
    text = body("a = (step % 7) ** step", "b = a % 3 if step == 1 else 2 ** 3", "return param - b * grad")
    definition = define_from_text(text)
    values = definition.resolve("custom", {})
    host = specialise(definition, values).host
    for step in (1, 2, 10**6):
        (coefficient,), _ = host(step, values, ())
        assert type(coefficient) is float
    huge = define_from_text(body("return param - (7 ** step) * grad"))
    values = huge.resolve("custom", {})
    program = specialise(huge, values)
    with pytest.raises(InvalidValue, match=r"out of range|too large"):
        program.host(10**9, values, ())


def test_the_depth_that_is_said_is_the_depth_that_is_taken():
    # The function, the return and the operators take a level each.
    define_from_text(body("return param" + " + grad" * (DEPTH_MAX - 2)))
    with pytest.raises(InvalidSpec):
        define_from_text(body("return param" + " + grad" * (DEPTH_MAX - 1)))


def test_a_text_of_a_docstring_is_read_from_it():
    text = dedent(f'''
        def mine(param, grad):
            """{"A long summary. " * 50}"""
            return param - grad
    ''')
    assert len(define_from_text(text).summary) == 200
