"""A parameter server as a Ray actor with PyTorch's fused Adam; arrays pass through Ray's object store. Needs both."""

import os
from typing import Any

import ray
import torch

from stepwell_server.benchmarks.options import Floats


class RayActor:
    """The worker, and the actor that it talks to, in a process of its own on this machine."""

    def __init__(self, grad: Floats) -> None:
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            log_to_driver=False,
            configure_logging=False,
            object_store_memory=max(1 << 30, 12 * grad.nbytes),
            _node_ip_address="127.0.0.1",
        )
        self._grad = grad
        self._actor: Any = ray.remote(_Server).remote(grad.size)
        self._param: Any = None

    def step(self) -> None:
        """Send the gradient, get the parameters back: a read-only array in the object store."""
        self._param = ray.get(self._actor.step.remote(self._grad))

    def close(self) -> None:
        self._param = None
        ray.shutdown()


class _Server:
    """The parameters and their optimizer, in the actor's process."""

    def __init__(self, size: int) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._param = torch.zeros(size, requires_grad=True)
        self._optimizer = torch.optim.Adam([self._param], fused=True)

    def step(self, grad: Floats) -> Any:
        self._param.grad = torch.from_numpy(grad)
        self._optimizer.step()
        return self._param.detach().numpy()
