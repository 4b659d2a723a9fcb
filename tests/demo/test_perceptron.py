import math

import numpy as np
import pytest

from stepwell_server.demo import perceptron
from stepwell_server.demo.data import CLASSES, PIXELS, Images


@pytest.fixture
def batch():
    rng = np.random.default_rng(1)
    return Images(rng.random((7, PIXELS), dtype=np.float32), rng.integers(CLASSES, size=7))


@pytest.fixture
def parameters():
    """In float64, so that differences of losses have digits; with biases that are not zero."""
    rng = np.random.default_rng(2)
    drawn = perceptron.init(3, hidden_units=5)
    return {name: value + 0.1 * rng.standard_normal(value.shape) for name, value in drawn.items()}


@pytest.mark.parametrize("name", perceptron.init(0))
def test_gradient_is_the_slope_of_the_loss(parameters, batch, name):
    _, gradients = perceptron.loss_and_gradients(parameters, batch)
    h = 1e-6
    slopes = np.empty(parameters[name].shape)
    for position in np.ndindex(slopes.shape):
        losses = []
        for sign in (1, -1):
            moved = {**parameters, name: parameters[name].copy()}
            moved[name][position] += sign * h
            losses.append(perceptron.loss_and_gradients(moved, batch)[0])
        slopes[position] = (losses[0] - losses[1]) / (2 * h)
    np.testing.assert_allclose(gradients[name], slopes, rtol=1e-5, atol=1e-8)


def one_at_a_time(parameters, batch):
    """Loss and gradients as a textbook has them: image by image, unit by unit, in Python's floats."""
    w1, b1 = parameters["hidden.weight"].tolist(), parameters["hidden.bias"].tolist()
    w2, b2 = parameters["output.weight"].tolist(), parameters["output.bias"].tolist()
    units, classes, count = range(len(b1)), range(len(b2)), len(batch)
    loss = 0.0
    gradients = {name: np.zeros(value.shape) for name, value in parameters.items()}
    for image, label in zip(batch.pixels.tolist(), batch.labels.tolist(), strict=True):
        hidden = [max(0.0, b1[j] + sum(image[i] * w1[i][j] for i in range(PIXELS))) for j in units]
        scores = [math.exp(b2[k] + sum(hidden[j] * w2[j][k] for j in units)) for k in classes]
        probabilities = [score / sum(scores) for score in scores]
        loss -= math.log(probabilities[label]) / count
        error = [(probabilities[k] - (k == label)) / count for k in classes]
        for k in classes:
            gradients["output.bias"][k] += error[k]
        for j in units:
            for k in classes:
                gradients["output.weight"][j, k] += hidden[j] * error[k]
            if hidden[j] > 0:
                back = sum(w2[j][k] * error[k] for k in classes)
                gradients["hidden.bias"][j] += back
                for i in range(PIXELS):
                    gradients["hidden.weight"][i, j] += image[i] * back
    return loss, gradients


def test_matches_a_loop_over_images_and_units(parameters, batch):
    loss, gradients = perceptron.loss_and_gradients(parameters, batch)
    expected_loss, expected = one_at_a_time(parameters, batch)
    assert loss == pytest.approx(expected_loss, rel=1e-12)
    for name in parameters:
        np.testing.assert_allclose(gradients[name], expected[name], rtol=1e-10, atol=1e-15)


def test_gradients_have_the_shape_and_dtype_of_the_parameters(batch):
    parameters = perceptron.init(0)
    _, gradients = perceptron.loss_and_gradients(parameters, batch)
    for name, value in parameters.items():
        assert gradients[name].shape == value.shape
        assert gradients[name].dtype == value.dtype == np.float32


def test_large_scores_do_not_overflow(batch):
    parameters = {name: 1e4 * value for name, value in perceptron.init(0).items()}
    loss, gradients = perceptron.loss_and_gradients(parameters, batch)
    assert math.isfinite(loss)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_accuracy_counts_the_images_that_are_right():
    # One hidden unit per class passes the first ten pixels through.
    parameters = {
        "hidden.weight": np.eye(PIXELS, CLASSES),
        "hidden.bias": np.zeros(CLASSES),
        "output.weight": np.eye(CLASSES),
        "output.bias": np.zeros(CLASSES),
    }
    pixels = np.eye(4, PIXELS, dtype=np.float32)
    assert perceptron.accuracy(parameters, Images(pixels, np.array([0, 1, 2, 9]))) == 0.75
