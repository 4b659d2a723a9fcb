"""A DataLoader's workers are forked children that inherit the optimizer: they must do it no harm, nor it them."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.end_to_end.server import Server
from tests.kernels import kept_kernels

pytest.importorskip("torch")
pytestmark = [pytest.mark.references, pytest.mark.xdist_group("torch_remote")]

SECONDS_MAX = 240

# Run in a process of its own: this one has threads that must not be forked.
PROGRAM = """
import copy, gc, sys, torch
import stepwell
from stepwell.torch import RemoteOptimizer

address, name, transport = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(0)
model = torch.nn.Linear(40, 40).double()
twin = copy.deepcopy(model)
optimizer = RemoteOptimizer(model, "sgd", lr=0.1, momentum=0.9, address=address, run=name,
                            connect_options={"transport": transport, "worker": "trainer"})
local = torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
run = optimizer.run  # a global of the module, which every child has

class Samples(torch.utils.data.Dataset):
    def __init__(self, ask):
        self.optimizer, self.run, self.ask = optimizer, optimizer.run, ask
        self.inputs = torch.randn(48, 40, dtype=torch.float64)

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        if self.ask and index == 17:
            self.ask(self)
        return self.inputs[index]

def loader(ask=None, workers=2, **options):
    return torch.utils.data.DataLoader(Samples(ask), batch_size=8, num_workers=workers, multiprocessing_context="fork",
                                       **options)

def train(batches):
    for inputs in batches:
        for network, descent in ((model, optimizer), (twin, local)):
            descent.zero_grad()
            (network(inputs) - inputs.flip(1)).pow(2).mean().backward()
            descent.step()

def check():
    for mine, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-14)
    (worker,) = run.refresh().workers
    assert (worker.name, worker.epoch, worker.last_sequence) == ("trainer", 1, run.version), worker
    assert run.transport == transport

train(loader())
assert run.version == 6, run.version
check()

# Workers that let go of what they inherited, and that use the model.
def let_go(dataset):
    model(dataset.inputs[:1].clone()).sum().backward()
    dataset.optimizer.zero_grad()
    del dataset.optimizer, dataset.run
    gc.collect()

def close(dataset):
    dataset.optimizer.close()

for ask in (let_go, close):
    train(loader(ask))
    check()

# Workers that ask: the error comes through the loader, and says what to do.
def step(dataset):
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    dataset.optimizer.step()

def ask(dataset):
    make = lambda dataset: RemoteOptimizer(model, "sgd", address=address, run=f"{name}-other")
    for call in (step, make, lambda dataset: stepwell.connect(address).ping()):
        try:
            call(dataset)
        except stepwell.ServerUnavailable as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError("the worker made a call")
    dataset.run.pull()

before = run.version
try:
    train(loader(ask))
except stepwell.ServerUnavailable as error:
    assert "forked" in str(error) and "multiprocessing_context='spawn'" in str(error), error
else:
    raise AssertionError("the worker made a call")
gc.collect()  # PyTorch's own workers must not meet each other's iterators
assert run.version == before + 2, run.version  # the batches before that one
check()

# Workers that stay, and outlive it.
stay = loader(persistent_workers=True)
train(stay)
train(stay)
check()
optimizer.close()
with stepwell.connect(address) as client:
    assert not client.get_run(name).refresh().workers
assert len(list(stay)) == 6
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(kept_kernels()) as server:
        yield server


@pytest.mark.parametrize("transport", ["shared_memory", "stream"])
def test_workers_of_a_data_loader(server: Server, transport: str) -> None:
    command = [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", PROGRAM]
    command += [server.address, f"loader-{transport}", transport]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=SECONDS_MAX)
    assert (done.returncode, done.stderr) == (0, "")
