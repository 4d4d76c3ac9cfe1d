# SPDX-License-Identifier: MIT
"""A script that imports only torch and names "pycomm" runs under every usual launcher."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

BODY = """
    import os
    import sys

    import torch
    import torch.distributed as dist


    def train():
        dist.init_process_group("pycomm")
        rank, world_size = dist.get_rank(), dist.get_world_size()
        x = torch.full((1000,), float(rank + 1))
        dist.all_reduce(x)
        assert (x == world_size * (world_size + 1) / 2).all()
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(3, 2))
        model(torch.ones(4, 3)).sum().backward()
        dist.barrier()
        assert dist.get_backend() == "pycomm"
        # one write each: the ranks share a pipe
        os.write(1, f"rank {rank} of {world_size} done\\n".encode())
        dist.destroy_process_group()
"""
PLAIN = (
    BODY
    + """

    train()
"""
)
SPAWN = (
    BODY
    + """

    def rank_main(rank, world_size, port):
        os.environ.update(RANK=str(rank), WORLD_SIZE=str(world_size))
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
        train()


    if __name__ == "__main__":
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        port = store.port
        del store
        torch.multiprocessing.spawn(rank_main, (2, port), nprocs=2)
"""
)


def run(command: list[str], **variables: str) -> str:
    clean = {
        name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")
    }
    environment = {**clean, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture
def script(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(request.param))
    return path


@pytest.mark.parametrize("script", [PLAIN], indirect=True, ids=["plain"])
def test_a_script_that_imports_only_torch_runs_under_torchrun(script: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    out = run([*launcher, "--nproc-per-node=2", str(script)])
    assert sorted(out.split("\n")[:2]) == ["rank 0 of 2 done", "rank 1 of 2 done"]


@pytest.mark.parametrize("script", [SPAWN], indirect=True, ids=["spawn"])
def test_a_script_that_imports_only_torch_runs_with_mp_spawn(script: Path) -> None:
    out = run([sys.executable, str(script)])
    assert sorted(out.split("\n")[:2]) == ["rank 0 of 2 done", "rank 1 of 2 done"]


@pytest.mark.parametrize("script", [PLAIN], indirect=True, ids=["plain"])
def test_a_script_that_imports_only_torch_runs_as_a_single_process(script: Path) -> None:
    # Port 0: the store of the only rank takes any free port.
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    assert run([sys.executable, str(script)], **alone).strip() == "rank 0 of 1 done"
