"""Tables against PyTorch: `lazy` is SparseAdam's way, `exact` that of the dense optimizers."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest

from stepwell_server.core.devices.cpu import CpuDevice
from tests.core.tables.local import LocalTable
from tests.kernels import kept_kernels

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
pytestmark = pytest.mark.references

ROWS, WIDTH, STEPS = 50, 6, 100

EXACT: list[tuple[str, Any, dict[str, Any], dict[str, Any]]] = [
    ("sgd", torch.optim.SGD, {}, {}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9, "dampening": 0.2}, {}),
    ("sgd", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, {}),
    ("adagrad", torch.optim.Adagrad, {"lr_decay": 0.01, "initial_accumulator_value": 0.1}, {}),
    ("adadelta", torch.optim.Adadelta, {"rho": 0.8}, {}),
    ("rmsprop", torch.optim.RMSprop, {"alpha": 0.9, "momentum": 0.8}, {}),
    ("rmsprop", torch.optim.RMSprop, {"alpha": 0.9, "centered": True, "eps": 1e-3}, {}),
    ("rprop", torch.optim.Rprop, {"etas": (0.5, 1.2)}, {"etaminus": 0.5, "etaplus": 1.2}),
]


@cache
def open_device() -> CpuDevice:
    return CpuDevice(1, kept_kernels())


def batches(seed: int, dtype: str) -> list[tuple[Any, Any]]:
    """Ids with duplicates, now and then none, and their gradients."""
    random = np.random.default_rng(seed)
    made = []
    for step in range(STEPS):
        count = 0 if step % 17 == 5 else int(random.integers(1, 30))
        ids = np.minimum(random.zipf(1.4, count), ROWS) - 1
        made.append((ids, random.normal(size=(count, WIDTH)).astype(dtype)))
    return made


def make(dtype: str, mode: str, optimizer: str, **given: Any) -> tuple[LocalTable, Any]:
    lrs = (0.1 / (1 + np.arange(STEPS) / 30)).tolist()
    table = LocalTable(
        open_device(),
        width=WIDTH,
        dtype=dtype,
        optimizer=optimizer,
        sparse_mode=mode,
        hyperparameters=given,
        schedules={"lr": {"name": "table", "values": lrs}},
    )
    return table, torch.nn.Parameter(torch.tensor(table.pull(range(ROWS))))


def follow(table: LocalTable, param: Any, optimizer: Any, dtype: str, sparse: bool) -> None:
    rtol, atol = (1e-11, 1e-13) if dtype == "float64" else (2e-5, 1e-6)
    for step, (ids, grads) in enumerate(batches(3, dtype)):
        optimizer.param_groups[0]["lr"] = 0.1 / (1 + step / 30)
        indices = torch.tensor(ids, dtype=torch.int64)[None]
        grad = torch.sparse_coo_tensor(indices, torch.tensor(grads), (ROWS, WIDTH), check_invariants=True)
        param.grad = grad if sparse else grad.to_dense()
        with torch.sparse.check_sparse_tensor_invariants(True):
            optimizer.step()
        table.push(ids, grads)
        if step % 3 == 0 or step == STEPS - 1:
            np.testing.assert_allclose(
                table.pull(range(ROWS)), param.detach().numpy(), rtol=rtol, atol=atol, err_msg=f"step {step}"
            )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ["sparse_adam", "sgd", "adagrad"])
def test_lazy_rows_follow_pytorchs_sparse_gradients(name: str, dtype: str) -> None:
    """The three optimizers for which PyTorch takes sparse gradients."""
    table, param = make(dtype, "lazy", name)
    made = {"sparse_adam": torch.optim.SparseAdam, "sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[name]
    follow(table, param, made([param], lr=0.1), dtype, sparse=True)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("name", "made", "theirs", "ours"), EXACT, ids=[f"{row[0]}-{'-'.join(row[2]) or 'plain'}" for row in EXACT]
)
def test_exact_rows_follow_pytorchs_dense_optimizers(
    name: str, made: Any, theirs: dict[str, Any], ours: dict[str, Any], dtype: str
) -> None:
    table, param = make(dtype, "exact", name, **(ours or theirs))
    follow(table, param, made([param], lr=0.1, foreach=False, **theirs), dtype, sparse=False)
