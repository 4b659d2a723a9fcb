"""Every part of a claim that docs/experiments.md records as holding, held against what theory says, not our output.

Theory in short, with lr = η, a gradient of size 1 unless said, and λ a curvature:

- AdaGrad's rate is η/√Σg². At a noise floor E g² is proportional to the density ρ of a feature, so rates go with 1/√ρ
  and with 1/√t. SGD's error decays like (1 − ηρ)^t: 1/ρ times slower for a sparse feature.
- RMSprop near a minimum has √v = |g|, so steps of η: from η/2 to −η/2 and back. The loss there is Σ λ(η/2)²/2.
- AdaDelta's first step is √ε/√((1−ρ)g² + ε) |g|, √(ε/(1−ρ)) up to ε.
- Adam without correction makes (1−β₁ᵗ)/√(1−β₂ᵗ) of a corrected step at a steady gradient.
- A mean of squares over bursts is the share of steps with a gradient; a maximum is the gradient.
- Momentum μ turns a steady step into 1/(1−μ), one of alternating sign into 1/(1+μ).
- On a quadratic momentum has x' = (1+μ−ηλ) x − μ x₋, and NAG x' = (1−ηλ)((1+μ) x − μ x₋): complex roots have the
  modulus √μ and √(μ(1−ηλ)).
- SGD with noise σ on λ = 1: the mean square goes s ← (1−η)² s + η²σ², which rests at ησ²/(2−η).
"""

import math
import re
from pathlib import Path

import numpy as np
import pytest

from stepwell_server.experiments.claims import CLAIMS, verdict
from stepwell_server.experiments.claims.adam import uncorrected
from stepwell_server.experiments.claims.momentum import contraction
from stepwell_server.experiments.claims.rates import expected_losses
from stepwell_server.experiments.page import make_page, write_page
from stepwell_server.experiments.problems import BURST, CURVATURES, DENSITY, PERIOD
from stepwell_server.experiments.runner import Comparison

PAGE = Path(__file__).parents[2] / "docs" / "experiments.md"


def within(expected, share):
    return lambda measured: abs(measured - expected) <= share * abs(expected)


HOLDS = {
    # Sums of squares over 4,000 steps are right to a few percent; the larger gradients of the way there count, too.
    ("adagrad", "proportion"): within(1 / math.sqrt(DENSITY), 0.25),
    ("adagrad", "lag"): lambda measured: 1 <= measured <= 0.5 / DENSITY,
    ("adagrad", "collapse"): within(math.sqrt(1 / 4), 0.2),
    ("rmsprop", "kept"): lambda measured: abs(measured) < 0.1,  # an exponent, -1/2 for AdaGrad
    ("rmsprop", "oscillation"): within(0.5, 0.05),
    ("rmsprop", "too_large"): within(10**2, 0.1),
    ("rmsprop", "too_small"): lambda measured: measured > out_of_reach(1e-4, 1000),
    ("adadelta", "descends"): lambda measured: measured < 0.05,
    ("adadelta", "first_step"): within(math.sqrt(1e-6 / (1 - 0.9)), 0.01),
    ("bias_correction", "corrected"): within(1, 1e-3),
    ("bias_correction", "first"): within((1 - 0.9) / math.sqrt(1 - 0.999), 1e-3),
    ("bias_correction", "peak"): within(max((1 - 0.9**t) / math.sqrt(1 - 0.999**t) for t in range(1, 3000)), 1e-3),
    ("bias_correction", "late"): within((1 - 0.9**3000) / math.sqrt(1 - 0.999**3000), 1e-3),
    ("max_norm", "max_returns"): within(1, 1e-3),
    ("max_norm", "vector_returns"): within(1, 1e-3),
    # The mean of squares is lowest at the return: below its average by half a silence, β₂^95, a twentieth in the root.
    ("max_norm", "root_returns"): within(math.sqrt(PERIOD / BURST), 0.1),
    ("max_norm", "sum_returns"): within(1 / math.sqrt(19 * BURST + 1), 0.01),
    ("max_norm", "vector_silence"): within(1, 0.01),
    # Old scaled gradients in the sum are those of a smaller sum of squares: 10 steps of 1,000, a percent.
    ("adagrad_momentum", "steady"): within(1 / (1 - 0.9), 0.05),
    ("adagrad_momentum", "alternating"): within(1 / (1 + 0.9), 0.05),
    ("nag", "across"): within(math.sqrt(0.9 * (1 - 0.01 * CURVATURES[1])), 0.01),
    ("nag", "along"): within(math.sqrt(0.9 * (1 - 0.01 * CURVATURES[0])), 0.01),
    # Momentum's envelope falls by 0.9 per step, from 33 to its millionth; NAG's is lower in both directions.
    ("nag", "sooner"): lambda measured: measured < math.log(1e-6) / math.log(0.9),
    # 16 seeds of 500 steps with a memory of 1/η = 5 steps: an error of some percent.
    ("schedules", "floor"): within(0.2 / (2 - 0.2), 0.2),
    # Half a χ² with 2 degrees of freedom has the error 1; its mean over 16 seeds 1/4. Twice that, and twice, for both.
    ("schedules", "cosine"): lambda measured: measured < 2 * expected_losses(cosine(1000))[-1] < 0.02 / (2 - 0.02),
    ("schedules", "anytime"): lambda measured: measured < 0.5,
}
"""By claim and part: whether a measured number is what theory says."""


@pytest.fixture(scope="module")
def found():
    return {claim.name: claim.measure(claim.comparison.run()) for claim in CLAIMS}


@pytest.fixture(scope="module")
def measured(found):
    return {(name, finding.key): finding for name, findings in found.items() for finding in findings}


@pytest.mark.parametrize(("claim", "part"), HOLDS)
def test_what_holds_is_what_theory_says(measured, claim, part):
    finding = measured[claim, part]
    assert HOLDS[claim, part](finding.measured), finding
    assert finding.held


def test_nothing_else_is_recorded_as_holding(measured):
    assert {key for key, finding in measured.items() if finding.held} == HOLDS.keys()


def test_the_page_is_what_the_measurements_say(found):
    """Its prose to the letter; its numbers up to what another machine's last bits make of them."""
    expected, committed = make_page(found), PAGE.read_text(encoding="utf-8")
    number = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?![\w.])")
    assert number.sub("#", committed) == number.sub("#", expected), "run `make experiments` and commit the result"
    pairs = zip(number.findall(committed), number.findall(expected), strict=True)
    for old, new in pairs:
        assert float(old.replace(",", "")) == pytest.approx(float(new.replace(",", "")), rel=0.1, abs=0.02)


def test_verdicts_are_those_of_the_parts(found):
    page = PAGE.read_text(encoding="utf-8")
    for claim in CLAIMS:
        held = [finding.held for finding in found[claim.name]]
        expected = "held" if all(held) else "held in part" if any(held) else "did not hold"
        assert verdict(found[claim.name]) == expected
        section = page[page.index(f"## {claim.title}") :]
        assert section.index(f"**{expected.capitalize()}.**") < section.index("| part of it |")


def test_the_closed_forms_against_plain_loops():
    """What the table above takes from the package, computed once more by hand."""
    mean = square = 0.0
    for step in range(1, 40):
        mean, square = 0.9 * mean + 0.1, 0.999 * square + 0.001
        assert uncorrected(step) == pytest.approx(mean / math.sqrt(square), rel=1e-9)
    rng = np.random.default_rng(0)
    points = np.tile([4.0, 2.0], (20_000, 1))
    for rate in cosine(50):
        points -= rate * (points + rng.normal(size=points.shape))
    assert expected_losses(cosine(50))[-1] == pytest.approx((points**2).sum(axis=1).mean() / 2, rel=0.05)
    # x_{t+1} = 1.5 x_t - 0.81 x_{t-1}: complex roots of modulus 0.9.
    values = [1.0, 0.3]
    while len(values) < 60:
        values.append(1.5 * values[-1] - 0.81 * values[-2])
    assert contraction(np.array(values)) == pytest.approx(0.9, rel=1e-9)


def test_nag_has_the_smaller_range_of_rates():
    """What the page says did not hold, from the roots: NAG is stable for ηλ < 2(1+μ)/(1+2μ), momentum for 2(1+μ)."""
    limit = 2 * 1.9 / 2.8 / CURVATURES[1]
    for share, grows in ((0.97, False), (1.03, True)):
        told = Comparison(("nag",), steps=2000, assignments=(f"lr={share * limit}",))
        (trace,) = told.run().values()
        assert (trace.diverged is not None or trace.losses[-1] > trace.losses[0]) == grows
    (trace,) = Comparison(("sgd",), steps=2000, assignments=(f"lr={1.03 * limit}", "momentum=0.9")).run().values()
    assert trace.losses[-1] < 1e-6


def test_the_page_goes_where_it_is_told(tmp_path, monkeypatch):
    short = [claim for claim in CLAIMS if claim.name == "nag"]
    monkeypatch.setattr("stepwell_server.experiments.page.CLAIMS", short)
    monkeypatch.setattr("stepwell_server.experiments.page.make_page", lambda found: f"{sorted(found)}")
    write_page(tmp_path / "deep" / "page.md")
    assert (tmp_path / "deep" / "page.md").read_text(encoding="utf-8") == "['nag']"
    assert (tmp_path / "deep" / "pictures" / "nag.png").read_bytes().startswith(b"\x89PNG")


def out_of_reach(lr, steps):
    """The loss at the point nearest to the minimum that so many steps of at most η/√(1−α) can reach."""
    reach = steps * lr / math.sqrt(1 - 0.9)
    return sum(curve * max(0.0, start - reach) ** 2 / 2 for curve, start in zip(CURVATURES, (4.0, 1.0), strict=True))


def cosine(steps):
    return [0.2 * (1 + math.cos(math.pi * t / steps)) / 2 for t in range(steps)]
