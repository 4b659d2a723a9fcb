"""Writes docs/parity.md: `make parity`, or `python tests/references/parity.py --help`."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import io
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

if __name__ == "__main__":
    # Started as a file, Python looks for modules beside it; they are imported as tests.references.<module>.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.references.parity_page import COLUMNS, Measurement, write_table
from tests.references.versions import versions

PREAMBLE = """\
# Parity

A name means what a named reference computes. Here every optimizer, schedule, transform and wrapper is compared with its
reference, by the implementation that the server runs: the compiled kernel, through a whole run. The page is written by

    make parity    # or, for other random numbers: make parity PARITY="--seed 7"

which fails if a line is out of tolerance, and then shows that line's number in **bold**. It takes a quarter of an hour
on two cores, most of it spent on compiling kernels, which are kept. The reference tests (`make test-references`)
compare the same rows, and gradients that are missing now and then besides.

## How it is measured

- A row draws hyperparameters, parameters, gradients and a learning rate that varies from step to step from a **random
  seed**, and both sides run it for 100 steps. The gradients of each tensor have one of five profiles: large, small,
  decaying, mostly zero, alternating. Rules that estimate the distance to the solution get gradients that have one.
- After **every** step every element of every parameter is compared. **error / tolerance** is the largest
  |x - y| / (atol + rtol |y|), x ours and y the reference's: 0 is equal to the last bit, 1.0 is at the tolerance. The
  **tolerance** is given as rtol, atol; where some variants have another one, they are named.
- A line is the worst of its **variants**: one that draws everything, others that fix a flag each, one of defaults
  alone. The first is run with three **seeds**, each other with one; they are the command's seed plus a number made of
  the name. **tried** says between which values each argument was.
- "Written out" means that no framework has it: a loop in plain NumPy (`tests/textbook`), written from the paper or
  the lecture notes, and not from the implementation. "What torch lacks" are arguments that the flavor takes from
  the definition, and the framework does not have.
- float32 gets the float64 numbers, rounded. float16 and bfloat16 parameters are trained as float32 ones, to the bit
  (`tests/core/test_wrappers.py` says so), so that the lines of float32 are theirs.
"""

EXCEPTIONS = """\
The usual tolerance is 1e-11, 1e-13 in float64 and 2e-5, 1e-6 in float32. Wider ones, and why:

- Centered variances (`rmsprop`, `acprop`, `adabelief`) subtract two near numbers, and lose in float32 what they share.
- Rules that estimate a distance or a wealth (`prodigy`, `dadapt_adamw`, `dog`, `ldog`, `dowg`, `cocob`) feed their
  round-off back, and so does `lbfgs`, which divides by inner products of small differences.
- The defaults of `prodigy` in `prodigyopt` begin with steps of 1e-6. On parameters of 1, float32 keeps one digit of
  them, the estimate is made of that digit, and the package's own float32 run ends 1 or 2 away from its float64 run. The
  two implementations agree all the same, but only because they round alike; so that row starts from parameters of 0,
  where all digits are kept and the comparison says something.
- Keras forms 1 - beta^t in float32, and means and norms always; optax the root, or a power, of the step's number
  (`adafactor`, `madgrad`).
- torch's `muon` orthogonalises in bfloat16, where the order of a sum decides an element's last digit: 3e-4 is 0.03 of
  the learning rate. Keras's runs five steps of a polynomial in float32.
- Where steps add up to several units, so does their round-off (`rmsprop`, `momo`, `polyak_sgd`, `simplified_ademamix`,
  `adadelta_ratio`): 5e-6.
"""


def main() -> None:
    arguments = parse_arguments()
    began = time.monotonic()
    measurements = run_jobs(arguments)
    took = time.monotonic() - began
    Path(arguments.output).write_text(write_page(measurements, arguments, took))
    outside = [one for one in measurements if not one.error <= 1]
    print(f"{arguments.output}: {len(measurements)} runs in {took:.0f} s, {len(outside)} out of tolerance")
    for one in outside:
        words = (one.name, one.flavor, one.variant, one.dtype, one.reference, f"seed {one.seed}")
        print(f"  {one.error:.3g} of the tolerance: {' '.join(filter(None, words))}")
    sys.exit(1 if outside else 0)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare everything with its reference and write the page of parity.")
    parser.add_argument("--output", default="docs/parity.md", help="the page to write")
    parser.add_argument(
        "--date", default=dt.datetime.now(dt.UTC).date().isoformat(), help="the date to print; today (UTC) if not given"
    )
    parser.add_argument("--seed", type=int, default=0, help="the first random seed")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="how many at once")
    parser.add_argument("--only", default="", help="an optimizer's, transform's or wrapper's name, to try one")
    parser.add_argument(
        "--device",
        action="append",
        help="cpu, or cuda[:N] with CuPy and a GPU; more than one if given more than once; cpu if not given",
    )
    arguments = parser.parse_args()
    arguments.device = arguments.device or ["cpu"]
    return arguments


def run_jobs(arguments: argparse.Namespace) -> list[Measurement]:
    from tests.references.parity_rows import jobs

    # JAX's threads do not survive a fork.
    pool = ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn"), initializer=_quiet)
    with pool:
        futures = {
            pool.submit(_measure, job, arguments.seed, device): (*job, device)
            for device in arguments.device
            for job in dict.fromkeys(jobs())
            if not arguments.only or arguments.only == job[1]
            # A schedule is a number of the host's, whatever the device.
            if job[0] != "schedules" or device == arguments.device[0]
        }
        measurements: list[Measurement] = []
        for done, future in enumerate(as_completed(futures), 1):
            found = future.result()
            measurements += found
            worst = max((one.error for one in found), default=0.0)
            print(f"{done}/{len(futures)} {' '.join(futures[future])}: {worst:.2g}", flush=True)
    return measurements


def _quiet() -> None:
    """One process for each core: none of them should make threads of its own."""
    os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def _measure(job: tuple[str, str, str], seed: int, device: str) -> list[Measurement]:
    from stepwell_server.storage.kernel_cache import private_directory
    from tests.references.implementation import use
    from tests.references.parity_rows import measure

    # Where the server keeps its kernels, too: the second time there is nothing to compile.
    use(device, private_directory(None))
    # prodigyopt prints that its weight decay is decoupled.
    with contextlib.redirect_stdout(io.StringIO()):
        return measure(job, seed, device)


def write_page(measurements: list[Measurement], arguments: argparse.Namespace, took: float) -> str:
    outside = sum(not one.error <= 1 for one in measurements)
    verdict = f"**{outside} of them out of tolerance**" if outside else "all of them within tolerance"
    installed = ", ".join(f"{package} {number}" for package, number in versions().items())
    made = (
        f"Made on {arguments.date} from random seed {arguments.seed}, on {os.cpu_count()} processor cores "
        f"({platform.machine()}, {platform.system()}), in {max(1, round(took / 60))} minutes: "
        f"{len(measurements):,} runs, {verdict}.\n"
        f"Versions: {installed}."
    )
    parts = [PREAMBLE, made, "", EXCEPTIONS]
    for table in COLUMNS:
        lines = write_table(table, [one for one in measurements if one.table == table])
        parts += [f"## {table.capitalize()}", "", *WORDS.get(table, []), *lines, ""]
    return "\n".join(parts)


WORDS = {
    "schedules": [
        "1,000 steps in float64; a schedule is evaluated on the host, whatever the device. The atol is a share of the",
        "initial value. Some of Keras's numbers stay in float32.",
        "",
    ],
    "transforms": [
        "What the optimizer gets to see is compared. `add_noise` has no line: its numbers are its own, and a test",
        "holds them to their variance, and to being repeated by a restart.",
        "",
    ],
    "wrappers": [
        "Both points are compared: the parameters, and the average or slow weights that `pull(of=...)` serves.",
        "",
    ],
}


if __name__ == "__main__":
    main()
