"""A multi-layer perceptron in plain NumPy: one hidden layer of rectified units, softmax, cross-entropy."""

from collections.abc import Mapping
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from stepwell_server.demo.data import CLASSES, PIXELS, Images

Array: TypeAlias = npt.NDArray[np.floating]
Parameters: TypeAlias = dict[str, Array]
"""hidden.weight (64, hidden), hidden.bias (hidden,), output.weight (hidden, 10), output.bias (10,)."""

HIDDEN_UNITS: Final = 128


def limit_threads() -> None:
    """Have this process compute on one thread. The matrices are small: more threads, in several processes that share
    the cores, wait for one another: two workers on two cores made a tenth of the steps per second.
    """
    threadpool_limits(1)


def init(seed: int, hidden_units: int = HIDDEN_UNITS) -> Parameters:
    """Draw float32 weights as He et al. 2015, https://arxiv.org/abs/1502.01852, eq. 10; biases are 0."""
    rng = np.random.default_rng(seed)

    def weight(inputs: int, outputs: int) -> npt.NDArray[np.float32]:
        return rng.normal(0.0, np.sqrt(2 / inputs), (inputs, outputs)).astype(np.float32)

    return {
        "hidden.weight": weight(PIXELS, hidden_units),
        "hidden.bias": np.zeros(hidden_units, np.float32),
        "output.weight": weight(hidden_units, CLASSES),
        "output.bias": np.zeros(CLASSES, np.float32),
    }


def loss_and_gradients(parameters: Mapping[str, Array], batch: Images) -> tuple[float, Parameters]:
    """The mean cross-entropy over the batch in nats, and its gradient in the shape and dtype of each parameter."""
    rows = np.arange(len(batch))
    hidden, logits = _forward(parameters, batch)
    logits -= logits.max(axis=1, keepdims=True)  # softmax does not change, and exp cannot overflow
    log_probabilities = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -log_probabilities[rows, batch.labels].mean()

    # Back from the loss: d loss / d logits = (softmax - one_hot) / count.
    error = np.exp(log_probabilities)
    error[rows, batch.labels] -= 1
    error /= len(batch)
    hidden_error = (error @ parameters["output.weight"].T) * (hidden > 0)
    return float(loss), {
        "hidden.weight": batch.pixels.T @ hidden_error,
        "hidden.bias": hidden_error.sum(axis=0),
        "output.weight": hidden.T @ error,
        "output.bias": error.sum(axis=0),
    }


def accuracy(parameters: Mapping[str, Array], images: Images) -> float:
    """The share of images whose most probable class is the right one."""
    _, logits = _forward(parameters, images)
    return float((logits.argmax(axis=1) == images.labels).mean())


def _forward(parameters: Mapping[str, Array], images: Images) -> tuple[Array, Array]:
    hidden = np.maximum(images.pixels @ parameters["hidden.weight"] + parameters["hidden.bias"], 0)
    return hidden, hidden @ parameters["output.weight"] + parameters["output.bias"]
