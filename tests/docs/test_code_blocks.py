"""Every code block of the documentation is carried out, or compared with what it is about.

TypeScript and C++ are run where those clients are tested: client/typescript/test/package.test.ts and
client/cpp/tests/CMakeLists.txt.
"""

import ast
import inspect
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

import stepwell
from tests.docs import commands
from tests.docs.pages import ADDRESS, BLOCKS, PAGES, ROOT, Block, blocks_in, blocks_of, code_in_prose
from tests.end_to_end.server import Server
from tests.kernels import kept_kernels

ANYWHERE: Final = {"python", "sh", "text"}
"""What is tested, or needs no test (text), on every page."""
CERTAIN_PAGES: Final = {
    "cmake": {"client/cpp/README.md"},
    "cpp": {"README.md", "client/cpp/README.md"},
    "diff": {"README.md"},  # test_two_lines.py
    "js": {"README.md", "client/typescript/README.md"},
    "json": {"docs/policies.md"},
}
"""What is tested on the pages that its test knows."""

EXTRAS: Final = {"jax", "optax", "torch"}
"""What `make test` does not install; blocks that import one are run by `make test-references`."""

CHECKS: Final = {
    "README.md": """
np.testing.assert_allclose(np.append(params["w"], params["b"]), [1, -2, 3, 0.5, 1], atol=0.05)
assert run.version == 500
""",
    "docs/guide.md": """
np.testing.assert_allclose(params["w"], np.full((4, 1), -0.05), rtol=1e-5)
""",
    "docs/policies.md": """
assert run.refresh().policy["name"] == "sync"
""",
    "docs/tables.md": """
assert rows.shape == (3, 16) and run.refresh().tables["user"].rows == 2
# Adam's first step is the learning rate, against the gradient's sign.
np.testing.assert_allclose(run.pull()["w"], np.full(3, -1e-3), rtol=1e-5)
""",
}
"""What holds after the Python of a page, in its names."""
EXTRAS_CHECKS: Final = {
    "README.md": """
np.testing.assert_allclose(np.append(params["w"], params["b"]), [2, -1, 1], atol=0.05)
assert int(state.version) == 300

optimizer = optax.adamw(0.05)  # the line that the comment shows, in the same loop
local = {"w": jnp.zeros(2), "b": jnp.zeros(())}
state = optimizer.init(local)
again = jax.jit(lambda *arguments: step.__wrapped__(*arguments))
for key in jax.random.split(jax.random.key(0), 300):
    local, state = again(local, state, key)
np.testing.assert_allclose(np.append(params["w"], params["b"]), np.append(local["w"], local["b"]), rtol=1e-4)
""",
    "docs/guide.md": """
assert model.weight.dtype is torch.bfloat16 and loss.item() < 0.01
assert (model.weight.detach().float() - 1).abs().max() < 0.05 and model.bias.detach().float().abs() < 0.05
""",
}
"""The same once its blocks with extras have run, too."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(kept_kernels()) as server:
        yield server


def test_pages_have_code():
    assert {block.page for block in BLOCKS} >= {"README.md", *(page for page in PAGES if page.startswith("client/"))}


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_no_block_escapes(block: Block):
    known = block.kind in ANYWHERE or block.page in CERTAIN_PAGES.get(block.kind, ())
    assert known, (
        f"{block} is of kind {block.kind!r}, which nothing tests on this page; mark it as text if it is no code"
    )


def test_blocks_are_found_wherever_they_are():
    text = "```\nno kind\n```\n\n- an item\n\n  ~~~yaml title\n  a: 1\n  ~~~\n\n>     indented\n\nend\n"
    found = [(block.line, block.kind, block.text) for block in blocks_in(text, "page")]
    assert found == [(1, "", "no kind\n"), (7, "yaml", "a: 1\n"), (11, "sh", "indented\n")]
    assert not {"", "yaml"} & (ANYWHERE | CERTAIN_PAGES.keys())


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.kind == "sh"], ids=str)
def test_shell_commands_are_true(block: Block):
    found = list(commands.commands_in(block.text))
    assert found
    for command in found:
        commands.check(command)


def test_commands_in_prose_are_true():
    spans = [span for page in PAGES for span in code_in_prose(page) if span.startswith("stepwell ")]
    found = [command for span in spans for command in commands.commands_in(span)]
    assert len(found) > 5
    for command in found:
        commands.check(command)


@pytest.mark.parametrize(
    "line",
    [
        "stepwell serve --no-such-option",
        "stepwell no-such-command",
        "stepwell bench --rounds",
        "make no-such-target",
        "make tests",
        'make demo DEMO="--no-such-option"',
        "make demo NOTHING=1",
        "pip install stepwell-server",
        "pip install '.[no-such-extra]'",
        "npm run no-such-script",
        "npm ci --prefix client",
        "npm install ./stepwell-9.9.9.tgz",
        "apt-get install no-such-package",
        "cmake -S client/cpp -B build -DNO_SUCH=1",
        "python examples/no_such.py",
        "curl http://127.0.0.1",
        "make demo && true",
    ],
)
def test_untrue_commands_are_found(line: str):
    *_, command = commands.commands_in(line)
    with pytest.raises(AssertionError):
        commands.check(command)


def test_commands_are_read_as_a_shell_does():
    text = "make demo  # nothing\n\n# only this\nmake test TESTS='a b' \\\n  -k && npm ci\n"
    assert list(commands.commands_in(text)) == [["make", "demo"], ["make", "test", "TESTS=a b", "-k"], ["npm", "ci"]]


PYTHON: Final = {page: blocks_of(page, "python") for page in PAGES if blocks_of(page, "python")}
PLAIN: Final = {page: [block for block in blocks if not block.imports() & EXTRAS] for page, blocks in PYTHON.items()}


def run_python(blocks: list[Block], then: str, server: Server) -> None:
    """One program of all blocks, so later ones have the names of earlier ones; then what must hold."""
    program = "\n".join([*(block.text for block in blocks), then])
    assert ADDRESS in program
    command = [sys.executable, "-W", "error", "-c", program.replace(ADDRESS, server.address)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PYTHON)
def test_python_runs(page: str, server: Server):
    run_python(PLAIN[page], CHECKS[page], server)


@pytest.mark.references
@pytest.mark.parametrize("page", [page for page in PYTHON if PLAIN[page] != PYTHON[page]])
def test_python_with_extras_runs(page: str):
    pytest.importorskip("torch")
    pytest.importorskip("jax")
    with Server(kept_kernels()) as server:
        run_python(PYTHON[page], EXTRAS_CHECKS[page], server)


def test_names_on_the_guide_are_those_of_the_sdk_and_the_server(server: Server):
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    for owner, kind in (("run", stepwell.Run), ("client", stepwell.Client)):
        named = set(re.findall(rf"\b{owner}\.(\w+)", guide))
        assert named
        assert not [name for name in named if not hasattr(kind, name)]
    comparison = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    with stepwell.connect(server.address) as client:
        assert f"| optimizers by name | {len(client.list_optimizers())}, " in comparison
        listed = {entry.name for entry in client.list_optimizers()}, {entry.name for entry in client.list_schedules()}
    sentence = guide[guide.index("Among the optimizers are") : guide.index("A schedule drives")]
    for names, known in zip(sentence.split("among the schedules"), listed, strict=True):
        found = set(re.findall(r"`(\w+)`", names))
        assert found
        assert found <= known


def test_what_the_guide_gives_to_create_run_is_taken(server: Server):
    """Every `argument=value` of the guide whose value is a literal, each in a run of its own, which makes a step."""
    parameters = {"layer.weight": np.ones((4, 4), np.float32), "layer.bias": np.zeros(4, np.float32)}
    tried: set[str] = set()
    with stepwell.connect(server.address) as client:
        known = inspect.signature(client.create_run).parameters
        for index, span in enumerate(code_in_prose("docs/guide.md")):
            name, _, value = span.partition("=")
            try:
                options = {name: ast.literal_eval(value)} if value and name in known else {}
            except ValueError:  # a name, which stands for what the reader has
                options = {}
            if options:
                run = client.create_run(f"guide-{index}", parameters, **{"optimizer": "adamw", **options})
                assert run.created, span
                run.step({key: np.ones_like(array) for key, array in parameters.items()})
                tried.add(name)
    assert tried >= {"encodings", "flavor", "groups", "policy", "schedules", "tables", "transforms", "wrappers"}


PICTURES: Final = [
    command for block in blocks_of("docs/guide.md", "sh") for command in commands.commands_in(block.text)
]


@pytest.mark.parametrize("command", [command for command in PICTURES if "--output" in command], ids=" ".join)
def test_pictures_are_drawn(command: list[str], tmp_path: Path):
    program = [sys.executable, "-W", "error", "-m", "stepwell_server", *command[1:]]
    done = subprocess.run(program, check=False, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (picture,) = tmp_path.iterdir()
    assert picture.name == command[-1]
    assert picture.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_update_log_has_the_lines_that_the_page_shows(tmp_path: Path):
    """Two workers, seven rounds; w-0 comes last in each, so that nothing is folded early, which gives other lines."""
    path = tmp_path / "updates.jsonl"

    def join(client: stepwell.Client) -> stepwell.Run:
        return client.create_run("mnist", {"w": np.zeros(2, np.float32)}, optimizer="sgd", policy="sync")

    with (
        Server(kept_kernels(), "--update-log", path) as server,
        stepwell.connect(server.address, worker="w-0") as client,
        stepwell.connect(server.address, worker="w-1") as other,
    ):
        runs = [join(client), join(other)]
        grads = {"w": np.ones(2, np.float32)}
        for _ in range(7):
            early = runs[1].step_async(grads, samples=16)
            until = time.monotonic() + 60
            while not any(worker.waits for worker in runs[0].refresh().workers):
                assert time.monotonic() < until
            runs[0].step(grads, samples=16)
            early.result(60)
    lines: list[dict[str, Any]] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    (found,) = [line for line in lines if line["kind"] == "commit" and line["version"] == 7]
    (shown,) = [json.loads(block.text) for block in blocks_of("docs/policies.md", "json")]
    assert type(found["time"]) is type(shown["time"])
    assert {**found, "time": None} == {**shown, "time": None}


def test_cmake_lines_are_those_of_a_project_outside():
    """client/cpp/tests/outside is such a project, and is built against what is installed; its name differs."""
    (block,) = blocks_of("client/cpp/README.md", "cmake")
    outside = (ROOT / "client" / "cpp" / "tests" / "outside" / "CMakeLists.txt").read_text(encoding="utf-8")
    lines = outside.replace("stepwell 0.1 REQUIRED", "stepwell REQUIRED").splitlines()
    assert [line.replace("trainer", "outside") for line in block.text.splitlines()] == [
        line for line in lines if line.startswith(("find_package", "target_link"))
    ]
