# SPDX-License-Identifier: MIT
"""torch.compile: functional collectives inside a graph, and DDP around a compiled model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from ranks import Rank, run_ranks
from reference_run import Run, alone, expect_equal, gpt, sgd, tokens_of, train
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.parallel import DistributedDataParallel


def collectives(x: Tensor) -> tuple[Tensor, ...]:
    """Each functional collective between computations; x has a multiple of world_size rows."""
    world = dist.group.WORLD
    summed = functional.all_reduce(x * 2, "sum", world) + 1
    largest = functional.all_reduce(x, "max", world)
    gathered = functional.all_gather_tensor(x + 1, 0, world).sum(0)
    block = functional.reduce_scatter_tensor(x * 3, "sum", 0, world) - 1
    swapped = functional.all_to_all_single(x + 0.5, None, None, world) * 2
    sent = functional.broadcast(x - 1, 1, world) + 2
    together = functional.all_reduce_coalesced([x, x * x], "sum", world)
    return summed, largest, gathered, block, swapped, sent, *together


def two_collectives(x: Tensor) -> tuple[Tensor, ...]:
    """Few kernels, for inductor: the compiler takes seconds for each."""
    world = dist.group.WORLD
    summed = functional.all_reduce(x * 2, "sum", world)
    return (functional.all_gather_tensor(summed + x, 0, world),)


# Of one process, scalar code, and no precompiled header, which would stay in /tmp.
INDUCTOR = {"compile_threads": 1, "cpp.vec_isa_ok": False, "cpp_cache_precompile_headers": False}


def cache_in(folder: Path) -> dict[str, str]:
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder)}


def compiled_collectives(me: Rank, backend: str) -> set[str]:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    function = two_collectives if backend == "inductor" else collectives
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    with torch._inductor.config.patch(INDUCTOR):
        for step in range(3):
            x = torch.arange(6.0 * me.world_size).view(-1, 3) * (me.rank + 1) + step
            for got, expected in zip(compiled(x), function(x), strict=True):
                assert torch.equal(got, expected), f"step {step}"
    assert counter.frame_count == 1, "compiled more than once"
    targets = {str(node.target) for graph in counter.graphs for node in graph.graph.nodes}
    return {target.split(".")[1] for target in targets if target.startswith("_c10d_functional.")}


NAMES = {
    "all_reduce",
    "all_reduce_coalesced",
    "all_gather_into_tensor",
    "reduce_scatter_tensor",
    "all_to_all_single",
    "broadcast",
    "wait_tensor",
}


@pytest.mark.parametrize(
    ("backend", "world_sizes"), [("aot_eager", (3,)), ("inductor", (2,))], ids=str
)
def test_compiled_collectives_give_what_eager_ones_give(
    backend: str, world_sizes: tuple[int, ...], tmp_path: Path
) -> None:
    if backend == "inductor" and not shutil.which("g++"):
        pytest.skip("inductor needs g++")
    for world_size in world_sizes:
        for names in run_ranks(compiled_collectives, world_size, backend, env=cache_in(tmp_path)):
            few = {"all_reduce", "all_gather_into_tensor", "wait_tensor"}
            assert names >= (few if backend == "inductor" else NAMES), names


def eager_calls(x: Tensor) -> Tensor:
    """c10d's own functions, which dynamo turns into functional ones."""
    dist.all_reduce(x)
    out = torch.empty(x.shape[0] * dist.get_world_size(), *x.shape[1:])
    dist.all_gather_into_tensor(out, x * 2)
    block = torch.empty_like(x)
    dist.reduce_scatter_tensor(block, out)
    return block + x


def compiled_eager_calls(me: Rank) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(eager_calls, backend="aot_eager", fullgraph=True)
    for step in range(2):
        x = torch.arange(6.0).view(2, 3) + me.rank + step
        y = x.clone()
        got, expected = compiled(x), eager_calls(y)
        assert torch.equal(got, expected)
        assert torch.equal(x, y), "the compiled all_reduce left its input"


def test_dynamo_rewrites_calls_of_c10d(tmp_path: Path) -> None:
    run_ranks(compiled_eager_calls, 2, env=cache_in(tmp_path))


def compiled_ddp(me: Rank, inside: bool) -> Run:
    """DDP around a compiled model, and DDP compiled whole."""
    torch._dynamo.reset()
    model = gpt()
    if inside:
        model = DistributedDataParallel(torch.compile(model, backend="aot_eager"))
    else:
        model = torch.compile(DistributedDataParallel(model), backend="aot_eager")
    return train(model, sgd(model.parameters()), tokens_of(me.rank))


@pytest.mark.parametrize("inside", [True, False], ids=["model compiled", "ddp compiled"])
def test_a_compiled_model_trains_in_ddp_as_one_process_does(inside: bool, tmp_path: Path) -> None:
    runs = run_ranks(compiled_ddp, 2, inside, env=cache_in(tmp_path))
    # Compiled graphs may fuse and reorder what eager runs one by one.
    expect_equal(runs, alone(gpt, [tokens_of(rank) for rank in range(2)]), rtol=1e-4, atol=1e-6)
    for name, value in runs[0].state.items():
        assert torch.equal(value, runs[1].state[name]), f"{name}: ranks differ"
