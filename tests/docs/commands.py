"""What a shell command in the documentation must be to be true: a check for each program, and none escapes."""

import json
import os
import re
import shlex
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Final

import typer
from typer.testing import CliRunner

from stepwell_server.benchmarks import commands as benchmarks
from stepwell_server.capacity import commands as capacity
from stepwell_server.commands import app
from stepwell_server.experiments import commands as experiments
from tests.docs.pages import ROOT

TYPESCRIPT: Final = ROOT / "client" / "typescript"


def commands_in(text: str) -> Iterator[list[str]]:
    """The commands of a block as words; comments go, continued lines are joined, `&&` separates."""
    for line in text.replace("\\\n", " ").splitlines():
        command: list[str] = []
        for word in shlex.split(line, comments=True):
            if word == "&&":
                yield command
                command = []
            else:
                command.append(word)
        if command:
            yield command


def check(command: list[str]) -> None:
    """Fails with AssertionError where the command could not be carried out as it stands."""
    program, *words = command
    assert program in CHECKS, f"no check for {program!r}; write one, or mark the block as text"
    CHECKS[program](words)


def check_stepwell(words: list[str]) -> None:
    """Every command and option is there, and each option has its value."""
    said = CliRunner().invoke(whole_app(), [*words, "--help"])
    assert said.exit_code == 0, said.output


@cache
def whole_app() -> typer.Typer:
    """As stepwell_server.cli puts it together, but for the one that the process may use elsewhere."""
    whole = typer.Typer()
    whole.registered_commands += app.registered_commands
    for more in (experiments, benchmarks, capacity):
        more.add_commands(whole)
    return whole


def check_make(words: list[str]) -> None:
    """The target is there, it takes the variables, and what it hands to `stepwell` is right."""
    variables = {name for name, equals, _ in (word.partition("=") for word in words) if equals}
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in (word for word in words if "=" not in word):
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), target
    assert all(f"$({name})" in makefile for name in variables), variables
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "-n", *words], check=False, capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    for command in re.findall(r"^\.venv/bin/stepwell (.*)$", done.stdout, re.MULTILINE):
        check_stepwell(shlex.split(command))


def check_pip(words: list[str]) -> None:
    """It installs this project, with extras that it has."""
    install, *packages = words
    assert install == "install"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for package in packages:
        match = re.fullmatch(r"\.(?:\[([a-z0-9,]+)\])?", package)
        assert match, f"{package} is not this project in this folder"
        assert set((match[1] or "").split(",")) - {""} <= set(project["optional-dependencies"])


def check_npm(words: list[str]) -> None:
    """The scripts and the package are those of client/typescript."""
    package = json.loads((TYPESCRIPT / "package.json").read_text(encoding="utf-8"))
    match words:
        case ["ci"]:
            assert (TYPESCRIPT / "package-lock.json").is_file()
        case ["ci", "--prefix", folder]:
            assert (ROOT / folder / "package-lock.json").is_file()
        case ["pack", folder]:
            assert (ROOT / folder).resolve() == TYPESCRIPT
        case ["install", packed]:
            assert packed == f"./{package['name']}-{package['version']}.tgz"
        case ["test"] | ["run", _]:
            assert words[-1] in package["scripts"]
        case _:
            raise AssertionError(f"no check for npm {words}")


def check_apt(words: list[str]) -> None:
    """It installs what CI installs."""
    install, *packages = words
    assert install == "install"
    known = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(re.search(rf"(?<![\w+-]){re.escape(package)}(?![\w+-])", known) for package in packages), packages


def check_cmake(words: list[str]) -> None:
    """Its sources are there, and its options are theirs."""
    if "-S" in words:
        lists = (ROOT / words[words.index("-S") + 1] / "CMakeLists.txt").read_text(encoding="utf-8")
        options = [word[2:].partition("=")[0] for word in words if word.startswith("-D")]
        assert all(f"option({name} " in lists for name in options), options
    else:
        assert words[0] in ("--build", "--install"), words


def check_docker(words: list[str]) -> None:
    """There is something to compose; `make check` holds it against the schema."""
    assert words == ["compose", "up", "--build"]
    assert (ROOT / "docker-compose.yml").is_file()


def check_python(words: list[str]) -> None:
    """The program is there; tests/end_to_end and tests/references run it."""
    assert (ROOT / words[0]).is_file(), words[0]


CHECKS: Final[dict[str, Callable[[list[str]], None]]] = {
    "apt-get": check_apt,
    "cmake": check_cmake,
    "docker": check_docker,
    "make": check_make,
    "npm": check_npm,
    "pip": check_pip,
    "python": check_python,
    "stepwell": check_stepwell,
}
