"""The commands of docs/protocol.md, executed in their order against a new server: they print what the page says.

The page's rules: a block of `sh` without a block of `json` after it sets things up for all that follow. `"..."` matches
anything, and `"...": "..."` any further fields. The uid that a server draws stands on the page as PAGE_UID; what the
server drew takes its place in the commands that follow. The server's release is whatever is installed.
"""

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stepwell_server import __version__
from tests.end_to_end.server import Server
from tests.kernels import kept_kernels

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
BUF = ROOT / "node_modules" / ".bin" / "buf"
PAGE_UID = "AAECAwQFBgcICQoLDA0ODw=="
BLOCKS = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
SECONDS_MAX = 60.0

pytestmark = pytest.mark.skipif(not BUF.exists(), reason="needs npm's buf: make node_modules/.installed")


def test_the_commands_print_what_the_page_says():
    setup, compared, uid = "", 0, PAGE_UID
    with Server(kept_kernels(), "--reflection") as server:
        for script, printed in scripts():
            script = script.replace("127.0.0.1:50051", server.address)
            if printed is None:
                setup += script
                continue
            done = run((setup + script).replace(PAGE_UID, uid))
            got, expected = documents(done.stdout or done.stderr), documents(printed)
            assert len(got) == len(expected), f"{script}\nprinted\n{done.stdout}{done.stderr}"
            for one, other in zip(got, expected, strict=True):
                if uid == PAGE_UID:
                    uid = one.get("run", {}).get("uid", uid)
                assert matches(one, other, uid), f"{script}\nprinted\n{json.dumps(one, indent=2)}\nexpected\n{other}"
                compared += 1
            refused = "code" in expected[-1]
            assert done.returncode == (40 if refused else 0), done.stderr
    assert uid != PAGE_UID
    assert compared > 10


def test_a_wrong_expectation_does_not_match():
    printed = {"run": {"uid": "eA==", "version": "1"}, "ranges": [{"data": "AAAA"}]}
    assert matches(printed, {"run": {"uid": PAGE_UID, "version": "1"}, "ranges": [{"data": "AAAA"}]}, "eA==")
    assert matches(printed, {"run": "...", "...": "..."}, "eA==")
    assert not matches(printed, {"run": "..."}, "eA==")
    assert not matches(printed, {"run": {"uid": PAGE_UID, "version": "1"}, "ranges": []}, "eA==")
    assert not matches(printed, {"run": {"uid": PAGE_UID, "version": "1"}, "ranges": [{"data": "AAAA"}]}, "eQ==")
    assert not matches(printed, {"ranges": [{"data": "AAAB"}], "...": "..."}, "eA==")


def scripts() -> Iterator[tuple[str, str | None]]:
    """Each block of commands, and what they print, None for a block that sets up."""
    for number, (language, text) in enumerate(BLOCKS):
        if language == "sh":
            following = BLOCKS[number + 1] if number + 1 < len(BLOCKS) else ("", "")
            yield text, following[1] if following[0] == "json" else None


def run(script: str) -> subprocess.CompletedProcess[str]:
    path = f"{BUF.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-ec", script],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        timeout=SECONDS_MAX,
    )


def documents(text: str) -> list[Any]:
    """JSON values one after another."""
    found, at, decoder = [], 0, json.JSONDecoder()
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found


def matches(got: Any, expected: Any, uid: str, key: str = "") -> bool:
    if expected == "...":
        return True
    if isinstance(expected, dict):
        names = expected.keys() - {"..."}
        return (
            isinstance(got, dict)
            and (names <= got.keys() if "..." in expected else names == got.keys())
            and all(matches(got[name], expected[name], uid, name) for name in names)
        )
    if isinstance(expected, list):
        return (
            isinstance(got, list)
            and len(got) == len(expected)
            and all(matches(one, other, uid) for one, other in zip(got, expected, strict=True))
        )
    if expected == PAGE_UID:
        expected = uid
    elif key == "version" and "." in expected:
        expected = __version__
    return bool(got == expected)
