"""Carries out the cases of README.md with a Python client, `stepwell` or `stepwell.aio`."""

import asyncio
import inspect
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Self

import ml_dtypes
import numpy as np

import stepwell

ROOT: Final = Path(__file__).parent.parent.parent
CASES: Final = Path(__file__).parent / "cases"
END_SECONDS_MAX: Final = 60.0
PAUSE_SECONDS: Final = 0.02
DTYPES: Final = {
    "float32": np.dtype("<f4"),
    "float64": np.dtype("<f8"),
    "float16": np.dtype("<f2"),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
CONNECT: Final = {"patience_seconds": 30.0, "retry_seconds": 0.01, "retry_seconds_max": 0.2}
NUMBERS: Final = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
WHOLE: Final = {"parameters", "rows", "slots"}
"""What may not have more fields than expected."""

Json = Any
Check = Callable[[Mapping[str, Json], Any], None]
"""Takes a step and what came of it: an answer, or an error."""
Make = Callable[[], Any]
"""Makes a call; what it gives may be awaitable."""
Describe = Callable[[Any], Json]
"""Makes of a call's result what a case expects."""


def load_cases() -> dict[str, dict[str, Json]]:
    """All cases by file; those with the same server one after another, for the stand keeps it then."""
    cases = {path.name: json.loads(path.read_text()) for path in sorted(CASES.glob("*.json"))}
    return dict(sorted(cases.items(), key=lambda each: json.dumps(each[1].get("server"))))


class CaseFailed(AssertionError):
    """A step of which something else came than the case expects."""


class Stand:
    """The child process with the server; one command at a time."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.conformance.stand"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )

    def do(self, **command: Json) -> dict[str, Json]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Json] = json.loads(self._process.stdout.readline() or '{"error": "the stand has ended"}')
        if "error" in answer:
            raise CaseFailed(f"the stand: {command}: {answer['error']}")
        return answer

    def close(self) -> None:
        self._process.communicate(timeout=END_SECONDS_MAX)
        assert self._process.returncode == 0


class Driver:
    """Makes calls of one of the two Python clients without waiting for them."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module
        self._threads = ThreadPoolExecutor(max_workers=8)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def connect(self, address: str, **options: Json) -> Any:
        return self.call(lambda: self._module.connect(address, **options)).result(END_SECONDS_MAX)

    def call(self, make: Callable[[], Any]) -> "Future[Any]":
        """What `make` returns, awaited where the client is to be awaited."""
        if self._module is stepwell:
            return self._threads.submit(make)

        async def result() -> Any:
            made = make()
            return await made if inspect.isawaitable(made) else made

        return asyncio.run_coroutine_threadsafe(result(), self._loop)

    def close(self) -> None:
        self._threads.shutdown()
        asyncio.run_coroutine_threadsafe(end_tasks(), self._loop).result(END_SECONDS_MAX)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def end_tasks() -> None:
    """Ends what closed clients have left on the loop."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Case:
    """One case while it is carried out."""

    def __init__(self, case: Mapping[str, Json], stand: Stand, driver: Driver, check: Check) -> None:
        self._steps = case["steps"]
        self._stand, self._driver, self._check = stand, driver, check
        self._suffix = f"-{os.urandom(4).hex()}"
        self._clients: dict[str, Any] = {}
        self._opened: list[Any] = []
        self._runs: dict[tuple[str, str], Any] = {}
        self._etags: dict[tuple[str, str], str] = {}
        self._begun: dict[str, tuple[Future[Any], Describe]] = {}
        server = case.get("server", {})
        arguments, data = server.get("arguments", []), server.get("data", True)
        self._address = stand.do(do="start", arguments=arguments, data=data)["address"]

    def carry_out(self) -> None:
        """Raises CaseFailed at the first step that fails."""
        try:
            for number, step in enumerate(self._steps, 1):
                try:
                    self._carry_out(step)
                except CaseFailed as failure:
                    raise CaseFailed(f"step {number}: {json.dumps(step):.300}\n{failure}") from None
        finally:
            for client in self._opened:
                with suppress(stepwell.StepwellError, RuntimeError):
                    self._driver.call(client.close).result(END_SECONDS_MAX)
            for future, _ in self._begun.values():
                with suppress(stepwell.StepwellError, RuntimeError, CancelledError):
                    future.result(END_SECONDS_MAX)

    def _carry_out(self, step: Mapping[str, Json]) -> None:
        if "stand" in step:
            command = {key: value for key, value in step.items() if key not in ("stand", "expect")}
            if "run" in command:
                command["run"] += self._suffix
            self._check(step, self._stand.do(do=step["stand"], **command))
            return
        if "until" in step:
            self._repeat(step)
            return
        if "end" in step:
            future, describe = self._begun.pop(step["end"])
        else:
            future, describe = self._begin(step)
            if "begin" in step:
                self._begun[step["begin"]] = future, describe
                return
        try:
            came = describe(future.result(END_SECONDS_MAX))
        except stepwell.StepwellError as error:
            came = error
        except TimeoutError:
            raise CaseFailed(f"got nothing in {END_SECONDS_MAX} s") from None
        self._check(step, came)

    def _repeat(self, step: Mapping[str, Json]) -> None:
        deadline = time.monotonic() + END_SECONDS_MAX
        while True:
            try:
                self._carry_out(
                    {key: value for key, value in step.items() if key != "until"} | {"expect": step["until"]}
                )
                return
            except CaseFailed:
                if time.monotonic() > deadline:
                    raise
            time.sleep(PAUSE_SECONDS)

    def _begin(self, step: Mapping[str, Json]) -> tuple["Future[Any]", Describe]:
        """Starts an operation; the function makes of its result what is compared."""
        arguments = {key: given(value) for key, value in step.get("with", {}).items()}
        label, do, run_label = step.get("client", "a"), step["do"], step.get("run", "run")
        if do == "connect":
            self._connect(label, **arguments)
            return settled(None), nothing
        if label not in self._clients:
            self._connect(label)
        client, key = self._clients[label], (label, run_label)
        name = run_label if arguments.pop("exact_name", False) else run_label + self._suffix
        make, describe = self._on_client(client, key, name, do, arguments) or self._on_run(key, do, arguments)
        return self._driver.call(make), describe

    def _on_client(
        self, client: Any, key: tuple[str, str], name: str, do: str, arguments: dict[str, Json]
    ) -> tuple[Make, Describe] | None:
        """An operation of the client's own; None if it is a run's."""
        match do:
            case "create" | "get":
                if key in self._runs:
                    self._driver.call(self._runs.pop(key).close).result(END_SECONDS_MAX)
                method = client.create_run if do == "create" else client.get_run
                return lambda: method(name, **arguments), lambda run: self._keep(key, run)
            case "delete":
                return lambda: client.delete_run(name), nothing
            case "ping":
                return client.ping, lambda server: {"contract": server.contract}
            case "list":
                return lambda: list_names(client, arguments["what"]), lambda names: {"names": Among(names)}
            case "list_runs":
                return client.list_runs, lambda runs: {"names": self._own_names(run.name for run in runs)}
            case "preview_schedule":
                schedule = arguments.pop("schedule")
                return lambda: client.preview_schedule(schedule, **arguments), lambda got: {
                    "values": list(map(float, got))
                }
        return None

    def _own_names(self, names: Iterable[str]) -> list[str]:
        """Those of this case's runs, as it calls them."""
        return sorted(name.removesuffix(self._suffix) for name in names if name.endswith(self._suffix))

    def _on_run(self, key: tuple[str, str], do: str, arguments: dict[str, Json]) -> tuple[Make, Describe]:
        if key not in self._runs:
            raise CaseFailed(f"client {key[0]} has no run {key[1]}: the case is wrong")
        run = self._runs[key]
        if "rows" in arguments:
            arguments["rows"] = {table: rows_of(rows) for table, rows in arguments["rows"].items()}
        if arguments.get("etag") == "last":
            arguments["etag"] = self._etags[key]
        match do:
            case "step" | "push":
                gradients = arguments.pop("gradients")
                name = "parameters" if do == "step" else "returned"
                return lambda: getattr(run, do)(gradients, **arguments), lambda got: answer(run) | {name: got}
            case "push_rows":
                rows = arguments.pop("rows")
                return lambda: run.push_rows(rows, **arguments), lambda got: answer(run) | {"returned": got}
            case "pull":
                return lambda: run.pull(**arguments), lambda got: pulled(run, got)
            case "pull_rows":
                rows = arguments.pop("rows")
                return lambda: run.pull_rows(rows, **arguments), lambda got: {"version": run.version, "rows": got}
            case "get_state":
                return run.get_state, lambda got: attributes(got, STATE)
            case "set_state":
                state = stepwell.State(**arguments.pop("state"))
                return lambda: run.set_state(state, **arguments), lambda got: self._describe(key, got)
            case "refresh" | "change" | "report" | "restore_checkpoint":
                return lambda: getattr(run, do)(**arguments), lambda got: self._describe(key, got)
            case "save_checkpoint":
                return lambda: run.save_checkpoint(**arguments), checkpoint
            case "list_checkpoints":
                return run.list_checkpoints, lambda got: {"checkpoints": [checkpoint(each) for each in got]}
            case "assignment":
                return lambda: run.assignment(**arguments), lambda got: {"begin": got.start, "end": got.stop}
            case "barrier":
                return lambda: run.barrier(**arguments), nothing
            case "close":
                return self._runs.pop(key).close, nothing
        raise CaseFailed(f"there is no operation {do!r}: the case is wrong")

    def _connect(self, label: str, **options: Json) -> None:
        client = self._driver.connect(self._address, **({"worker": label} | CONNECT | options))
        self._clients[label] = client
        self._opened.append(client)
        self._runs = {key: run for key, run in self._runs.items() if key[0] != label}

    def _keep(self, key: tuple[str, str], run: Any) -> Json:
        self._runs[key] = run
        return {"created": run.created, "version": run.version}

    def _describe(self, key: tuple[str, str], run: stepwell.RunDescription) -> Json:
        self._etags[key] = run.etag
        fields = {field: getattr(run, field) for field in DESCRIPTION}
        return fields | {
            "hyperparameters": {group.name: group.hyperparameters for group in run.groups},
            "workers": sorted(worker.name for worker in run.workers),
            "waiting": sorted(worker.name for worker in run.workers if worker.waits),
            "points": sorted(run.points),
            "tally": attributes(run.tally, TALLY),
            "tables": {name: attributes(table, TABLE) for name, table in run.tables.items()},
        }


STATE: Final = ("version", "samples", "parameters", "slots", "scalars", "steps")
TALLY: Final = ("commits", "folded", "skipped", "dropped", "refused", "duplicates")
TABLE: Final = ("rows", "created", "refused", "evicted", "step")
DESCRIPTION: Final = (
    "version",
    "generation",
    "samples",
    "policy",
    "skipped_count",
    "duplicates_count",
    "accumulated_count",
    "metrics",
    "loss_scale",
)
NORMS: Final = ("l1", "l2", "maximum")


def nothing(_: Any) -> Json:
    return {}


def attributes(found: object, names: tuple[str, ...]) -> dict[str, Json]:
    return {name: getattr(found, name) for name in names}


def without(arguments: Mapping[str, Json], name: str) -> dict[str, Json]:
    return {key: value for key, value in arguments.items() if key != name}


def settled(value: Any) -> "Future[Any]":
    future: Future[Any] = Future()
    future.set_result(value)
    return future


def list_names(client: Any, what: str) -> Any:
    """Names from one of the client's list_ methods; to be awaited where they are."""
    method = client.list_encodings if what.endswith("_encodings") else getattr(client, f"list_{what}")
    found = method()

    def names(parts: Any) -> list[str]:
        chosen = parts[f"{what.removesuffix('_encodings')}s"] if what.endswith("_encodings") else parts
        return [part.name for part in chosen]

    async def awaited() -> list[str]:
        return names(await found)

    return awaited() if inspect.isawaitable(found) else names(found)


def rows_of(rows: Mapping[str, Json]) -> Any:
    ids = np.array([int(each) for each in rows["ids"]], np.int64)
    return (ids, rows["gradients"]) if "gradients" in rows else ids


def answer(run: Any) -> dict[str, Json]:
    last = run.last_answer
    norms = {
        name: None if (found := getattr(last, name)) is None else attributes(found, NORMS)
        for name in ("gradient_norms", "parameter_norms")
    }
    return norms | {
        "outcome": last.outcome.value,
        "committed_version": last.committed_version,
        "loss_scale": last.loss_scale,
        "version": run.version,
    }


def pulled(run: Any, parameters: Any) -> dict[str, Json]:
    got = {"unchanged": parameters is None, "version": run.version}
    return got if parameters is None else got | {"parameters": parameters}


def checkpoint(stored: stepwell.Checkpoint) -> dict[str, Json]:
    return {"name": stored.name, "version": stored.version}


def given(value: Json) -> Any:
    """An argument of a case as Python has it: arrays, and numbers that JSON lacks."""
    if isinstance(value, dict):
        return array(value) if is_array(value) else {key: given(each) for key, each in value.items()}
    if isinstance(value, list):
        return [given(each) for each in value]
    return NUMBERS.get(value, value) if isinstance(value, str) else value


def is_array(value: Json) -> bool:
    return isinstance(value, dict) and {"dtype", "shape"} <= value.keys()


def array(value: Mapping[str, Json]) -> np.ndarray[Any, Any]:
    dtype, shape = DTYPES[value["dtype"]], tuple(value["shape"])
    if "fill" in value:
        return np.full(shape, given(value["fill"]), dtype)
    return np.array([given(each) for each in value["values"]], np.float64).astype(dtype).reshape(shape)


class Among(list[str]):
    """Names of which a case expects some."""

    __slots__ = ()


class Tolerance:
    """How far a number may be from the expected one."""

    def __init__(self, tolerance: Mapping[str, float]) -> None:
        self._relative, self._absolute = tolerance.get("relative", 0.0), tolerance.get("absolute", 0.0)

    def close(self, got: Any, expected: Any) -> bool:
        """Elementwise over arrays of one shape; all must be close."""
        return np.allclose(got, expected, rtol=self._relative, atol=self._absolute, equal_nan=True)


def compare(got: Any, expected: Json, tolerance: Tolerance, where: str = "") -> None:
    """Raises CaseFailed with the place, what was got, and what was expected."""

    def check(holds: bool) -> None:
        if not holds:
            raise CaseFailed(f"at {where or 'the answer'}:\ngot {got!s:.500}\nexpected {expected!s:.500}")

    if is_array(expected):
        wanted = array(expected)
        check(isinstance(got, np.ndarray) and (got.dtype, got.shape) == (wanted.dtype, wanted.shape))
        check(tolerance.close(got.astype(np.float64), wanted.astype(np.float64)))
    elif isinstance(expected, dict):
        check(isinstance(got, Mapping) and expected.keys() <= got.keys())
        check(where.rpartition(".")[2] not in WHOLE or expected.keys() == got.keys())
        for key, value in expected.items():
            compare(got[key], value, tolerance, f"{where}.{key}".lstrip("."))
    elif isinstance(got, Among):
        check(set(expected) <= set(got))
    elif isinstance(expected, list):
        check(isinstance(got, list | tuple) and len(got) == len(expected))
        for number, value in enumerate(expected):
            compare(got[number], value, tolerance, f"{where}[{number}]")
    elif expected is None or isinstance(expected, bool):
        check(got is expected)
    else:
        expected = given(expected)
        if isinstance(expected, str):
            check(isinstance(got, str) and got == expected)
        else:
            check(isinstance(got, int | float) and not isinstance(got, bool) and tolerance.close(got, expected))


def check_step(step: Mapping[str, Json], came: Any) -> None:
    """Compare what came of a step, an error or an answer; raises CaseFailed."""
    if "error" in step:
        check_error(came, step["error"])
    elif isinstance(came, stepwell.StepwellError):
        raise CaseFailed(f"got {came.reason}: {came}\nexpected {step.get('expect', 'no error')}") from came
    else:
        compare(came, step.get("expect", {}), Tolerance(step.get("tolerance", {})))


def check_error(came: Any, expected: Mapping[str, Json]) -> None:
    if not isinstance(came, stepwell.StepwellError):
        raise CaseFailed(f"got {came!s:.500}\nexpected the error {dict(expected)}")
    typed = getattr(stepwell, expected["reason"].title().replace("_", ""), None)
    holds = (
        type(came) is typed
        and came.reason == expected["reason"]
        and all(piece in str(came) for piece in expected.get("message", []))
        and expected.get("details", {}).items() <= came.details.items()
    )
    if not holds:
        raise CaseFailed(f"got {came.reason}: {came} {came.details}\nexpected the error {dict(expected)}")


class Runner:
    """Carries out cases with one of the two clients, one after another; a context manager."""

    def __init__(self, module: ModuleType) -> None:
        self._stand, self._driver = Stand(), Driver(module)

    def carry_out(self, file: str, case: Mapping[str, Json], check: Check = check_step) -> None:
        """Raises CaseFailed with the file, the step, what was expected and what was got."""
        try:
            Case(case, self._stand, self._driver, check).carry_out()
        except CaseFailed as failure:
            raise CaseFailed(f"{file}: {failure}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._driver.close()
        self._stand.close()
