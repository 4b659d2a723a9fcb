"""A PyTorch trainer's whole step, with the optimizer in its own process and on a server."""

from contextlib import ExitStack, closing

from stepwell_server.benchmarks.contest import Baseline, Contestant, compete
from stepwell_server.benchmarks.options import Options, has_torch, missing
from stepwell_server.benchmarks.peers import start_stepwell
from stepwell_server.benchmarks.report import Table


def benchmark(options: Options) -> Table:
    """The optimizer's step alone, and with the backward pass that makes its gradients."""
    title = f"A trainer in PyTorch: {options.size:,} float32 parameters, AdamW"
    if not has_torch():
        return Table(title, [], missing())
    from stepwell_server.benchmarks.torch_trainer import LOCAL, TorchTrainer  # imports PyTorch, which may be missing

    with ExitStack() as stack:
        peer = stack.enter_context(start_stepwell("--max-memory", options.server_memory()))
        sides = {"local": (LOCAL, "auto", "torch.optim.AdamW(fused=True)")}
        for transport in options.transports:
            sides[transport] = (peer.address, transport, f"RemoteOptimizer, {transport.replace('_', ' ')}")
        contestants = []
        for key, (address, transport, words) in sides.items():
            trainer = stack.enter_context(closing(TorchTrainer(options.size, address, key, transport=transport)))
            contestants += [
                Contestant(key, f"{words}: optimizer.step()", trainer.step),
                Contestant(f"{key} whole", f"{words}: zero_grad(), backward() and step()", trainer.train),
            ]
        return compete(
            title,
            contestants,
            (Baseline("local", "local step"), Baseline("local whole", "local whole")),
            rounds=options.rounds,
            warmup_rounds=2,
        )
