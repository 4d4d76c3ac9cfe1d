# SPDX-License-Identifier: MIT
"""torchrun starts all workers again when one of them died: the second generation connects anew."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

SCRIPT = """
    import os
    import signal

    import torch
    import torch.distributed as dist

    generation = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    dist.init_process_group("pycomm")
    rank, p = dist.get_rank(), dist.get_world_size()
    x = torch.full((1000,), float(rank + 1))
    dist.all_reduce(x)
    assert (x == p * (p + 1) / 2).all()
    if generation == 0 and rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        dist.all_reduce(x)
    except RuntimeError as error:
        os.write(1, f"generation {generation} rank {rank}: {type(error).__name__}\\n".encode())
        raise
    dist.destroy_process_group()
    # Once more over the agent's store, which both generations share.
    dist.init_process_group("pycomm")
    dist.barrier()
    os.write(1, f"generation {generation} rank {rank} of {p} done\\n".encode())
    dist.destroy_process_group()
"""


def test_torchrun_restarts_the_job_after_a_worker_died(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--local-addr", "localhost", "--nproc-per-node=3", "--max-restarts=1"]
    command += ["--monitor-interval=0.1", str(script)]
    clean = {name: os.environ[name] for name in os.environ if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        command,
        env={**clean, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
    lines = done.stdout.splitlines()
    expected = [f"generation 1 rank {rank} of 3 done" for rank in range(3)]
    assert sorted(line for line in lines if "generation 1" in line) == expected
    # torchrun may end the survivors before they have told what they saw; what they told is right.
    first = [line for line in lines if "generation 0" in line]
    assert all(line.endswith("PeerFailure") for line in first), first
