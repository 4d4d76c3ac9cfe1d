# SPDX-License-Identifier: MIT
"""Programs that name another backend run on pycomm with PYCOMM_REPLACE, and only with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import Rank, run_ranks

import pycomm
from pycomm import replace

CPU = torch.device("cpu")


def runs_on(group: Any = None) -> str:
    """The backend that does the work, whatever get_backend() answers."""
    return str((group or dist.group.WORLD)._get_backend(CPU).name())


def names_and_sums(me: Rank, backend: str | None) -> dict[str, Any]:
    """What a program sees of a default group and of the groups it makes from it."""
    replace.install()
    me.init(name=backend)
    x = torch.full((5,), float(me.rank))
    dist.all_reduce(x)
    assert (x == sum(range(me.world_size))).all()
    objects = [None] * me.world_size
    dist.all_gather_object(objects, me.rank)
    assert objects == list(range(me.world_size))
    dist.barrier()
    named, inherited = dist.new_group(backend="gloo"), dist.new_group()
    last = dist.new_group([me.world_size - 1], backend="gloo")
    seen = {
        "name": dist.get_backend(),
        "config": dist.get_backend_config(),
        "runs": [runs_on(), runs_on(named), runs_on(inherited)],
        "subgroups": [dist.get_backend(named), dist.get_backend(inherited)],
        "member": last is not dist.GroupMember.NON_GROUP_MEMBER,
    }
    dist.destroy_process_group()
    return seen


def answer(backend: str | None, replaced: str, keep: str = "1", world_size: int = 2) -> Any:
    """Rank 0's view; every rank must have the same."""
    env = {"PYCOMM_REPLACE": replaced, "PYCOMM_KEEP_NAME": keep} if replaced else {}
    seen = run_ranks(names_and_sums, world_size, backend, env=env, init=False)
    assert [one.pop("member") for one in seen] == [False] * (world_size - 1) + [True]
    assert all(one == seen[0] for one in seen)
    return seen[0]


@pytest.mark.parametrize("world_size", [2, 3])
def test_a_replaced_backend_keeps_its_name_and_runs_on_pycomm(world_size: int) -> None:
    assert answer("gloo", "gloo", world_size=world_size) == {
        "name": "gloo",
        "config": "cpu:gloo,cuda:gloo",
        "runs": ["pycomm"] * 3,
        "subgroups": ["gloo", "gloo"],
    }


def test_the_name_can_be_pycomms() -> None:
    assert answer("gloo", "gloo", keep="0") == {
        "name": "pycomm",
        "config": "cpu:pycomm,cuda:pycomm",
        "runs": ["pycomm"] * 3,
        "subgroups": ["pycomm", "pycomm"],
    }


def test_without_the_variable_nothing_changes() -> None:
    seen = answer("gloo", "")
    assert (seen["name"], seen["runs"]) == ("gloo", ["gloo"] * 3)


def test_another_backend_than_the_named_one_stays() -> None:
    seen = answer("gloo", "nccl,mpi")
    assert (seen["name"], seen["runs"]) == ("gloo", ["gloo"] * 3)


def test_a_group_without_a_name_runs_on_pycomm_where_torch_would_take_the_replaced_one() -> None:
    if torch._C._get_accelerator().type != "cpu":
        pytest.skip("torch takes the accelerator's backend here")
    seen = answer(None, "gloo")
    assert (seen["name"], seen["runs"]) == ("undefined", ["pycomm"] * 3)


@pytest.mark.parametrize("backend", ["ucc", "nccl", "xccl"])
def test_a_backend_that_this_torch_lacks_can_be_replaced(backend: str) -> None:
    seen = answer(backend, f"{backend},gloo")
    assert (seen["name"], seen["runs"]) == (backend, ["pycomm"] * 3)
    assert seen["config"] == f"cpu:{backend},cuda:{backend}"


def test_in_a_device_map_only_the_named_part_is_replaced() -> None:
    # A map with "cuda:gloo" is made without CUDA too, so both parts can be looked at.
    seen = answer("cpu:gloo,cuda:gloo", "gloo")
    assert (seen["name"], seen["config"]) == ("cpu:gloo,cuda:gloo",) * 2
    assert seen["runs"] == ["pycomm"] * 3
    seen = answer("cpu:ucc,cuda:gloo", "ucc")
    assert (seen["name"], seen["runs"][0]) == ("cpu:ucc,cuda:gloo", "pycomm")


def other_calls(me: Rank) -> dict[str, Any]:
    """Parts of torch that look at the name: they must work under it."""
    import torch.distributed.nn.functional as differentiable
    from torch.distributed.device_mesh import init_device_mesh

    replace.install()
    me.init(name="gloo")
    x = torch.arange(4.0, requires_grad=True)
    # Its default is the group that was there when the module was first imported.
    world = dist.group.WORLD
    outputs = [torch.empty(2), torch.empty(2)]
    parts = differentiable.all_to_all(outputs, list((x * 2).split(2)), group=world)
    sum(parts).sum().backward()
    gathered = differentiable.all_gather(x, group=world)
    sum(gathered).sum().backward()
    mesh = init_device_mesh("cpu", (2, 1), mesh_dim_names=("data", "model"))
    if dist.get_backend() == "gloo":  # torch before 2.14 refuses it under other names
        dist.monitored_barrier()
    with pytest.raises(pycomm.UsageError, match="PYCOMM_REPLACE='glo': 'glo' is no backend"):
        os.environ["PYCOMM_REPLACE"] = "glo"
        dist.new_group()
    seen = {
        "gradient": x.grad,
        "mesh": [runs_on(mesh.get_group(one)) for one in ("data", "model")],
        "mesh names": [dist.get_backend(mesh.get_group(one)) for one in ("data", "model")],
    }
    dist.destroy_process_group()
    return seen


@pytest.mark.parametrize("keep", ["1", "0"])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_torch_decides_by_name_works_under_either_name(keep: str) -> None:
    env = {"PYCOMM_REPLACE": "gloo", "PYCOMM_KEEP_NAME": keep}
    for seen in run_ranks(other_calls, 2, env=env, init=False):
        assert seen["mesh"] == ["pycomm", "pycomm"]
        assert seen["mesh names"] == (["gloo"] * 2 if keep == "1" else ["pycomm"] * 2)
        # 2 from the all_to_all, and each of the two ranks sums what it gathered.
        assert torch.equal(seen["gradient"], torch.full((4,), 4.0))


def join_as_mpi(me: Rank) -> tuple[str, str, int, int]:
    replace.install()
    dist.init_process_group("mpi")
    seen = (dist.get_backend(), runs_on(), dist.get_rank(), dist.get_world_size())
    x = torch.ones(2)
    dist.all_reduce(x)
    assert (x == me.world_size).all()
    dist.destroy_process_group()
    return seen


def test_an_mpi_program_joins_with_its_launchers_variables() -> None:
    alone = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}
    env = {"PYCOMM_REPLACE": "mpi", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    assert run_ranks(join_as_mpi, 1, env={**alone, **env}, init=False) == [("mpi", "pycomm", 0, 1)]


# ---- real programs, started as users start them

TRAIN = """
    import os

    import torch
    import torch.distributed as dist
    import torch.multiprocessing as mp


    def train(**place):
        dist.init_process_group("gloo", **place)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 2))
        model(torch.ones(4, 3)).sum().backward()
        first, second = dist.new_group([0]), dist.new_group()
        on = dist.group.WORLD._get_backend(torch.device("cpu")).name()
        # one write each: the ranks share a pipe
        os.write(1, f"rank {dist.get_rank()} asks {dist.get_backend()}, has {on}\\n".encode())
        dist.destroy_process_group()
"""
SPAWN = """

    def rank_main(rank, file):
        train(init_method=f"file://{file}", rank=rank, world_size=2)


    if __name__ == "__main__":
        import sys

        mp.spawn(rank_main, (sys.argv[1],), nprocs=2)
"""
SAID = [
    'pycomm run: init_process_group("gloo") runs on pycomm; get_backend() answers "gloo"',
    'pycomm run: new_group(backend="gloo") runs on pycomm; get_backend() answers "gloo"',
    'pycomm run: in all new_group(backend="gloo") 2 times',
]
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
RUN = ["-m", "pycomm", "run", "--replace", "gloo"]


def outcome(command: list[str], **variables: str) -> tuple[list[str], list[str]]:
    """Sorted lines of stdout, and pycomm's lines of stderr."""
    clean = {n: v for n, v in os.environ.items() if n not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, *command],
        env={**clean, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-3000:]}"
    said = re.findall(r"^.*(pycomm run: .*)$", done.stderr, re.MULTILINE)
    return sorted(done.stdout.splitlines()), said


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train_on_gloo.py"
    path.write_text(textwrap.dedent(TRAIN + "\n\n    if 'RANK' in os.environ:\n        train()\n"))
    (tmp_path / "spawn_on_gloo.py").write_text(textwrap.dedent(TRAIN + SPAWN))
    return path


REPLACED = ["rank 0 asks gloo, has pycomm", "rank 1 asks gloo, has pycomm"]


def test_a_ddp_script_that_says_gloo_runs_on_pycomm_under_torchrun(script: Path) -> None:
    assert outcome([*TORCHRUN, *RUN, str(script)]) == (REPLACED, SAID)


def test_ranks_that_the_script_spawns_run_on_pycomm(script: Path, tmp_path: Path) -> None:
    spawning = script.with_name("spawn_on_gloo.py")
    assert outcome([*RUN, str(spawning), str(tmp_path / "store")]) == (REPLACED, SAID)


def test_ranks_of_a_torchrun_that_the_program_starts_run_on_pycomm(script: Path) -> None:
    assert outcome([*RUN, *TORCHRUN, str(script)]) == (REPLACED, SAID)


def test_the_same_script_without_the_flag_runs_on_gloo(script: Path) -> None:
    # Port 0: the store of the only rank takes any free port.
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    assert outcome([str(script)], **alone) == (["rank 0 asks gloo, has gloo"], [])
