# SPDX-License-Identifier: MIT
"""Dropout in tensor parallel: equal masks of whole activations, independent ones of parts."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from ranks import Rank, run_ranks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pycomm

WIDTH, HEADS, LENGTH, ROWS = 32, 8, 16, 8
WHOLE, PARTS = ("after",), ("weights", "inner")  # names of dropouts


class Attention(nn.Module):
    """Attention that drops weights, head by head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.weights = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            part(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = self.weights(torch.softmax(query @ key.transpose(-1, -2), -1))
        return self.out((weights @ value).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and two linear layers; dropout in each and after each."""

    def __init__(self) -> None:
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.mlp = nn.Sequential()
        for name, part in (
            ("up", nn.Linear(WIDTH, 4 * WIDTH)),
            ("act", nn.Tanh()),
            ("inner", nn.Dropout(0.5)),
            ("down", nn.Linear(4 * WIDTH, WIDTH)),
            ("last", nn.Tanh()),
        ):
            self.mlp.add_module(name, part)
        self.after = nn.Dropout(0.5)
        self.recomputes = False

    def forward(self, x: Tensor) -> Tensor:
        if self.recomputes:
            return checkpoint(self.run, x, use_reentrant=False)
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        x = x + self.after(self.attention(self.norm_attention(x)))
        return x + self.after(self.mlp(self.norm_mlp(x)))


class Recorded(nn.Module):
    """Two blocks; remembers what each dropout left, in the order of their runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.masks: dict[str, list[Tensor]] = {name: [] for name in (*WHOLE, *PARTS)}
        for path, module in self.named_modules():
            if isinstance(module, nn.Dropout):
                name = path.rpartition(".")[2]
                module.register_forward_hook(lambda _m, _x, y, name=name: self._keep(name, y))

    def _keep(self, name: str, output: Tensor) -> None:
        self.masks[name].append(output.detach().ne(0))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def run(me: Rank, recomputes: bool, **fields: Any) -> Any:
    """One step: masks, the gradient of the input, and where the generator stands in the end."""
    ctx = pycomm.init(pycomm.Layout(**fields), seed=7)
    model = Recorded()
    model, _ = ctx.wrap(model, torch.optim.SGD(model.parameters(), lr=0.1))
    for kept in model.masks.values():  # wrap tries the blocks
        kept.clear()
    for block in model.blocks:
        block.recomputes = recomputes
    x = torch.randn(ROWS, LENGTH, WIDTH, generator=torch.Generator().manual_seed(3))
    x.requires_grad_()
    model(x).square().mean().backward()
    count = {name: 4 if name in WHOLE else 2 for name in model.masks}  # the rest is recomputed
    masks = {name: torch.stack(kept[: count[name]]) for name, kept in model.masks.items()}
    state = torch.get_rng_state()
    model.eval()
    model(x)
    assert torch.equal(torch.get_rng_state(), state), "an evaluation draws numbers"
    return masks, x.grad, state


def each(me: Rank, sequence: bool) -> Any:
    return [run(me, recomputes, tp=4, sequence=sequence) for recomputes in (False, True)]


def expect_independent(masks: list[Tensor]) -> None:
    """Two masks that keep half of their places each agree in half of all, within five sigma."""
    for one, other in itertools.combinations(masks, 2):
        agree = (one == other).double().mean().item()
        assert abs(agree - 0.5) < 5 * 0.5 / one.numel() ** 0.5, agree
        assert abs(one.double().mean().item() - 0.5) < 5 * 0.5 / one.numel() ** 0.5


@pytest.mark.parametrize("sequence", [False, True])
def test_what_is_dropped_of_whole_activations_is_equal_and_of_parts_independent(
    sequence: bool,
) -> None:
    outcomes = run_ranks(each, 4, sequence)
    plain = [of_rank[0] for of_rank in outcomes]
    for name in PARTS if not sequence else (*PARTS, *WHOLE):
        expect_independent([masks[name] for masks, *_ in plain])
        for masks, *_ in plain:  # nor do runs of one rank repeat themselves
            expect_independent(list(masks[name]))
    for masks, gradient, state in plain:
        assert torch.equal(state, plain[0][2]), "ranks go on with other numbers"
        if not sequence:
            assert all(torch.equal(masks[name], plain[0][0][name]) for name in WHOLE)
            assert torch.equal(gradient, plain[0][1])
    # Activation checkpointing draws the same once more, or gradients would be of other masks.
    for (masks, gradient, _), (same, recomputed, _) in outcomes:
        assert all(torch.equal(masks[name], same[name]) for name in masks)
        torch.testing.assert_close(recomputed, gradient)
