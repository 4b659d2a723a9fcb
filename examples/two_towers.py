"""A two-tower model on sparse data: embeddings of users and items in tables, a dense layer beside, one run.

    stepwell serve                       # in one terminal
    python examples/two_towers.py        # in another; as many of them at once as you like, each with --seed N

The data is made up, by a recipe that the reader can check: every user and item has a hidden vector of 4 normal numbers,
and a user clicks on an item with probability sigmoid(1.5 * <user, item> + 0.8 * <context, direction> - 1), where the
context is 3 further numbers. Users and items come by Zipf's law, as they do in the world: a few often, most hardly
ever; what is beyond the last one counts as the last one.
"""

import argparse

import numpy as np

import stepwell

USERS, ITEMS, HIDDEN, CONTEXT = 3_000, 1_000, 4, 3
WIDTH = 8


class Clicks:
    """Batches of (user, item, context, click). seed: of the draws; the world is the same for all."""

    def __init__(self, seed):
        world = np.random.default_rng(2024)
        self.user, self.item = (world.normal(size=(count, HIDDEN)) / HIDDEN**0.25 for count in (USERS, ITEMS))
        self.direction = world.normal(size=CONTEXT)
        self.random = np.random.default_rng(seed)

    def batch(self, size):
        users, items = (np.minimum(self.random.zipf(1.3, size) - 1, count - 1) for count in (USERS, ITEMS))
        context = self.random.normal(size=(size, CONTEXT)).astype(np.float32)
        chance = self.chance(users, items, context)
        return users, items, context, (self.random.random(size) < chance).astype(np.float32)

    def chance(self, users, items, context):
        score = 1.5 * np.sum(self.user[users] * self.item[items], axis=1) + 0.8 * context @ self.direction - 1
        return 1 / (1 + np.exp(-score))


def loss_of(chance, click):
    """The mean log loss, in nats."""
    chance = np.clip(chance, 1e-6, 1 - 1e-6)
    return float(-np.mean(click * np.log(chance) + (1 - click) * np.log(1 - chance)))


def predict(params, user, item, context):
    score = np.sum(user * item, axis=1) + context @ params["w"] + params["b"]
    return 1 / (1 + np.exp(-score))


def train(address, steps, size, seed):
    table = {"width": WIDTH, "optimizer": "adagrad", "hyperparameters": {"lr": 0.1}}
    start = {"name": "normal", "std": 0.1}
    clicks = Clicks(seed)
    with stepwell.connect(address) as client:
        run = client.create_run(
            "two-towers",
            {"w": np.zeros(CONTEXT, np.float32), "b": np.zeros(1, np.float32)},
            optimizer="adagrad",
            hyperparameters={"lr": 0.1},
            tables=[
                {"name": "user", "initializer": start, **table},
                # What nearly nobody looks at gets no row: it would cost memory and learn nothing.
                {"name": "item", "initializer": start, "admission": {"touches": 2}, **table},
            ],
        )
        params = run.pull()
        for step in range(1, steps + 1):
            users, items, context, click = clicks.batch(size)
            rows = run.pull_rows({"user": users, "item": items})
            chance = predict(params, rows["user"], rows["item"], context)
            error = (chance - click)[:, None] / size  # d loss / d score
            params = run.step(
                {"w": (error.T @ context)[0], "b": error.sum(axis=0)},
                rows={"user": (users, error * rows["item"]), "item": (items, error * rows["user"])},
                samples=size,
            )
            if step % max(1, steps // 10) == 0:
                test = Clicks(seed=1).batch(20_000)
                found = run.pull_rows({"user": test[0], "item": test[1]})
                model = loss_of(predict(params, found["user"], found["item"], test[2]), test[3])
                best = loss_of(clicks.chance(*test[:3]), test[3])
                base = loss_of(np.full(len(test[3]), test[3].mean()), test[3])
                tables = run.refresh().tables
                counts = ", ".join(f"{name}: {each.rows} rows" for name, each in tables.items())
                print(f"step {step}: log loss {model:.3f} (the best is {best:.3f}, the mean's {base:.3f}); {counts}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("--address", default="127.0.0.1:50051")
    options.add_argument("--steps", type=int, default=1000)
    options.add_argument("--batch", type=int, default=512)
    options.add_argument("--seed", type=int, default=0)
    given = options.parse_args()
    train(given.address, given.steps, given.batch, given.seed)
