# SPDX-License-Identifier: MIT
"""Compressed gradients under DDP: against their definition, bit for bit, and against stalling."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

import pytest
import torch
from feedback_reference import EXACT_BELOW, SIZES, Group, Weighted, gradients_of
from ranks import Rank, run_ranks
from reference_run import gpt, next_byte_loss, sgd, tokens_of
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pycomm import compression

SMALL_BUCKETS_MB = 0.002


def with_feedback(
    module: nn.Module, wire: str, ddp: dict[str, Any] | None = None, **options: Any
) -> tuple[DistributedDataParallel, torch.optim.Optimizer, compression.ErrorFeedback]:
    model = DistributedDataParallel(module, **(ddp or {}))
    optimizer = sgd(model.parameters())
    state = compression.ErrorFeedback(wire, model, optimizer, **options)
    model.register_comm_hook(state, compression.hook)
    return model, optimizer, state


def digest(tensors: Any) -> str:
    sums = hashlib.sha256()
    for tensor in tensors:
        sums.update(tensor.detach().contiguous().numpy().tobytes())
    return sums.hexdigest()


# ---- the definition

SCRIPTS = {
    "steps": "B0 S Z B1 S Z B2 S Z B3 S",
    "accumulated_under_no_sync": "A0 B1 S Z A2 A3 B4 S Z B5 S",
    "several_reductions_before_a_step": "B0 B1 S Z B2 B3 B4 S Z B5 S",
    "passes_for_nothing": "B0 Z B1 S Z B2 Z B3 Z B4 S Z B5 S",
    "a_pass_for_nothing_before_no_sync": "B0 S Z B1 Z A2 B3 S Z B4 S",
}


def following(me: Rank, wire: str, ddp: dict[str, Any], zero_in_place: bool) -> list[Any]:
    """The gradients after each reduction of each script."""
    found = []
    for script in SCRIPTS.values():
        model, optimizer, state = with_feedback(Weighted(SIZES), wire, ddp, exact_below=EXACT_BELOW)
        reduced = []
        for word in script.split():
            if word == "S":
                optimizer.step()
                assert not state._residuals.staged
            elif word == "Z":
                optimizer.zero_grad(set_to_none=not zero_in_place)
            else:
                with model.no_sync() if word[0] == "A" else contextlib.nullcontext():
                    model(gradients_of(me.rank, int(word[1:]))).backward()
                if word[0] == "B":
                    reduced.append([weight.grad.clone() for weight in model.module.weights])
        rebuilt = model._get_ddp_logging_data()["has_rebuilt_buckets"]
        found.append((reduced, rebuilt))
    return found


CASES = {
    "int4_2_ranks": ("int4", 2, {}, False),
    "int4_3_ranks_small_buckets": ("int4", 3, {"bucket_cap_mb": SMALL_BUCKETS_MB}, True),
    "int8_3_ranks_views": ("int8", 3, {"gradient_as_bucket_view": True}, False),
    "int8_2_ranks_views_small_buckets": (
        "int8",
        2,
        {"gradient_as_bucket_view": True, "bucket_cap_mb": SMALL_BUCKETS_MB},
        True,
    ),
    "bf16_2_ranks": ("bf16", 2, {}, False),
    "fp16s_2_ranks": ("fp16s", 2, {}, True),
}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_the_definition_on_all_ranks(name: str) -> None:
    wire, world_size, ddp, zero_in_place = CASES[name]
    expected = {key: Group(wire, world_size).follow(script) for key, script in SCRIPTS.items()}
    for told in run_ranks(following, world_size, wire, ddp, zero_in_place):
        for (key, reductions), (reduced, rebuilt) in zip(expected.items(), told, strict=True):
            assert rebuilt  # so layouts have changed on the way
            for number, (want, got) in enumerate(zip(reductions, reduced, strict=True)):
                for size, a, b in zip(SIZES, want, got, strict=True):
                    assert a.equal(b), f"{key}, reduction {number}, parameter of {size}"


# ---- training


def trained(me: Rank, wire: str, feedback: bool, bucket_cap_mb: float) -> tuple[str, float]:
    """(digest of parameters, distance of the last gradient from the exact mean)."""
    model = DistributedDataParallel(gpt(), bucket_cap_mb=bucket_cap_mb)
    optimizer = sgd(model.parameters())
    if feedback:
        state = compression.ErrorFeedback(wire, model, optimizer, exact_below=64)
    else:
        state = compression.Encoded(wire, model, exact_below=64)
    model.register_comm_hook(state, compression.hook)
    for tokens in tokens_of(me.rank):
        optimizer.zero_grad()
        loss = next_byte_loss(model, tokens)
        loss.backward()
        optimizer.step()
    return digest(model.parameters()), loss.item()


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("wire", ["int8", "int4"])
@pytest.mark.parametrize("feedback", [True, False], ids=["feedback", "plain"])
def test_ranks_and_bucket_sizes_give_the_same_bits(
    wire: str, world_size: int, feedback: bool
) -> None:
    digests = {
        told[0]
        for bucket_cap_mb in (25, SMALL_BUCKETS_MB)
        for told in run_ranks(trained, world_size, wire, feedback, bucket_cap_mb)
    }
    assert len(digests) == 1, digests


class Valley(nn.Module):
    """A bowl whose first coordinate is pulled to and fro so hard that int4 sees nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(64))

    def forward(self, pull: float) -> Tensor:
        return 0.5 * (self.place[1:] - 1).square().sum() + pull * self.place[0]


def descending(me: Rank, feedback: bool) -> float:
    """How far from the bottom the bowl's coordinates are in the end."""
    model = DistributedDataParallel(Valley())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    if feedback:
        state = compression.ErrorFeedback("int4", model, optimizer, exact_below=0)
    else:
        state = compression.Encoded("int4", model, exact_below=0)
    model.register_comm_hook(state, compression.hook)
    for step in range(400):
        optimizer.zero_grad()
        model(100.0 if step % 2 else -100.0).backward()
        optimizer.step()
    return (model.module.place[1:] - 1).abs().max().item()


@pytest.mark.parametrize("world_size", [2, 3])
def test_feedback_arrives_where_plain_int4_stalls(world_size: int) -> None:
    assert run_ranks(descending, world_size, False) == [1.0] * world_size  # has not moved
    for distance in run_ranks(descending, world_size, True):
        assert distance < 0.2


# ---- what is not encoded


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_32_bits = nn.Parameter(torch.zeros(200))
        self.in_64_bits = nn.Parameter(torch.zeros(200, dtype=torch.float64))
        self.in_16_bits = nn.Parameter(torch.zeros(200, dtype=torch.bfloat16))

    def forward(self, factors: Tensor) -> Tensor:
        return sum((p * factors.to(p.dtype)).sum().double() for p in self.parameters())


def mixed(me: Rank) -> list[Tensor]:
    model, _, _ = with_feedback(Mixed(), "int4", exact_below=0)
    model(factors_of(me.rank)).backward()
    return [p.grad for p in model.module.parameters()]


def factors_of(rank: int) -> Tensor:
    return torch.randn(200, generator=torch.Generator().manual_seed(rank))


def test_other_dtypes_travel_as_they_are() -> None:
    for narrow, wide, half in run_ranks(mixed, 2):
        exact = (factors_of(0) + factors_of(1)) / 2
        assert not torch.allclose(narrow, exact, rtol=1e-3)
        torch.testing.assert_close(wide, exact.double(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(half, exact.bfloat16(), rtol=0.02, atol=0.02)


def alone(me: Rank) -> list[Tensor]:
    model, _, _ = with_feedback(Weighted(SIZES), "int4", exact_below=0)
    model(gradients_of(0, 0)).backward()
    return [weight.grad for weight in model.module.weights]


def test_one_rank_sends_nothing_and_loses_nothing() -> None:
    (grads,) = run_ranks(alone, 1)
    for grad, given in zip(grads, gradients_of(0, 0), strict=True):
        assert grad.equal(given)


# ---- uneven inputs, unused parameters


def joined(me: Rank) -> str:
    model, optimizer, _ = with_feedback(gpt(), "int4", exact_below=64)
    with model.join():
        for tokens in tokens_of(me.rank, 3 + 2 * me.rank):
            optimizer.zero_grad()
            next_byte_loss(model, tokens).backward()
            optimizer.step()
    return digest(model.parameters())


def test_ranks_that_run_out_of_data_take_part_until_all_have() -> None:
    assert len(set(run_ranks(joined, 3))) == 1


class Halves(nn.Module):
    """Uses one of its layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(20, 20) for _ in range(2))

    def forward(self, which: int) -> Tensor:
        return self.layers[which](torch.ones(3, 20)).square().sum()


def half_used(me: Rank) -> str:
    model, optimizer, _ = with_feedback(
        Halves(), "int4", {"find_unused_parameters": True}, exact_below=0
    )
    for step in range(4):
        optimizer.zero_grad()
        model((step + me.rank) % 2 if step < 3 else 0).backward()
        optimizer.step()
    return digest(model.parameters())


def test_parameters_that_some_or_all_ranks_leave_out_do_not_part_the_ranks() -> None:
    assert len(set(run_ranks(half_used, 2))) == 1
