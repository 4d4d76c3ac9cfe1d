# SPDX-License-Identifier: MIT
"""What pycomm.DataParallel refuses of models on a device, and what happens when ranks fail."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from fake_cuda.device_ranks import (
    DEVICE,
    gpu,
    hear,
    here,
    run_on_devices,
    tell,
)
from ranks import Died, Rank
from reference_run import (
    odd,
    sgd,
    square_loss,
)
from test_device_data_parallel import EVERY_MODE, OnStreams
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import pycomm


def refusal(build: Callable[[], Any]) -> str:
    try:
        build()
    except pycomm.UsageError as error:
        return str(error)
    return "nothing was refused"


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 2).to(here(0)), nn.Linear(2, 2).to(here(1))


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.odd = nn.Parameter(torch.zeros(3, dtype=torch.complex32, device=here()))


def timeouts(me: Rank) -> list[float]:
    me.init(timeout_s=7)
    model = pycomm.DataParallel(odd().to(here()), wire="int8")
    groups = dist.distributed_c10d._world.pg_map
    found = [group._get_backend(here()).options.timeout_ms / 1000 for group in groups]
    del model
    dist.destroy_process_group()
    return found


def test_groups_that_it_makes_have_the_timeout_of_theirs() -> None:
    assert run_on_devices(timeouts, 2, init=False) == [[7.0] * 3] * 2


def refused(me: Rank) -> dict[str, str]:
    other = odd().to(here())
    if hasattr(other.last.bias, "grad_dtype"):  # torch 2.10 and later
        other.last.bias.grad_dtype = torch.float64
    on_cpu = odd().to(here())
    on_cpu.register_buffer("mean", torch.zeros(1))
    ddp = DistributedDataParallel(odd().to(here()))
    told = {
        "two devices": refusal(lambda: pycomm.DataParallel(Split())),
        "a buffer on cpu": refusal(lambda: pycomm.DataParallel(on_cpu)),
        "grad_dtype": refusal(lambda: pycomm.DataParallel(other)),
        "complex32": refusal(lambda: pycomm.DataParallel(Halves())),
        "hook": refusal(lambda: pycomm.compression.Encoded("int8", ddp)),
        "feedback": refusal(
            lambda: pycomm.compression.ErrorFeedback("int8", ddp, sgd(ddp.parameters()))
        ),
    }
    model = pycomm.DataParallel(OnStreams(0.0))
    outputs = model()
    graph = gpu().Graph()
    with gpu().graph(graph):
        told["capture"] = refusal(
            lambda: torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])
        )
    return told


@pytest.mark.skipif(DEVICE != "fakegpu", reason="needs two devices in one process")
def test_what_cannot_be_served_is_refused_at_the_call() -> None:
    expected = {
        "two devices": "last.weight is on fakegpu:1 and first.weight on fakegpu:0, expected the",
        "a buffer on cpu": "mean is on cpu and first.weight on fakegpu:0, expected the whole",
        "grad_dtype": "gradient of last.bias is to be torch.float64, expected torch.float32",
        "complex32": "odd is ComplexHalf on fakegpu:0, expected float32",
        "hook": "are on fakegpu:0, expected cpu",
        "feedback": "are on fakegpu:0, expected cpu",
        "capture": "a graph is being captured",
    }
    for told in run_on_devices(refused, 2):
        wrong = {name: text for name, text in told.items() if expected[name] not in text}
        assert not wrong


def survivor(me: Rank) -> str:
    model = pycomm.DataParallel(odd().to(here()))
    rows = torch.ones(3, 5, device=here())
    square_loss(model, rows).backward()
    if me.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    with pytest.raises(pycomm.PeerFailure) as raised:
        for _ in itertools.count():
            square_loss(model, rows).backward()
    assert raised.value.ranks == (1,)
    return str(raised.value)


@EVERY_MODE
def test_a_rank_that_dies_is_named_by_the_backward_of_the_others(mode: str) -> None:
    first, died, last = run_on_devices(survivor, 3, mode=mode, dies=(1,))
    assert "rank 1" in first
    assert "rank 1" in last
    assert isinstance(died, Died)


def without_the_group(me: Rank) -> str:
    model = pycomm.DataParallel(odd().to(here()))
    rows = torch.ones(3, 5, device=here())
    square_loss(model, rows).backward()
    if me.rank == 0:
        dist.group.WORLD._get_backend(here()).abort()
        hear(me, "raised")
        return ""
    with pytest.raises(pycomm.CommError) as raised:
        for _ in itertools.count():
            square_loss(model, rows).backward()
    tell(me, "raised")
    return str(raised.value)


@EVERY_MODE
def test_when_the_group_is_aborted_nobody_waits_for_what_hosts_tell_each_other(mode: str) -> None:
    _, told = run_on_devices(without_the_group, 2, mode=mode)
    assert "rank 0" in told
