# SPDX-License-Identifier: MIT
"""pycomm.DataParallel of models on a device: the bits of DDP there, and what the host may not wait
for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import replica_scenarios
import test_data_parallel_hazards as hazards
import torch
import torch.distributed as dist
from fake_cuda.device_ranks import (
    SHARED_AND_OWN,
    busy,
    gpu,
    hear,
    here,
    mode_now,
    run_on_devices,
    tell,
)
from ranks import Rank
from reference_run import (
    Run,
    alone,
    collectives_run,
    expect_equal,
    gpt,
    sgd,
    square_loss,
    tokens_of,
    train,
    whole_state,
)
from replica_scenarios import DDP_OPTIONS, SCENARIOS, differing, wide
from test_device_training import CLOSE, IN_RANK_ORDER, on_device
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pycomm

EVERY_MODE = pytest.mark.parametrize("mode", ["H", "S", "K"])

SMALL_BUCKETS = 2048
# Some have enough on two ranks, through the host; others are for three, by streams.
THROUGH_THE_HOST = ["accumulation_without_sync", "parameters_that_some_ranks_or_all_leave_out"]
BY_STREAMS = [
    "adam_after_clipping_the_norm",
    "odd_sizes_and_a_frozen_layer",
    "gradients_that_stay_and_are_zeroed",
    "two_forwards_and_one_backward",
    "left_out_parameters_keep_an_older_gradient",
    "mixed_dtypes",
    "batch_norm_and_its_buffers",
    "reentrant_checkpoints_that_share_a_layer",
]


@contextmanager
def batches_there() -> Iterator[None]:
    """The scenarios get their batches on the device."""

    def moved(make: Callable[..., Any]) -> Callable[..., Any]:
        def to_device(given: Any) -> Any:
            if isinstance(given, Tensor):
                return given.to(here())
            return type(given)(to_device(one) for one in given)

        return lambda *args, **given: to_device(make(*args, **given))

    names = ("rows_of", "tokens_of", "pairs_of")
    before = {name: getattr(replica_scenarios, name) for name in names}
    for name in names:
        setattr(replica_scenarios, name, moved(before[name]))
    try:
        yield
    finally:
        for name in names:
            setattr(replica_scenarios, name, before[name])


def small(model: nn.Module) -> nn.Module:
    return pycomm.DataParallel(model.to(here()), bucket_bytes=SMALL_BUCKETS)


def by_ddp(model: nn.Module) -> nn.Module:
    return DistributedDataParallel(model.to(here()))


def both_ways(me: Rank, names: list[str], mode: str) -> dict[str, list[str]]:
    """By scenario, what differs between DDP and DataParallel on this rank's device."""
    wrong = {}
    for name in names:
        # With options DDP needs pinned memory of torch's, which the fake GPU has not.
        known = not DDP_OPTIONS[name]
        with batches_there():
            states = [SCENARIOS[name](me.rank, wrap) for wrap in ([small, by_ddp][: 1 + known])]
        if not known:
            states.append(SCENARIOS[name](me.rank, pycomm.DataParallel))
        assert states[0]
        on_host = [{key: one.cpu() for key, one in state.items()} for state in states]
        wrong[name] = differing(*on_host)
    assert mode_now() == mode
    return {name: what for name, what in wrong.items() if what}


@pytest.mark.parametrize(
    ("world_size", "mode", "names"), [(2, "H", THROUGH_THE_HOST), (3, "S", BY_STREAMS)]
)
def test_parameters_are_those_of_ddp_on_the_device_bit_for_bit(
    world_size: int, mode: str, names: list[str]
) -> None:
    told = run_on_devices(both_ways, world_size, names, mode, env=IN_RANK_ORDER, mode=mode)
    assert told == [{}] * world_size


def plain(me: Rank) -> Run:
    run = on_device(me, pycomm.DataParallel)
    everybodys: list[Any] = [None] * me.world_size
    dist.all_gather_object(everybodys, run.state)
    assert all(differing(one, run.state) == [] for one in everybodys)
    return run


@pytest.mark.parametrize(("world_size", "mode"), [(1, "S"), (2, "K"), (3, "H"), (4, "S")])
def test_data_parallel_on_one_gpu_equals_one_process(world_size: int, mode: str) -> None:
    runs = run_on_devices(plain, world_size, env=IN_RANK_ORDER, mode=mode)
    assert all(run.collectives for run in runs) == (world_size > 1)
    runs[0].collectives = {"none needed"}
    expect_equal(runs, alone(gpt, [tokens_of(rank) for rank in range(world_size)]), **CLOSE)


STEPS_OF_RANK = [4, 2, 3]


def joined(me: Rank) -> Run:
    model = pycomm.DataParallel(gpt().to(here()), bucket_bytes=SMALL_BUCKETS)
    batches = [batch.to(here()) for batch in tokens_of(me.rank, STEPS_OF_RANK[me.rank])]
    with model.join(divide_by_initial_world_size=False):
        losses = train(model, sgd(model.parameters()), batches).losses
    state = {name: value.cpu() for name, value in whole_state(model).items()}
    return Run(losses, state, collectives_run())


def test_join_with_uneven_inputs_on_a_device_equals_one_process() -> None:
    shares = [tokens_of(rank, steps) for rank, steps in enumerate(STEPS_OF_RANK)]
    runs = run_on_devices(joined, 3, env=IN_RANK_ORDER, mode="S")
    expect_equal(runs, alone(gpt, shares), **CLOSE)


HAZARDS = [
    hazards.after_an_exception_in_the_first,
    hazards.with_two_wrappers,
    hazards.after_an_exception_between_two_wrappers,
    hazards.with_assigned_buffers,
]


def on_this_device(me: Rank) -> dict[str, list[bool]]:
    with here():
        return {case.__name__: case(me) for case in HAZARDS}


@EVERY_MODE
def test_gradients_are_right_after_exceptions_and_with_several_wrappers(mode: str) -> None:
    for found in run_on_devices(on_this_device, 2, mode=mode):
        assert found
        for case, right in found.items():
            assert all(right), (case, right)


# ---- streams


class Made(torch.autograd.Function):
    """The gradient of each weight is its value plus one, made on the stream of the forward."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return torch.zeros(1, device=weight.device)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        return torch.empty_like(weight).copy_(weight.detach()).add_(torch.ones_like(weight))


class OnStreams(nn.Module):
    """Two weights, each used on a stream of its own; a stream may be None, the current one."""

    def __init__(self, value: float) -> None:
        super().__init__()
        lying = torch.full((10, 30), value), torch.full((30, 10), value + 1).t()
        self.weights = nn.ParameterList(nn.Parameter(one.to(here())) for one in lying)
        self.streams: list[Any] = [None, None]

    def forward(self) -> list[Tensor]:
        outputs = []
        for weight, stream in zip(self.weights, self.streams, strict=True):
            with gpu().stream(stream):
                outputs.append(Made.apply(weight))
        return outputs


def stepped(model: nn.Module) -> None:
    model.zero_grad()
    outputs = model()
    torch.autograd.backward(outputs, [torch.ones_like(one) for one in outputs])


def held_by_a_message(me: Rank, apart: bool) -> list[float]:
    """Streams of rank 0 wait for what rank 1 sends when rank 0's backward has returned."""
    model = pycomm.DataParallel(OnStreams(0.0))
    stepped(model)
    with torch.no_grad():
        for index, weight in enumerate(model.weights):
            weight.fill_(10.0 * me.rank + index)
    streams = [gpu().Stream() for _ in range(2)]
    parcel = torch.zeros(1, device=here())
    for stream in streams:
        stream.wait_stream(gpu().current_stream())
    if apart:
        model.streams[:] = streams
    if me.rank == 0:
        with gpu().stream(streams[1] if apart else gpu().current_stream()):
            dist.irecv(parcel, src=1).wait()
    stepped(model)
    # What it has let go of is given to whoever comes next, and overwritten.
    for stream in (gpu().current_stream(), *streams):
        with gpu().stream(stream):
            junk = [torch.empty(10, 30, device=here()) for _ in range(4)]
    if me.rank == 0:
        tell(me, "returned")
    else:
        hear(me, "returned")
        with gpu().stream(gpu().Stream()):
            dist.send(parcel + 1, dst=0)
    del junk
    found = []
    for weight in model.weights:
        values = weight.grad.cpu().unique()
        assert len(values) == 1, values
        found.append(values.item())
    return found


@pytest.mark.parametrize("apart", [False, True], ids=["one stream", "a stream for each weight"])
@EVERY_MODE
def test_backward_returns_before_the_streams_that_it_waits_for(mode: str, apart: bool) -> None:
    assert run_on_devices(held_by_a_message, 2, apart, mode=mode) == [[6.0, 7.0]] * 2


def unlucky_timing(me: Rank) -> list[bool]:
    """Several steps without a wait of the host in between, on streams that are slow."""
    model = pycomm.DataParallel(OnStreams(0.0), bucket_bytes=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    sums = []
    for step in range(6):
        with torch.no_grad():
            for weight in model.weights:
                weight.add_(torch.full_like(weight, float(me.rank)))  # ranks differ for a moment
        if step == 3:
            busy(20)
        stepped(model)
        optimizer.step()
        with torch.no_grad():
            for weight in model.weights:
                weight.add_(torch.full_like(weight, -float(me.rank)))
        sums.append([weight.detach().clone() for weight in model.weights])
    found = []
    expected = [0.0, 1.0]
    for weights in sums:
        mean_rank = (me.world_size - 1) / 2
        expected = [value - 0.5 * (value + mean_rank + 1) for value in expected]
        found += [
            torch.allclose(weight.cpu(), torch.full((10, 30), value), atol=1e-5)
            for weight, value in zip(weights, expected, strict=True)
        ]
    return found


@pytest.mark.parametrize(
    ("mode", "world_size", "gpus"),
    [
        ("H", 3, SHARED_AND_OWN),
        ("S", 3, SHARED_AND_OWN),
        ("K", 3, SHARED_AND_OWN),
        ("S", 2, "uuid=SHARED,one_queue=1"),
    ],
    ids=["H", "S", "K", "S, one queue of the hardware"],
)
def test_steps_that_the_host_never_waits_for_are_right(
    mode: str, world_size: int, gpus: str
) -> None:
    for found in run_on_devices(unlucky_timing, world_size, mode=mode, gpus=gpus):
        assert all(found), found


# ---- formats


def narrow(me: Rank, wire: str) -> tuple[bool, float]:
    found = []
    for one in (wire, None):
        model = pycomm.DataParallel(wide().to(here()), wire=one)
        for step in range(3):
            model.zero_grad()
            rows = torch.ones(3, 5, device=here()) * (me.rank + step + 1)
            square_loss(model, rows).backward()
        found.append(torch.cat([p.grad.cpu().flatten() for p in model.parameters()]))
    theirs = [torch.empty_like(found[0]) for _ in range(me.world_size)]
    dist.all_gather(theirs, found[0])
    error = (found[0] - found[1]).norm() / found[1].norm()
    return all(one.equal(found[0]) for one in theirs), error.item()


@pytest.mark.parametrize(
    ("wire", "mode", "error"),
    [("bf16", "H", 2e-2), ("bf16", "K", 2e-2), ("bf16", "S", 2e-2), ("int8", "H", 6e-2)],
)
def test_gradients_of_a_device_travel_as_asked(wire: str, mode: str, error: float) -> None:
    for same, found in run_on_devices(narrow, 3, wire, mode=mode):
        assert same
        assert 0 < found < error
