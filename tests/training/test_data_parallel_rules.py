# SPDX-License-Identifier: MIT
"""What pycomm.DataParallel refuses, what it does after exceptions, and where gradients lie."""

from __future__ import annotations

import copy
import os
import re
import signal
from typing import Any

import pytest
import torch
import torch.distributed as dist
from raising import Raises
from ranks import Died, Rank, run_ranks
from reference_run import gpt, next_byte_loss, odd, rows_of, sgd, square_loss, tokens_of
from replica_scenarios import wide
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pycomm
from pycomm import memory


def refusal(build: Any) -> str:
    """The text of the UsageError, or what came instead."""
    try:
        build()
    except pycomm.UsageError as error:
        return str(error)
    except BaseException as error:
        return repr(error)
    return "nothing was refused"


# ---- arguments and models


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(3)


def bad_arguments(me: Rank) -> dict[str, str]:
    frozen = odd().requires_grad_(False)
    gloo = dist.new_group(backend="gloo")
    calls = {
        "no module": lambda: pycomm.DataParallel(3),  # type: ignore[arg-type]
        "nothing to train": lambda: pycomm.DataParallel(frozen),
        "meta": lambda: pycomm.DataParallel(nn.Linear(2, 2, device="meta")),
        "lazy": lambda: pycomm.DataParallel(Lazy()),
        "bucket_bytes=0": lambda: pycomm.DataParallel(odd(), bucket_bytes=0),
        "bucket_bytes=True": lambda: pycomm.DataParallel(odd(), bucket_bytes=True),
        "wire": lambda: pycomm.DataParallel(odd(), wire="int3"),
        "gloo": lambda: pycomm.DataParallel(odd(), process_group=gloo),
        "no group": lambda: pycomm.DataParallel(odd(), process_group=7),  # type: ignore[arg-type]
        "copy": lambda: copy.deepcopy(pycomm.DataParallel(odd())),
    }
    return {name: refusal(call) for name, call in calls.items()}


def test_bad_arguments_are_refused_with_what_was_expected() -> None:
    expected = {
        "no module": "got a int, expected a torch.nn.Module",
        "nothing to train": "no parameter of the module needs a gradient",
        "meta": "weight is torch.strided on meta, expected a dense tensor on cpu",
        "lazy": "layer.weight has no shape yet",
        "bucket_bytes=0": "got bucket_bytes=0, expected a number of bytes",
        "bucket_bytes=True": "got bucket_bytes=True, expected a number of bytes",
        "wire": "'int3': expected",
        "gloo": "backend for cpu is gloo, expected pycomm",
        "no group": "process_group is a int, expected a ProcessGroup",
        "copy": "cannot be pickled or copied",
    }
    for told in run_ranks(bad_arguments, 2):
        wrong = {name: text for name, text in told.items() if expected[name] not in text}
        assert not wrong


def without_group(me: Rank) -> str:
    return refusal(lambda: pycomm.DataParallel(odd()))


def test_without_a_process_group_it_says_how_to_make_one() -> None:
    (told,) = run_ranks(without_group, 1, init=False)
    assert 'call init_process_group("pycomm") first' in told


def unlike(me: Rank) -> list[str]:
    def model(change: str) -> nn.Module:
        made = odd()
        if me.rank != 1:
            return made
        if change == "shape":
            made.second = nn.Linear(11, 7)
        elif change == "dtype":
            made.second.bfloat16()
        elif change == "frozen":
            made.second.requires_grad_(False)
        elif change == "buffer":
            made.register_buffer("more", torch.zeros(2))
        return made

    changes = ["shape", "dtype", "frozen", "buffer"]
    return [refusal(lambda change=change: pycomm.DataParallel(model(change))) for change in changes]


def test_models_that_differ_are_refused_on_all_ranks_naming_rank_and_parameter() -> None:
    same = "rank 0 has parameter second.weight: float32[7, 11]"
    expected = [
        "rank 1 has parameter second.bias: float32[7] where rank 0 has parameter last.weight",
        f"rank 1 has parameter second.weight: bfloat16[7, 11] where {same}",
        f"rank 1 has parameter second.weight: float32[7, 11], frozen where {same}",
        "rank 1 has buffer more: float32[2] where rank 0 has nothing",
    ]
    for told in run_ranks(unlike, 3):
        for text, wanted in zip(told, expected, strict=True):
            assert wanted in text


def names(me: Rank) -> None:
    model, other = pycomm.DataParallel(wide()), DistributedDataParallel(wide())
    assert list(model.state_dict()) == list(other.state_dict())
    other.load_state_dict(model.state_dict())
    model.load_state_dict(other.state_dict())
    model.module.note = "of the module"
    assert model.note == "of the module"
    with pytest.raises(AttributeError, match="'Sequential' object has no attribute 'absent'"):
        _ = model.absent
    flat = [name for bucket in model.buckets() for name in bucket]
    assert sorted(flat) == sorted(name for name, _ in model.module.named_parameters())


def test_keys_of_the_state_are_those_of_ddp_and_attributes_are_the_modules() -> None:
    run_ranks(names, 2)


# ---- where gradients lie


def lying(me: Rank) -> tuple[list[bool], list[bool]]:
    model = pycomm.DataParallel(wide())
    optimizer = sgd(model.parameters())
    before: list[Tensor] = []
    for rows in rows_of(me.rank):
        optimizer.zero_grad()
        square_loss(model, rows).backward()
        gradients = [p.grad for p in model.parameters()]
        held = [memory.holds(g) for g in gradients]
        kept = [
            bool(before) and g.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
            for g, b in zip(gradients, before, strict=False)
        ]
        before = gradients
    outside = torch.empty(1 << 20)
    assert not memory.holds(outside)  # only backward allocates there
    return held, kept


def test_gradients_lie_in_the_arena_and_small_ones_in_their_bucket() -> None:
    for held, kept in run_ranks(lying, 2):
        assert held == [True] * 6
        assert kept[:2] == [True, True]  # small: the same flat memory at each step


# ---- the order of buckets


class Backwards(nn.Module):
    """Uses its layers in another order on each rank, and not in that of their definition."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(5, 5) for _ in range(4))
        self.order = [2, 0, 3, 1] if rank == 0 else [0, 1, 2, 3]

    def forward(self, rows: Tensor) -> Tensor:
        for index in self.order:
            rows = torch.tanh(self.layers[index](rows))
        return rows.sum(1)


def ordered(me: Rank) -> list[list[str]]:
    model = pycomm.DataParallel(Backwards(me.rank), bucket_bytes=1)
    for rows in rows_of(me.rank):
        square_loss(model, rows).backward()
    return model.buckets()


def test_buckets_go_out_in_the_order_in_which_rank_0_first_had_gradients() -> None:
    for buckets in run_ranks(ordered, 3):
        layers = [name.split(".")[1] for bucket in buckets for name in bucket if "weight" in name]
        assert layers == ["1", "3", "0", "2"]


# ---- exceptions


class Fragile(nn.Module):
    """Raises in the middle of a backward when told to."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 200), nn.Linear(200, 200)
        self.register_buffer("mean", torch.zeros(1))
        self.now = False

    def forward(self, rows: Tensor) -> Tensor:
        return self.last(Raises.apply(torch.tanh(self.first(rows)), self.now)).sum(1)


def interrupted(me: Rank, culprits: list[int]) -> tuple[str, bool]:
    """What this rank saw at the second of four steps, and whether the others equal DDP's."""
    told = ""
    model, other = (
        pycomm.DataParallel(Fragile(), bucket_bytes=1),
        DistributedDataParallel(Fragile()),
    )
    optimizers = [sgd(model.parameters()), sgd(other.parameters())]
    for step, rows in enumerate(rows_of(me.rank)):
        if step == 1:
            model.module.now = me.rank in culprits
            try:
                square_loss(model, rows).backward()
            except (ValueError, pycomm.UsageError) as error:
                told = str(error)
            model.module.now = False
            continue
        for one, optimizer in zip((model, other), optimizers, strict=True):
            optimizer.zero_grad()
            square_loss(one, rows).backward()
            optimizer.step()
    pairs = zip(model.parameters(), other.parameters(), strict=True)
    return told, all(a.equal(b) for a, b in pairs)


@pytest.mark.parametrize("culprits", [[0, 1, 2], [1]], ids=["all ranks", "one rank"])
def test_the_step_after_an_exception_in_backward_works(culprits: list[int]) -> None:
    for rank, (told, equal) in enumerate(run_ranks(interrupted, 3, culprits)):
        expected = "on purpose" if rank in culprits else "was interrupted by an exception"
        assert expected in told
        assert equal


def survivor(me: Rank) -> str:
    model = pycomm.DataParallel(gpt())
    tokens = tokens_of(me.rank)
    next_byte_loss(model, tokens[0]).backward()
    if me.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        next_byte_loss(model, tokens[1]).backward()
    except pycomm.PeerFailure as error:
        return str(error)
    return "nothing was raised"


def test_a_rank_that_dies_is_named_by_the_backward_of_the_others() -> None:
    told, died = run_ranks(survivor, 2, dies=[1])
    assert isinstance(died, Died)
    assert re.search(r"rank 1 .*\bpid\b", told), told


def twice(me: Rank) -> list[bool]:
    model, other = pycomm.DataParallel(wide()), wide()
    for step in range(2):  # the very first backward sends at its end, later ones in between
        model.zero_grad()
        loss = square_loss(model, rows_of(me.rank)[step])
        loss.backward(retain_graph=True)
        once = [p.grad.clone() for p in model.parameters()]
        loss.backward()
    shares = [
        torch.autograd.grad(square_loss(other, rows_of(rank)[1]), list(other.parameters()))
        for rank in range(me.world_size)
    ]
    means = [(a + b) / 2 for a, b in zip(*shares, strict=True)]
    return [
        a.equal(mean) and torch.allclose(p.grad, mean * 2)
        for a, p, mean in zip(once, model.parameters(), means, strict=True)
    ]


def test_two_backwards_through_one_graph_add_up() -> None:
    for equal in run_ranks(twice, 2):
        assert all(equal)


# ---- narrow formats


def narrow(me: Rank, wire: str) -> tuple[bool, float]:
    gradients = []
    for one in (wire, None):
        model = pycomm.DataParallel(wide(), wire=one)
        for rows in rows_of(me.rank, 2):
            square_loss(model, rows).backward()
        gradients.append(model.module[2].weight.grad)
    got, exact = gradients
    everywhere = [torch.empty_like(got) for _ in range(me.world_size)]
    dist.all_gather(everywhere, got)
    same = all(one.equal(got) for one in everywhere)
    return same, float((got - exact).norm() / exact.norm())


@pytest.mark.parametrize(("wire", "error"), [("bf16", 2e-2), ("int8", 6e-2)])
def test_gradients_travel_as_asked_and_are_the_same_on_all_ranks(wire: str, error: float) -> None:
    for same, found in run_ranks(narrow, 3, wire):
        assert same
        assert 0 < found < error  # rounded, and not much
