"""Random texts, in a process that is watched from inside: nothing but errors of the domain, nothing evaluated."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest

from stepwell_server.core.errors import DomainError
from stepwell_server.core.settings import Moment, make_settings
from tests.core.compiler.text_fuzzer import EXAMPLE_SECONDS_MAX, tree
from tests.core.local import LocalRun

KERNELS = 12


def fuzz(seconds, tmp_path):
    seed = int.from_bytes(os.urandom(4), "little")
    present = tmp_path / "text"
    command = [sys.executable, "-m", "tests.core.compiler.text_fuzzer", str(seconds), str(seed), str(present)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=seconds + 2 * EXAMPLE_SECONDS_MAX + 60, check=False
    )
    text = present.read_text() if present.exists() else "(none)"
    assert result.returncode == 0, f"{result.stderr}\n{text:.20000}"
    tried, _, admitted = result.stdout.split()[:3]
    assert int(tried) > 0, result.stdout
    assert int(admitted) > 0, result.stdout


def test_random_texts_briefly(tmp_path):
    fuzz(3, tmp_path)


@pytest.mark.long
def test_random_texts_for_a_minute(tmp_path):
    fuzz(60, tmp_path)


@pytest.mark.parametrize(
    "evaluated", ["eval('1')", "open('/dev/null')", "__import__('colorsys')", "exec(compile('1', '<host>', 'exec'))"]
)
def test_the_watch_sees_what_is_evaluated(evaluated):
    source = f"""
from tests.core.compiler.text_fuzzer import Watch
watch = Watch()
watch.on = True
{evaluated}
watch.on = False
assert watch.faults
"""
    subprocess.run([sys.executable, "-c", source], check=True, timeout=60)


@pytest.mark.long
def test_kernels_of_random_texts_equal_their_references(device):
    """What the checks admit Numba can compile, and the kernel gives what the formula gives on arrays."""
    chance = random.Random(4)
    values = np.random.default_rng(4)
    done = 0
    while done < KERNELS:
        text = tree(chance)
        try:
            settings = make_settings("", None, {}, {}, Moment(0, 0.0, None), text=text)
        except DomainError:
            continue
        param, grad = values.normal(size=(2, 40))
        run = LocalRun({"w": param}, "", device=device, definition=text)
        given = {"loss": 0.5} if settings.definition.numbers else {}
        slots = [np.zeros(40) for _ in settings.slots]
        with np.errstate(all="ignore"):
            expected, *_ = settings.program.reference(
                param, grad, *slots, step=1, values=settings.at(Moment(0, 0.0, None)), given=given
            )
        after = run.step({"w": grad}, **given)["w"]
        np.testing.assert_allclose(after, np.broadcast_to(expected, 40), rtol=1e-8, atol=1e-8, err_msg=text)
        done += 1
