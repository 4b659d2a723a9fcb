"""A parameter server on `torch.distributed.rpc`: TensorPipe, CPU, PyTorch's fused Adam. Needs PyTorch."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.distributed import rpc

from stepwell_server.benchmarks.options import Floats
from stepwell_server.benchmarks.peers import announce

_SERVER, _WORKER = "server", "worker"


class TorchRpc:
    """The worker. rendezvous: a file that does not exist yet, by which the two processes find each other."""

    def __init__(self, rendezvous: Path, grad: Floats) -> None:
        _join(_WORKER, 1, str(rendezvous))
        self._grad = torch.from_numpy(grad)
        self._param: Any = None

    def step(self) -> None:
        """Send the gradient, get the parameters back."""
        self._param = rpc.rpc_sync(_SERVER, step, (self._grad,))

    def close(self) -> None:
        rpc.shutdown()


class Server:
    """The parameters and their optimizer, in the serving process."""

    def __init__(self, size: int) -> None:
        self.param = torch.zeros(size, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.param], fused=True)

    def step(self, grad: Any) -> Any:
        self.param.grad = grad
        self.optimizer.step()
        return self.param.detach()


servers: list[Server] = []


def step(grad: Any) -> Any:
    """Called by the worker, in the serving process."""
    return servers[0].step(grad)


def serve(size: str, rendezvous: str) -> None:
    """Hold `size` parameters for one worker until it leaves."""
    servers.append(Server(int(size)))
    # Joining waits for the worker, and the worker waits for this line.
    announce(rendezvous)
    _join(_SERVER, 0, rendezvous)
    rpc.shutdown()


def _join(name: str, rank: int, rendezvous: str) -> None:
    os.environ["TP_SOCKET_IFNAME"] = "lo"
    # torch.distributed.rpc itself uses what PyTorch has deprecated.
    warnings.filterwarnings("ignore", message="You are using a Backend", category=UserWarning)
    options = rpc.TensorPipeRpcBackendOptions(init_method=f"file://{rendezvous}")
    rpc.init_rpc(name, rank=rank, world_size=2, rpc_backend_options=options)
