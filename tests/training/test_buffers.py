# SPDX-License-Identifier: MIT
"""BatchNorm's running statistics in layouts: the first replica's, everywhere and when resumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from ranks import Rank, run_ranks
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import pycomm

STOP, STEPS, ROWS = 2, 4, 8
Outcome = tuple[list[float], dict[str, Tensor], Tensor]
# Two replicas in each, which see the same rows.
LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"dp": 2}),
    (2, {"shard": True}),
    (4, {"dp": 2, "tp": 2}),
    (4, {"dp": 2, "pp": 2, "microbatches": 2}),
    (4, {"dp": 2, "pp": 2, "microbatches": 2, "shard": True, "balance": "time"}),
]


def normed() -> nn.Module:
    """Layers that a pipeline can cut, with a pair of matrices that tp can share."""
    torch.manual_seed(2)
    pair = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
    layers = (nn.Linear(3, 6), nn.BatchNorm1d(6), pair, nn.BatchNorm1d(6), nn.Linear(6, 2))
    return nn.Sequential(*layers).double()


def data() -> Tensor:
    """Inputs and targets side by side."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(STEPS * ROWS, 5, generator=generator, dtype=torch.float64)


def alone(microbatches: int) -> Outcome:
    """Two replicas in this process, one after the other; the second's statistics are dropped."""
    model = normed()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    order = torch.randperm(
        STEPS * ROWS, generator=torch.Generator().manual_seed(1_000_003 * 7)
    ).tolist()
    losses = []
    for step in range(STEPS):
        total, kept = 0.0, {}
        rows = data()[order[step * ROWS : (step + 1) * ROWS]]
        for number, some in enumerate(rows.chunk(2 * microbatches)):
            if number == microbatches:
                kept = {name: value.clone() for name, value in model.named_buffers()}
            loss = nn.functional.mse_loss(model(some[:, :3]), some[:, 3:]) / (2 * microbatches)
            loss.backward()
            total += loss.item()
        model.load_state_dict(kept, strict=False)
        losses.append(total)
        sgd.step()
        sgd.zero_grad()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        return losses, state, model.eval()(data()[:4, :3])


def run(me: Rank, fields: Mapping[str, Any], steps: int, folder: str | None) -> Outcome:
    """Losses of a run that goes on to `steps`, its model, and what an evaluation gives."""
    ctx = pycomm.init(pycomm.Layout(**fields), seed=7)
    rows, model = data(), normed()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model, _ = ctx.wrap(model, sgd, loss=nn.functional.mse_loss, example=rows[:4, :3])
    loader = ctx.shard(DataLoader(TensorDataset(rows[:, :3], rows[:, 3:]), ROWS, shuffle=True))
    if folder is not None:
        ctx.checkpoint(folder)
    losses = []
    while ctx.steps < steps:
        for inputs, targets in loader:
            loss = model(inputs, targets)
            ctx.step(loss)
            losses.append(ctx.over_replicas(loss.detach()).item() / 2)
            if ctx.steps == steps:
                break
    if folder is not None:
        ctx.save()  # as after a signal: before a forward makes replicas' buffers equal again
    with torch.no_grad():
        model.eval()
        output = model(rows[:4, :3])
    ctx.finish()
    return losses, ctx.state_dict(), output


def each(me: Rank, many: Sequence[Mapping[str, Any]], steps: int, folder: str | None) -> Any:
    return [run(me, fields, steps, folder) for fields in many]


def expect_equal(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_running_statistics_are_the_first_replicas_in_every_layout() -> None:
    expected = {microbatches: alone(microbatches) for microbatches in (1, 2)}
    for world_size in (2, 4):
        layouts = [fields for ranks, fields in LAYOUTS if ranks == world_size]
        outcomes = run_ranks(each, world_size, layouts, STEPS, None)
        for index, fields in enumerate(layouts):
            found = [of_rank[index] for of_rank in outcomes]
            expect_equal(found[0], expected[fields.get("microbatches", 1)])
            for name, value in found[0][1].items():  # bit for bit on all ranks
                assert all(torch.equal(value, one[1][name]) for one in found), (fields, name)


@pytest.mark.parametrize("first, then", [(0, 1), (2, 0), (1, 2), (3, 4)])
def test_a_run_goes_on_with_them_in_another_layout(first: int, then: int, tmp_path: Any) -> None:
    losses, state, output = alone(LAYOUTS[first][1].get("microbatches", 1))
    for (ranks, fields), steps in ((LAYOUTS[first], STOP), (LAYOUTS[then], STEPS)):
        outcomes = run_ranks(run, ranks, fields, steps, str(tmp_path))
    for found in outcomes:
        expect_equal(found, (losses[STOP:], state, output))
