# SPDX-License-Identifier: MIT
"""Distributed checkpoints: saved by some ranks, loaded by others, and trained on from there."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from layered_gpt import ROUNDING, layered_gpt
from ranks import Rank, run_ranks
from reference_run import Run, adam, alone, expect_equal, tokens_of, train
from test_tensor_parallel import shard_layers, with_sequence_parallel
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

WHOLE = StateDictOptions(full_state_dict=True)
FROM_RANK_ZERO = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def make_fsdp2(seed: int | None = None) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The model, sharded over all ranks; other weights where a seed is given."""
    model = layered_gpt()
    if seed is not None:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
    shard_layers(model, init_device_mesh("cpu", (dist.get_world_size(),)))
    return model, adam(model.parameters())


def whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Model and optimizer as one process would hold them."""
    of_model, of_optimizer = get_state_dict(model, optimizer, options=WHOLE)
    # A copy: what is not sharded is the optimizer's own, and changes with its next step.
    return copy.deepcopy({"model": of_model, "optimizer": of_optimizer["state"]})


def load(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str) -> None:
    of_model, of_optimizer = get_state_dict(model, optimizer)
    state = {"model": of_model, "optimizer": of_optimizer}
    dcp.load(state, checkpoint_id=folder)
    set_state_dict(
        model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
    )


# ---- saved and loaded


def save(me: Rank, folder: str) -> dict[str, Any] | None:
    model, optimizer = make_fsdp2()
    train(model, optimizer, tokens_of(me.rank, steps=2))
    of_model, of_optimizer = get_state_dict(model, optimizer)
    dcp.save({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=folder)
    state = whole(model, optimizer)
    return state if me.rank == 0 else None


def save_tensor_parallel(me: Rank, folder: str) -> dict[str, Any] | None:
    mesh = init_device_mesh("cpu", (me.world_size,))
    model = parallelize_module(layered_gpt(), mesh, with_sequence_parallel())
    optimizer = adam(model.parameters())
    train(model, optimizer, tokens_of(0, steps=2), lambda model, x: logits_norm(model, x))
    of_model, of_optimizer = get_state_dict(model, optimizer)
    dcp.save({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=folder)
    state = whole(model, optimizer)
    return state if me.rank == 0 else None


def logits_norm(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(tokens[:, :-1])
    logits = logits.full_tensor() if isinstance(logits, DTensor) else logits
    return logits.square().mean()


def load_and_go_on(me: Rank, folder: str) -> tuple[dict[str, Any] | None, Run]:
    model, optimizer = make_fsdp2(seed=100 + me.world_size)
    load(model, optimizer, folder)
    loaded = whole(model, optimizer)
    run = train(model, optimizer, tokens_of(me.rank, steps=2))
    return (loaded if me.rank == 0 else None), run


def go_on_alone(state: dict[str, Any], world_size: int) -> list[Run]:
    """The same steps from the same state in one process."""
    state = copy.deepcopy(state)  # an optimizer goes on in the tensors that it loads

    def make_model() -> nn.Module:
        model = layered_gpt()
        model.load_state_dict(state["model"])
        return model

    def make_optimizer(parameters: Any) -> torch.optim.Optimizer:
        optimizer = adam(parameters)
        names = [name for name, _ in layered_gpt().named_parameters()]
        by_index = {i: state["optimizer"][name] for i, name in enumerate(names)}
        optimizer.load_state_dict({**optimizer.state_dict(), "state": by_index})
        return optimizer

    return alone(make_model, [tokens_of(r, steps=2) for r in range(world_size)], make_optimizer)


@pytest.mark.parametrize("saver, saved_at", [(save, 4), (save, 2), (save_tensor_parallel, 2)])
def test_a_checkpoint_is_loaded_at_another_world_size(
    saver: Any, saved_at: int, tmp_path: Path
) -> None:
    saved = run_ranks(saver, saved_at, str(tmp_path))[0]
    for world_size in (3, 1):
        results = run_ranks(load_and_go_on, world_size, str(tmp_path))
        torch.testing.assert_close(results[0][0], saved, rtol=0, atol=0)
        runs = [run for _, run in results]
        expect_equal(runs, go_on_alone(saved, world_size), **ROUNDING)


# ---- saved while training goes on


def save_meanwhile(me: Rank, folder: str) -> tuple[dict[str, Any] | None, Run]:
    """A group of its own for the saver's thread: its collectives and training's have no order."""
    savers = dist.new_group()
    model, optimizer = make_fsdp2()
    train(model, optimizer, tokens_of(me.rank, steps=2))
    state = whole(model, optimizer)
    of_model, of_optimizer = get_state_dict(model, optimizer)
    pending = dcp.async_save(
        {"model": of_model, "optimizer": of_optimizer}, checkpoint_id=folder, process_group=savers
    )
    run = train(model, optimizer, tokens_of(me.rank, steps=4)[2:])
    pending.result(timeout=60)
    return (state if me.rank == 0 else None), run


def test_an_asynchronous_save_holds_the_state_at_its_call(tmp_path: Path) -> None:
    results = run_ranks(save_meanwhile, 2, str(tmp_path))
    expect_equal(
        [run for _, run in results],
        [
            Run(run.losses[2:], run.state)
            for run in alone(layered_gpt, [tokens_of(rank) for rank in range(2)], adam)
        ],
        **ROUNDING,
    )
    loaded, _ = run_ranks(load_and_go_on, 3, str(tmp_path))[0]
    torch.testing.assert_close(loaded, results[0][0], rtol=0, atol=0)


# ---- whole state dicts


def from_rank_zero(me: Rank) -> None:
    """Rank 0 has a whole state dict, the others have nothing; it reaches every shard."""
    source_model = layered_gpt()
    source_optimizer = adam(source_model.parameters())
    train(source_model, source_optimizer, tokens_of(0, steps=1))
    expected = whole(source_model, source_optimizer)
    of_model, of_optimizer = get_state_dict(source_model, source_optimizer, options=WHOLE)
    model, optimizer = make_fsdp2(seed=me.rank)
    set_model_state_dict(model, of_model if me.rank == 0 else {}, options=FROM_RANK_ZERO)
    set_optimizer_state_dict(
        model, optimizer, of_optimizer if me.rank == 0 else {}, options=FROM_RANK_ZERO
    )
    got = whole(model, optimizer)
    if me.rank == 0:
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    # What every rank holds itself, without asking the others once more.
    for name, parameter in model.named_parameters():
        value = expected["model"][name]
        shards = value.chunk(me.world_size)
        mine = shards[me.rank] if me.rank < len(shards) else value[:0]
        assert torch.equal(parameter.to_local(), mine), name


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_whole_state_dict_of_rank_zero_reaches_every_shard(world_size: int) -> None:
    run_ranks(from_rank_zero, world_size)
