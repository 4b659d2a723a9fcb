"""PyTorch's side of Stepwell: an optimizer whose state and arithmetic are a server's.

    from stepwell.torch import RemoteOptimizer

    optimizer = RemoteOptimizer(model, "adamw", lr=1e-3, address="127.0.0.1:50051", run="docstrings")

Needs PyTorch (`pip install 'stepwell[torch]'`); the rest of the client does not.
"""

from stepwell.torch._optimizer import RemoteOptimizer as RemoteOptimizer

__all__ = ["RemoteOptimizer"]
