"""A small network learns the standard library's docstrings in JAX, its optimizer on a Stepwell server.

Against training with optax alone this line differs, and the one below `init` is new:

    optimizer = optax.adamw(3e-3)

Start a server (`stepwell serve`), then this program; started again, it goes on where it ended.
"""

import argparse
import ast
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import stepwell.jax

WIDTH, LENGTH, BATCH = 32, 16, 64


def docstrings():
    """Those of the modules at the top of the standard library, as one array of bytes."""
    found = []
    for path in sorted(pathlib.Path(ast.__file__).parent.glob("[ac]*.py")):
        tree = ast.parse(path.read_bytes())
        definitions = (ast.Module, ast.ClassDef, ast.FunctionDef)
        found += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, definitions)]
    return np.frombuffer("\n\n".join(found).encode("ascii", "replace"), np.uint8)


def network():
    rng = np.random.default_rng(0)
    sizes = [LENGTH * WIDTH, 4 * WIDTH, 128]
    return {
        "embedding": jnp.asarray(rng.normal(size=(128, WIDTH)), jnp.float32),
        "layers": [
            {"w": jnp.asarray(rng.normal(size=shape) / shape[0] ** 0.5, jnp.float32), "b": jnp.zeros(shape[1])}
            for shape in itertools.pairwise(sizes)
        ],
    }


def loss_of(params, tokens):
    """Each last byte predicted from those before it. tokens: integers (batch, LENGTH + 1)."""
    first, last = params["layers"]
    hidden = params["embedding"][tokens[:, :-1]].reshape(len(tokens), -1)
    logits = jax.nn.relu(hidden @ first["w"] + first["b"]) @ last["w"] + last["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, -1]).mean()


def train(address, run, steps):
    data, params, rng = docstrings(), network(), np.random.default_rng(1)
    optimizer = stepwell.jax.remote("adamw", lr=3e-3, address=address, run=run)
    state = optimizer.init(params)
    params = optimizer.pull()

    @jax.jit
    def step(params, state, tokens):
        loss, grads = jax.value_and_grad(loss_of)(params, tokens)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for number in range(1, steps + 1):
        begins = rng.integers(len(data) - LENGTH, size=(BATCH, 1))
        params, state, loss = step(params, state, data[begins + np.arange(LENGTH + 1)])
        losses.append(loss)
        if number % max(1, steps // 4) == 0:
            print(f"step {number}: loss {np.mean(losses):.4f}")
            losses.clear()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description="Train a small network in JAX with a remote optimizer.")
    options.add_argument("--address", default="127.0.0.1:50051")
    options.add_argument("--run", default="docstrings-jax")
    options.add_argument("--steps", type=int, default=300)
    given = options.parse_args()
    train(given.address, given.run, given.steps)
