# SPDX-License-Identifier: MIT
"""Checkpoints of several ranks: other world sizes and layouts, and errors of one rank."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from checkpoint_runs import FailingFiles, finish, make_run, seed_all, train
from layered_gpt import ROUNDING, layered_gpt
from ranks import Rank, run_ranks
from reference_run import adam, expect_equal, tokens_of
from reference_run import train as train_gpt
from test_distributed_checkpoint import go_on_alone, logits_norm, make_fsdp2, whole
from test_tensor_parallel import with_sequence_parallel
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

import pycomm
from pycomm.checkpoint import Checkpointer, CheckpointError
from pycomm.compression import ErrorFeedback
from pycomm.data import ShardedLoader, ShardedSampler

# ---- another layout: models and optimizers by name


def save_fsdp2(me: Rank, folder: str) -> Any:
    model, optimizer = make_fsdp2()
    train_gpt(model, optimizer, tokens_of(me.rank, steps=2))
    return save_gpt(me, folder, model, optimizer)


def save_ddp(me: Rank, folder: str) -> Any:
    model = DistributedDataParallel(layered_gpt())
    optimizer = adam(model.parameters())
    train_gpt(model, optimizer, tokens_of(me.rank, steps=2))
    return save_gpt(me, folder, model, optimizer)


def save_data_parallel(me: Rank, folder: str) -> Any:
    model = pycomm.DataParallel(layered_gpt())
    optimizer = adam(model.parameters())
    train_gpt(model, optimizer, tokens_of(me.rank, steps=2))
    return save_gpt(me, folder, model, optimizer, model.module)


def save_tensor_parallel(me: Rank, folder: str) -> Any:
    mesh = init_device_mesh("cpu", (me.world_size,))
    model = parallelize_module(layered_gpt(), mesh, with_sequence_parallel())
    optimizer = adam(model.parameters())
    train_gpt(model, optimizer, tokens_of(0, steps=2), lambda model, x: logits_norm(model, x))
    return save_gpt(me, folder, model, optimizer)


def save_gpt(me: Rank, folder: str, model: Any, optimizer: Any, inner: Any = None) -> Any:
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(2, {"model": model, "optimizer": optimizer})
        checkpointer.wait()
        state = whole(inner or model, optimizer)
    return state if me.rank == 0 else None


def load_fsdp2(me: Rank, folder: str) -> Any:
    model, optimizer = make_fsdp2(seed=100 + me.world_size)
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.load({"model": model, "optimizer": optimizer}) == 2
    loaded = whole(model, optimizer)
    run = train_gpt(model, optimizer, tokens_of(me.rank, steps=2))
    return (loaded if me.rank == 0 else None), run


def load_tensor_parallel(me: Rank, folder: str) -> Any:
    mesh = init_device_mesh("cpu", (me.world_size,))
    torch.manual_seed(7)
    model = parallelize_module(layered_gpt(), mesh, with_sequence_parallel())
    optimizer = adam(model.parameters())
    with Checkpointer(folder) as checkpointer:
        assert checkpointer.load({"model": model, "optimizer": optimizer}) == 2
    loaded = whole(model, optimizer)
    return loaded if me.rank == 0 else None


@pytest.mark.parametrize(
    "saver, saved_at",
    [(save_fsdp2, 3), (save_ddp, 2), (save_data_parallel, 3), (save_tensor_parallel, 2)],
)
def test_a_checkpoint_is_loaded_in_another_layout_and_world_size(
    saver: Any, saved_at: int, tmp_path: Path
) -> None:
    saved = run_ranks(saver, saved_at, str(tmp_path))[0]
    for world_size in (4, 1) if saver is save_fsdp2 else (2,):
        results = run_ranks(load_fsdp2, world_size, str(tmp_path))
        torch.testing.assert_close(results[0][0], saved, rtol=0, atol=0)
        runs = [run for _, run in results]
        expect_equal(runs, go_on_alone(saved, world_size), **ROUNDING)
    loaded = run_ranks(load_tensor_parallel, 2, str(tmp_path))[0]
    torch.testing.assert_close(loaded, saved, rtol=0, atol=0)
    # And without torch.distributed.
    model = layered_gpt()
    optimizer = adam(model.parameters())
    with Checkpointer(tmp_path, random_state=False) as checkpointer:
        assert checkpointer.load({"model": model, "optimizer": optimizer}) == 2
    torch.testing.assert_close(whole(model, optimizer), saved, rtol=0, atol=0)


# ---- another world size: the data, and what each rank has its own of


def train_ranks(me: Rank, folder: str, stop: int, steps: int) -> Any:
    """Train on from the newest checkpoint, save at `stop` while training goes on to `steps`."""
    seed_all(1 + me.rank)
    state = make_run(me.rank, me.world_size, pycomm.DataParallel, torch.nn.LayerNorm)
    seen: list[int] = []
    data = state["data"].dataset

    class Seen(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> Any:
            seen.append(index)
            return data[index]

    sampler = ShardedSampler(Seen(), batch_size=4 // me.world_size)
    state["data"] = ShardedLoader(Seen(), sampler)
    state["model"].module[2].p = 0.0  # dropout differs between world sizes
    with Checkpointer(folder) as checkpointer:
        begin = checkpointer.load(state) or 0
        for step in train(state, steps):
            if step == stop:
                checkpointer.save(step, state)
                at_stop = len(seen)
        checkpointer.wait()
    return begin, state["losses"], seen[: at_stop if stop else None]


@pytest.mark.parametrize("worlds", [(4, 2, 1), (1, 4, 2), (2, 2, 4)])
def test_no_sample_is_lost_or_repeated_when_the_world_size_changes(
    worlds: tuple[int, ...], tmp_path: Path
) -> None:
    handed: list[int] = []
    stops = (3, 7, 0)
    for world_size, begin, stop in zip(worlds, (0, *stops[:2]), stops, strict=True):
        # 38 samples are 9 steps of 4 and one of 2, which 4 ranks take along in the ninth.
        steps = stop + 2 if stop else (9 if world_size == 4 else 10)
        results = run_ranks(train_ranks, world_size, str(tmp_path), stop, steps)
        assert all(result[0] == begin for result in results)
        for _, _, seen in results:
            handed += seen
    assert sorted(handed) == list(range(38)), "one epoch"


def own_states(me: Rank, folder: str, feedback: bool) -> Any:
    torch.manual_seed(me.rank)
    model = DistributedDataParallel(torch.nn.Linear(300, 50))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state: dict[str, Any] = {"model": model, "optimizer": optimizer}
    if feedback:
        state["feedback"] = ErrorFeedback("int4", model, optimizer)
        model.register_comm_hook(state["feedback"], pycomm.compression.hook)
    with Checkpointer(folder) as checkpointer:
        began = checkpointer.load(state)
        random = torch.rand(3)
        for _ in range(2):
            x = torch.randn(4, 300, generator=torch.Generator().manual_seed(me.rank))
            model(x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        if began is None:
            checkpointer.save(2, state)
            random = torch.rand(3)
            for _ in range(2):
                x = torch.randn(4, 300, generator=torch.Generator().manual_seed(me.rank))
                model(x).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
    residual = state["feedback"].state_dict()[f"rank{me.rank}"]["residual"] if feedback else None
    return random, residual, model.module.weight.detach().clone()


def test_random_states_and_residuals_are_each_ranks_own(tmp_path: Path) -> None:
    first = run_ranks(own_states, 2, str(tmp_path), True)
    again = run_ranks(own_states, 2, str(tmp_path), True)
    assert not torch.equal(first[0][0], first[1][0])
    for (random, residual, weight), (random2, residual2, weight2) in zip(first, again, strict=True):
        assert torch.equal(random, random2) and torch.equal(weight, weight2)
        torch.testing.assert_close(residual, residual2, rtol=0, atol=0)
        assert any(one.abs().max() > 0 for one in residual.values())
    run_ranks(own_states, 3, str(tmp_path), True)


# ---- errors


def fails_on_one(me: Rank, folder: str, at: int) -> Any:
    state = make_run(me.rank, me.world_size)
    files = FailingFiles(at if me.rank == me.world_size - 1 else None)
    with Checkpointer(folder, files=files) as checkpointer:
        checkpointer.save(1, state)
        try:
            checkpointer.wait()
            error = ""
        except CheckpointError as caught:
            error = str(caught)
        dist.barrier()
        left = sorted(os.listdir(folder))
        dist.barrier()
        checkpointer.save(2, state)
        checkpointer.wait()
        assert checkpointer.load(state) == 2
    return error, left


@pytest.mark.parametrize("at", [0, 1, 20])
def test_an_error_of_one_ranks_disk_is_raised_by_all_with_its_rank(at: int, tmp_path: Path) -> None:
    results = run_ranks(fails_on_one, 3, str(tmp_path), at)
    for error, left in results:
        assert "rank 2: OSError: [Errno 28] No space left on device" in error
        assert "checkpoint of step 1" in error and left == []


def not_shared(me: Rank, folder: str) -> str:
    before = os.getcwd()
    os.makedirs(f"{folder}/{min(me.rank, 1)}", exist_ok=True)
    os.chdir(f"{folder}/{min(me.rank, 1)}")  # one name, two places
    try:
        Checkpointer("checkpoints", async_=False).save(1, {"x": 1})
    except CheckpointError as error:
        return str(error)
    finally:
        os.chdir(before)
    return ""


def test_a_folder_that_ranks_do_not_share_is_said_so(tmp_path: Path) -> None:
    for error in run_ranks(not_shared, 3, str(tmp_path)):
        assert "ranks 1, 2: FileNotFoundError" in error
        assert "on a file system that all ranks share" in error


def verifies(me: Rank, folder: str) -> Any:
    state = make_run(me.rank, me.world_size)
    with Checkpointer(folder) as checkpointer, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step = checkpointer.load(state)
    return step, [str(one.message) for one in caught if "is broken" in str(one.message)]


def saves_twice(me: Rank, folder: str) -> None:
    state = make_run(me.rank, me.world_size)
    with Checkpointer(folder) as checkpointer:
        checkpointer.save(1, state)
        finish(state, 3)
        checkpointer.save(3, state)


def test_all_ranks_leave_a_broken_checkpoint_aside_and_say_so(tmp_path: Path) -> None:
    run_ranks(saves_twice, 3, str(tmp_path))
    path = tmp_path / "step-00000003" / "__1_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    for step, said in run_ranks(verifies, 2, str(tmp_path)):
        assert step == 1
        assert len(said) == 1 and "step-00000003/__1_0.distcp: it has" in said[0]
