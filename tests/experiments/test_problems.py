import numpy as np
import pytest

from stepwell_server.core.errors import InvalidSpec
from stepwell_server.experiments.problems import BURST, DENSITY, LABEL_NOISE, PERIOD, PROBLEMS, STEPS_MAX, make_problem

STEPS = 400
RANDOM = [name for name in PROBLEMS if make_problem(name, 1).random]


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return make_problem(request.param, STEPS, seed=3)


def test_gradients_are_those_of_the_step_losses(problem):
    rng = np.random.default_rng(0)
    for t in (0, 1, 7, STEPS - 1):
        point = problem.start + rng.normal(size=problem.start.shape)
        found = problem.gradient(point, t)
        expected = differences(lambda at, t=t: problem.step_loss(at, t), point)
        # Central differences err by h² f'''/6 (Rosenbrock: 2400 |x| h²/6, below 1e-6 here) and by round-off over h.
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("name", RANDOM)
def test_what_steps_see_is_right_on_average(name):
    steps = 20_000
    problem = make_problem(name, steps, seed=1)
    point = problem.start + 0.5
    seen = np.array([problem.gradient(point, t) for t in range(steps)])
    error = seen.std(axis=0) / np.sqrt(steps)
    assert np.all(np.abs(seen.mean(axis=0) - differences(problem.loss, point)) < 5 * error)


def test_the_minimum_is_lowest_and_the_loss_is_zero_there(problem):
    if problem.minimum is None:
        assert problem.loss(problem.start - 1) < problem.loss(problem.start)
        return
    assert problem.loss(problem.minimum) == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(differences(problem.loss, problem.minimum), 0, atol=1e-6)
    rng = np.random.default_rng(0)
    for _ in range(20):
        assert problem.loss(problem.minimum + rng.normal(size=problem.start.shape)) > 0


def test_groups_name_every_component_once(problem):
    components = sorted(place for group in problem.groups.values() for place in group)
    assert components == list(range(len(problem.start)))
    assert len(problem.groups) == 2


def test_data_comes_from_the_seed(problem):
    same, other = (make_problem(problem.name, STEPS, seed) for seed in (3, 4))
    point = problem.start + 0.3
    assert np.array_equal(problem.gradient(point, 5), same.gradient(point, 5))
    assert np.array_equal(problem.gradient(point, 5), other.gradient(point, 5)) == (not problem.random)


def test_sparse_features_are_sparse_and_labels_noisy():
    problem = make_problem("sparse_dense", 5000)
    assert problem.minimum is not None
    at_minimum = np.array([problem.gradient(problem.minimum, t) for t in range(5000)])
    dense, sparse = (at_minimum[:, list(group)] for group in problem.groups.values())
    assert np.all(dense != 0)
    # A gradient is zero where none of the 8 samples has the feature.
    assert np.mean(sparse == 0) == pytest.approx((1 - DENSITY) ** 8, abs=0.03)
    assert np.mean(dense**2) == pytest.approx(LABEL_NOISE**2 / 8, rel=0.1)
    assert np.mean(sparse**2) == pytest.approx(DENSITY * LABEL_NOISE**2 / 8, rel=0.2)


def test_given_gradients():
    alternating, zeros = (make_problem(name, 2 * PERIOD) for name in ("alternating", "zeros"))
    point = np.zeros(2)
    signs = np.array([alternating.gradient(point, t) for t in range(4)])
    assert signs.tolist() == [[1, 1], [1, -1], [1, 1], [1, -1]]
    present = np.array([zeros.gradient(point, t) for t in range(2 * PERIOD)])
    assert np.all(present[:, 0] == 1)
    assert np.flatnonzero(present[:, 1]).tolist() == [*range(BURST), *range(PERIOD, PERIOD + BURST)]


@pytest.mark.parametrize(
    ("name", "steps", "says"),
    [("ravin", 5, "did you mean 'ravine'"), ("ravine", 0, "expected 1 to"), ("ravine", STEPS_MAX + 1, "expected 1 to")],
)
def test_refusals(name, steps, says):
    with pytest.raises(InvalidSpec, match=says):
        make_problem(name, steps)


def differences(function, point, h=1e-5):
    """Central differences."""
    steps = h * np.eye(len(point))
    return np.array([(function(point + step) - function(point - step)) / (2 * h) for step in steps])
