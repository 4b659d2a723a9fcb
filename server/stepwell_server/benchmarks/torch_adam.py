"""PyTorch's Adam in this process, on arrays that it shares with others. Needs PyTorch."""

import torch

from stepwell_server.benchmarks.options import Floats


class TorchAdam:
    """fused, foreach: PyTorch's own variants; neither is its loop over single tensors."""

    def __init__(
        self,
        param: Floats,
        grad: Floats,
        exp_avg: Floats,
        exp_avg_sq: Floats,
        *,
        fused: bool = False,
        foreach: bool = False,
    ) -> None:
        tensor = torch.from_numpy(param).requires_grad_()
        tensor.grad = torch.from_numpy(grad)
        self._optimizer = torch.optim.Adam([tensor], fused=fused, foreach=foreach)
        self._optimizer.state[tensor] = {
            "step": torch.tensor(0.0),
            "exp_avg": torch.from_numpy(exp_avg),
            "exp_avg_sq": torch.from_numpy(exp_avg_sq),
        }

    def step(self) -> None:
        self._optimizer.step()
