# SPDX-License-Identifier: MIT
"""What the rules of tensor parallel leave whole, and that it is right."""

from __future__ import annotations

import torch
from ranks import Rank, run_ranks
from torch import Tensor, nn
from torch.nn import functional

import pycomm
from pycomm.tensor_parallel import find_plan


class NormedAttention(nn.Module):
    """Attention that normalises each head's queries, as Qwen 3 does."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.q, self.k, self.v, self.out = (nn.Linear(8, 8) for _ in range(4))
        self.q_norm = nn.LayerNorm(2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.q, self.k, self.v)
        )
        mixed = functional.scaled_dot_product_attention(self.q_norm(q), k, v)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Model(nn.Module):
    """One block of attention and two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = NormedAttention()
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(x)
        return x + self.mlp(x)


def trained(me: Rank) -> dict[str, Tensor]:
    ctx = pycomm.init(pycomm.Layout(dp=1, tp=me.world_size))
    torch.manual_seed(1)
    model = Model().double()
    model, optimizer = ctx.wrap(model, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(2, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for _ in range(3):
        ctx.step((model(x) - x.flip(1)).square().mean())
    return ctx.state_dict()


def test_a_module_with_parameters_beside_its_pair_stays_whole() -> None:
    plan = find_plan(Model())
    assert plan.pairs == ["mlp"]
    assert plan.whole == [f"attention.{name}" for name in ("q", "k", "v", "out")]


def test_norms_of_heads_get_the_gradients_of_all_heads() -> None:
    (expected,) = run_ranks(trained, 1)
    for got in run_ranks(trained, 2):
        assert got.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(got[name], value, rtol=1e-9, atol=1e-12, msg=name)
