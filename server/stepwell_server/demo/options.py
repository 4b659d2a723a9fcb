"""What the demo and its workers can be told. Imports nothing heavy, so that `--help` is quick."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What all workers of a run agree on: the server refuses one whose run would differ.

    optimizer, flavor: as in the catalogue; without a flavor the optimizer's own first one.
    lr: the learning rate; by default one that suits the optimizer, see recipe.LEARNING_RATES.
    schedule: the learning rate's, by a name of recipe.SCHEDULES. It spans all versions that the updates make.
    workers: how many there are. steps: how many updates each of them makes.
    policy: how updates become versions: async, bounded or sync. bound: for bounded, how many steps a worker may be
    ahead of the slowest.
    slow: so many times as long as it needs the last worker takes for each step. Unless that is 1, the workers share the
    updates: each makes as many as it comes to, and all end with the run.
    batch_size: images per update.
    seed: of the initial weights and the mini-batches. The test images are the same for all seeds.
    run: the run's name on the server.
    gradient_encoding, parameter_encoding: what these are made smaller with on their way: a name, or one with arguments,
    such as top_k:density=0.05.
    """

    optimizer: str = "adam"
    flavor: str | None = None
    lr: float | None = None
    schedule: str = "warmup_cosine"
    workers: int = 2
    steps: int = 800
    policy: str = "async"
    bound: int = 3
    slow: float = 1.0
    batch_size: int = 64
    seed: int = 0
    run: str = "digits"
    gradient_encoding: str | None = None
    parameter_encoding: str | None = None

    @property
    def updates(self) -> int:
        """Of all workers together."""
        return self.workers * self.steps

    @property
    def versions(self) -> int:
        """That these updates make: with sync, one of each round."""
        return self.steps if self.policy == "sync" else self.updates


@dataclass(frozen=True, kw_only=True)
class DemoOptions(TrainingOptions):
    """What `stepwell demo` can be told.

    target: the test accuracy, 0 to 1, below which the demo fails.
    picture: where the PNG goes.
    address: of a running server; without it one is started and ended.
    plain: lines now and then instead of a live table, as when the output is no terminal.
    """

    target: float = 0.97
    picture: Path = Path("stepwell-demo.png")
    address: str | None = None
    plain: bool = False


@dataclass(frozen=True, kw_only=True)
class WorkerOptions(TrainingOptions):
    """What `stepwell demo-worker` can be told.

    address: of the server; it may come up later than the worker.
    index: which of the workers this is, 0 to workers - 1. It waits until all of them are there, then makes `steps`
    updates with its own share of the training images. Without an index a worker draws from all of them, until the run
    has the updates of all workers: so any number of such workers, also one, or one that was restarted, finish the run
    together.
    supervised: report every step as a line of JSON, and end when standard input does.
    """

    address: str = "127.0.0.1:50051"
    index: int | None = None
    supervised: bool = False

    def arguments(self) -> list[str]:
        """The command line that gives these options: every field is the option of its name."""
        arguments = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            option = "--" + field.name.replace("_", "-")
            if value is True:
                arguments.append(option)
            elif value is not None and value is not False:
                arguments += [option, str(value)]
        return arguments
