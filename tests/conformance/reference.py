"""What the cases' numbers come from: the equations that they name, in plain NumPy, and no code of the server's.

It follows a case step by step, in one process. What became of an update (committed, folded, dropped) it takes from the
case; which numbers that leads to it says itself.
"""

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from tests.conformance.encodings import decoded, expected_range
from tests.conformance.runner import DTYPES, array

Json = Any
Arrays = dict[str, Any]
Numbers = Mapping[str, Any]


# Equations. Each takes a parameter, its gradient, its slots, its step (from 1) and numbers, and returns the parameter.


def sgd(w: Any, g: Any, slots: Arrays, step: int, n: Numbers) -> Any:
    g = g + n.get("weight_decay", 0.0) * w
    mu = n.get("momentum", 0.0)
    if mu:
        slots["momentum_buffer"] = g if step == 1 else mu * slots["momentum_buffer"] + g
        g = g + mu * slots["momentum_buffer"] if n.get("nesterov") else slots["momentum_buffer"]
    return w - n["lr"] * g


def adagrad(w: Any, g: Any, slots: Arrays, step: int, n: Numbers) -> Any:
    slots["sum"] = slots.get("sum", 0.0) + g * g
    return w - n["lr"] * g / (np.sqrt(slots["sum"]) + n.get("eps", 1e-10))


def adam(w: Any, g: Any, slots: Arrays, step: int, n: Numbers) -> Any:
    return _adam(w, g + n.get("weight_decay", 0.0) * w, slots, step, n)


def adamw(w: Any, g: Any, slots: Arrays, step: int, n: Numbers) -> Any:
    return _adam(w * (1 - n["lr"] * n.get("weight_decay", 0.01)), g, slots, step, n)


def _adam(w: Any, g: Any, slots: Arrays, step: int, n: Numbers) -> Any:
    beta1, beta2 = n.get("beta1", 0.9), n.get("beta2", 0.999)
    slots["exp_avg"] = beta1 * slots.get("exp_avg", 0.0) + (1 - beta1) * g
    slots["exp_avg_sq"] = beta2 * slots.get("exp_avg_sq", 0.0) + (1 - beta2) * g * g
    mean, square = slots["exp_avg"] / (1 - beta1**step), slots["exp_avg_sq"] / (1 - beta2**step)
    return w - n["lr"] * mean / (np.sqrt(square) + n.get("eps", 1e-8))


def polyak_sgd(w: Any, g: Any, slots: Arrays, step: int, n: Numbers) -> Any:
    return w - min(n["loss"] / float((g * g).sum()), 1.0) * g


def sophia(w: Any, g: Any, slots: Arrays, step: int, n: Numbers) -> Any:
    """Where the ratio of the gradient and the hessian is beyond 1 either way, and so clipped, it is its sign."""
    slots["exp_avg"] = 0.965 * slots.get("exp_avg", 0.0) + 0.035 * g
    slots["exp_avg_hessian"] = 0.99 * slots.get("exp_avg_hessian", 0.0) + 0.01 * n["hessian"]
    ratio = slots["exp_avg"] / np.maximum(0.01 * slots["exp_avg_hessian"], 1e-8)
    assert (np.abs(ratio) > 1).all(), "the equation for smaller ones is not here"
    return w - n["lr"] * np.sign(ratio)


def mine(w: Any, g: Any, slots: Arrays, step: int, n: Numbers) -> Any:
    """The one that a case sends as text."""
    return w - n.get("lr", 0.5) * g * 2


EQUATIONS: Final = {each.__name__: each for each in (sgd, adagrad, adam, adamw, polyak_sgd, sophia, mine)}


def step_lr(lr: float, clock: float, n: Numbers) -> float:
    return float(lr * n["gamma"] ** (clock // n["step_size"]))


def linear(lr: float, clock: float, n: Numbers) -> float:
    part = min(clock, n["total_iters"]) / n["total_iters"]
    return float(lr * (n["start_factor"] + (n["end_factor"] - n["start_factor"]) * part))


def cosine(lr: float, clock: float, n: Numbers) -> float:
    return float(n["eta_min"] + (lr - n["eta_min"]) * (1 + math.cos(math.pi * clock / n["t_max"])) / 2)


SCHEDULES: Final[Mapping[str, Callable[[float, float, Numbers], float]]] = {
    "step": step_lr,
    "linear": linear,
    "cosine": cosine,
}


class Run:
    """A run: its numbers, and what waits to become the next version."""

    def __init__(self, spec: Mapping[str, Json]) -> None:
        self.spec = spec
        self.dtypes = {name: DTYPES[each["dtype"]] for name, each in spec["parameters"].items()}
        self.parameters = {name: array(each).astype(np.float64) for name, each in spec["parameters"].items()}
        self.slots: dict[str, Arrays] = {name: {} for name in self.parameters}
        self.steps = dict.fromkeys(self.parameters, 0)
        self.version, self.samples = 0, 0.0
        self.history: dict[int, Arrays] = {}
        self.average: Arrays = {}
        self.numbers = dict(spec.get("hyperparameters", {}))
        self.by_group = {group["name"]: dict(group.get("hyperparameters", {})) for group in spec.get("groups", [])}
        self.schedules = dict(spec.get("schedules", {}))
        self.schedules_from = 0
        self.policy = spec.get("policy", {"name": "async"})
        self.encodings = spec.get("encodings", {})
        self.transforms = {each["name"]: each for each in spec.get("transforms", [])}
        self.tables = {table["name"]: table for table in spec.get("tables", [])}
        self.rows: dict[tuple[str, str], tuple[Any, Arrays, int]] = {}
        self.waiting: list[tuple[Mapping[str, Json], Arrays]] = []
        self.norms: Json = {}
        # What plateau makes of the metrics, and unscale of the updates.
        self.best, self.plateau = math.inf, 1.0
        self.loss_scale = self.transforms.get("unscale", {}).get("init_scale", 1.0)
        self.good_count = 0

    def group_of(self, name: str) -> Mapping[str, Json] | None:
        for group in self.spec.get("groups", []):
            for glob in group["parameters"]:
                begin, star, after = glob.partition("*")
                if name == glob or (star and name.startswith(begin) and name.endswith(after)):
                    return dict(group)
        return None

    def rate(self, lr: float) -> float:
        schedule = self.schedules.get("lr")
        if schedule is None:
            return lr
        if schedule["name"] == "plateau":
            return lr * self.plateau
        clock = self.samples if schedule.get("clock") == "samples" else self.version
        return SCHEDULES[schedule["name"]](lr, clock - self.schedules_from, schedule)

    def commit(self, base_version: int) -> None:
        """Makes a version of what waits: the mean, weighed by samples. base_version: where the last one was taken."""
        self.history[self.version] = dict(self.parameters)
        damping = 1 / (1 + self.version - base_version) if self.policy.get("damping") == "inverse" else 1.0
        weights = [each.get("samples", 0) for each, _ in self.waiting]
        if not any(weights):
            weights = [1] * len(weights)
        combined = {}
        for name in self.parameters:
            parts = [(g[name], weight) for (_, g), weight in zip(self.waiting, weights, strict=True) if name in g]
            if parts:
                combined[name] = sum(g * weight for g, weight in parts) / sum(weight for _, weight in parts)
        for name, gradient in combined.items() if "delay_compensation" in self.policy else ():
            moved = self.parameters[name] - self.history[base_version][name]
            combined[name] = gradient + self.policy["delay_compensation"] * gradient**2 * moved
        last = self.waiting[-1][0]
        self.norms = {"gradient_norms": norms(combined)}
        if "clip_by_global_norm" in self.transforms:
            factor = self.transforms["clip_by_global_norm"]["max_norm"] / (self.norms["gradient_norms"]["l2"] + 1e-6)
            combined = {name: g * min(1.0, factor) for name, g in combined.items()}
        for scope, values in last.get("hyperparameters", {}).items():
            if isinstance(values, dict):
                self.by_group[scope].update(values)
            else:
                self.numbers[scope] = values
        for name, gradient in combined.items():
            group = self.group_of(name)
            numbers = self.numbers | (self.by_group[group["name"]] if group else {}) | {"loss": last.get("loss")}
            numbers |= {kind: array(each[name]) for kind, each in last.get("inputs", {}).items()}
            numbers["lr"] = self.rate(numbers.get("lr", 0.5)) * damping
            self.steps[name] += 1
            equation = EQUATIONS[self.spec.get("optimizer", "mine")]
            with np.errstate(invalid="ignore"):
                value = equation(self.parameters[name], gradient, self.slots[name], self.steps[name], numbers)
            self.parameters[name] = value
        for table, rows in last.get("rows", {}).items():
            self.train_rows(table, rows)
        self.norms["parameter_norms"] = norms(self.parameters)
        for wrapper in self.spec.get("wrappers", []):
            for name, value in self.parameters.items():
                old = self.average.get(name, value)
                self.average[name] = wrapper["decay"] * old + (1 - wrapper["decay"]) * value
        self.samples += sum(each.get("samples", 0) for each, _ in self.waiting)
        self.version += 1
        self.waiting = []

    def steer(self, outcome: str) -> None:
        """What unscale makes of an update."""
        unscale = self.transforms.get("unscale")
        if unscale is None:
            return
        self.good_count = self.good_count + 1 if outcome == "committed" else 0
        if outcome == "skipped_nonfinite":
            self.loss_scale *= 0.5
        elif self.good_count == unscale["growth_interval"]:
            self.loss_scale, self.good_count = self.loss_scale * 2, 0

    def row(self, table: str, number: str) -> tuple[Any, Arrays, int]:
        spec = self.tables[table]
        start = np.full(spec["width"], float(spec["initializer"]["value"]))
        return self.rows.get((table, number), (start, {}, 0))

    def train_rows(self, table: str, rows: Mapping[str, Json]) -> None:
        summed: Arrays = {}
        for number, gradient in zip(rows["ids"], array(rows["gradients"]).astype(np.float64), strict=True):
            summed[number] = summed.get(number, 0.0) + gradient
        spec = self.tables[table]
        for number, gradient in summed.items():
            value, slots, step = self.row(table, number)
            value = EQUATIONS[spec["optimizer"]](value, gradient, slots, step + 1, spec["hyperparameters"])
            self.rows[table, number] = value, slots, step + 1

    def pulled(self, exact: bool = False, of: str = "parameters") -> Arrays:
        """The parameters as they come back."""
        encoding = None if exact else self.encodings.get("parameters")
        found = {}
        for name, value in (self.average if of == "average" else self.parameters).items():
            with np.errstate(over="ignore"):
                out = np.asarray(value, self.dtypes[name])
            if encoding:
                fields = expected_range(encoding, "parameters", out.ravel())
                out = decoded(encoding, fields, out.dtype).reshape(out.shape)
            found[name] = out
        return found


def norms(arrays: Arrays) -> dict[str, float]:
    flat = np.concatenate([np.ravel(each) for each in arrays.values()] or [np.zeros(1)])
    return {
        "l1": float(np.abs(flat).sum()),
        "l2": float(np.sqrt((flat * flat).sum())),
        "maximum": float(np.abs(flat).max(initial=0.0)),
    }


class Reference:
    """Follows a case; `follow` gives what should come of a step, as far as the equations say."""

    def __init__(self) -> None:
        self.runs: dict[str, Run] = {}
        self.stored: dict[str, Run] = {}
        self.checkpoints: dict[tuple[str, str], Run] = {}
        self.known: dict[tuple[str, str], int] = {}
        self.owed: dict[tuple[str, str, str], Any] = {}
        self.begun: dict[str, Mapping[str, Json]] = {}

    def follow(self, step: Mapping[str, Json]) -> dict[str, Json]:
        if "error" in step:
            return {}
        if "stand" in step:
            self._stand(step["stand"])
            return {}
        if "end" in step:
            begun = self.begun.pop(step["end"])
            return self._end(begun, step.get("expect", {}))
        client, label, arguments = step.get("client", "a"), step.get("run", "run"), step.get("with", {})
        if "begin" in step:
            self.begun[step["begin"]] = step
            if step["do"] in ("step", "push") and self.runs[label].policy["name"] == "sync":
                self._stage(client, label, arguments)
            return {}
        found = self._do(step["do"], client, label, arguments, step.get("expect", {}))
        if label in self.runs:
            self.known[client, label] = self.runs[label].version
        return found

    def _stand(self, command: str) -> None:
        if command == "stop":
            self.stored = copy.deepcopy(self.runs)
        if command == "kill":
            self.runs = copy.deepcopy(self.stored)

    def _end(self, begun: Mapping[str, Json], expect: Mapping[str, Json]) -> dict[str, Json]:
        client, label = begun.get("client", "a"), begun.get("run", "run")
        if begun["do"] not in ("step", "push"):
            return {}
        run = self.runs[label]
        if run.policy["name"] != "sync":
            return self._do(begun["do"], client, label, begun["with"], expect)
        versions = dict.fromkeys(("version", "committed_version", "returned"), run.version)
        return versions | {"parameters": run.pulled()}

    def _do(
        self, do: str, client: str, label: str, arguments: Mapping[str, Json], expect: Mapping[str, Json]
    ) -> dict[str, Json]:
        if do == "create":
            made = label not in self.runs
            if made:
                self.runs[label] = Run(arguments)
            return {"created": made, "version": self.runs[label].version}
        if do == "preview_schedule":
            schedule = arguments["schedule"]
            curve = SCHEDULES[schedule["name"]]
            return {"values": [curve(arguments["initial"], clock, schedule) for clock in range(arguments["steps"])]}
        if do == "delete":
            del self.runs[label]
        run = self.runs.get(label)
        if run is None:
            return {}
        if do in ("step", "push", "push_rows"):
            return self._update(client, label, arguments, expect)
        if do == "pull":
            names = arguments.get("names", list(run.parameters))
            pulled = run.pulled(arguments.get("exact", False), arguments.get("of", "parameters"))
            return {"version": run.version, "parameters": {name: pulled[name] for name in names}}
        if do == "pull_rows":
            rows = {
                table: np.array([run.row(table, number)[0] for number in each["ids"]]).astype(
                    DTYPES[run.tables[table].get("dtype", "float32")]
                )
                for table, each in arguments["rows"].items()
            }
            return {"version": run.version, "rows": rows}
        if do == "get_state":
            wide = {name: np.float64 if dtype == np.float64 else np.float32 for name, dtype in run.dtypes.items()}
            return {
                "version": run.version,
                "samples": run.samples,
                "parameters": {name: np.asarray(value, wide[name]) for name, value in run.parameters.items()},
                "slots": {
                    name: {slot: value.astype(wide[name]) for slot, value in slots.items()}
                    for name, slots in run.slots.items()
                },
                "steps": run.steps,
            }
        self._change(do, label, run, arguments)
        present = self.runs[label]
        rates = {group: numbers.get("lr", present.numbers.get("lr")) for group, numbers in present.by_group.items()}
        rates["default"] = present.numbers.get("lr")
        told = {group: {"lr": present.rate(lr)} for group, lr in rates.items() if lr is not None}
        counted = {"version": present.version, "samples": present.samples, "loss_scale": present.loss_scale}
        return counted | {"hyperparameters": told}

    def _change(self, do: str, label: str, run: Run, arguments: Mapping[str, Json]) -> None:
        if do == "change":
            run.numbers.update(arguments.get("hyperparameters", {}))
            run.policy = arguments.get("policy", run.policy)
            for name, schedule in arguments.get("schedules", {}).items():
                run.schedules.pop(name, None)
                if schedule is not None:
                    run.schedules[name] = schedule
                    run.schedules_from = 0 if arguments.get("keep_clock") else run.version
        elif do == "report":
            (metric,) = arguments["metrics"].values()
            run.plateau *= run.schedules["lr"]["factor"] if metric >= run.best else 1.0
            run.best = min(run.best, metric)
        elif do == "save_checkpoint":
            self.checkpoints[label, arguments.get("name", f"version-{run.version}")] = copy.deepcopy(run)
        elif do == "restore_checkpoint":
            self.runs[label] = copy.deepcopy(self.checkpoints[label, arguments["name"]])
        elif do == "set_state":
            state = arguments["state"]
            run.parameters = {name: array(each).astype(np.float64) for name, each in state["parameters"].items()}
            run.slots = {
                name: {slot: array(each).astype(np.float64) for slot, each in slots.items()}
                for name, slots in state["slots"].items()
            }
            run.steps, run.version, run.samples = dict(state["steps"]), state["version"], state["samples"]

    def _update(
        self, client: str, label: str, arguments: Mapping[str, Json], expect: Mapping[str, Json]
    ) -> dict[str, Json]:
        run = self.runs[label]
        outcome = expect.get("outcome", "committed")
        if outcome in ("committed", "folded"):
            self._stage(client, label, arguments)
        if outcome == "committed":
            run.commit(self.known.get((client, label), 0))
        run.steer(outcome)
        versions = dict.fromkeys(("version", "committed_version", "returned"), run.version)
        found: dict[str, Json] = versions | run.norms
        return found | {"parameters": run.pulled(), "loss_scale": run.loss_scale}

    def _stage(self, client: str, label: str, arguments: Mapping[str, Json]) -> None:
        run = self.runs[label]
        gradients = {}
        for name, value in arguments.get("gradients", {}).items():
            if value is None:
                continue
            gradient = array(value).astype(np.float64)
            encoding = run.encodings.get("gradients")
            if encoding:
                gradient = self._encoded(encoding, (client, label, name), gradient.astype(run.dtypes[name]))
            gradients[name] = gradient / arguments.get("loss_scale", run.loss_scale)
        run.waiting.append((arguments, gradients))

    def _encoded(self, encoding: Mapping[str, Json], key: tuple[str, str, str], gradient: Any) -> Any:
        feedback = encoding.get("error_feedback", encoding["name"] in ("int8", "sign", "top_k"))
        gradient = gradient + self.owed.get(key, 0) if feedback else gradient
        found = decoded(encoding, expected_range(encoding, "gradients", gradient), gradient.dtype)
        if feedback:
            self.owed[key] = gradient - found
        return np.asarray(found, np.float64)
