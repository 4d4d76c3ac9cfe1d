# SPDX-License-Identifier: MIT
"""A training run that is killed in the middle of every save, again and again: a script.

    python checkpoint_kills.py FOLDER SEED KILLS STEPS

Each life is a fork of this process, which itself never trains, so that a life costs some
milliseconds. A life loads the newest checkpoint, checks that its losses are those of a run that was
never disturbed, trains one step, begins to save, and is killed with SIGKILL at a random operation
of the save. At the end one life goes on to STEPS. Prints what it did; exits with 1 at a failure.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import traceback
import warnings
from collections import Counter
from pathlib import Path

import torch
import torch._dynamo  # torch.optim imports it when first used: here once instead of in each life
from checkpoint_runs import FailingFiles, finish, make_run, operations, seed_all, train

from pycomm.checkpoint import Checkpointer


class KillingFiles(FailingFiles):
    """Kills this process at the operation of a number."""

    def fail(self, path: Path) -> None:
        os.write(1, f"  killed at {self.log[-1]}\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


def in_fork(function: object, *arguments: object) -> int:
    """Run a function in a fork of this process; return how that ended, as waitpid says."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1]
    try:
        function(*arguments)  # type: ignore[operator]
        sys.stdout.flush()
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        os._exit(1)


def undisturbed(steps: int, path: Path) -> None:
    state = make_run()
    seed_all(1)
    torch.save(finish(state, steps), path)


def begin(checkpointer: Checkpointer) -> dict[str, object]:
    """Load; nothing but whole checkpoints may be there under a checkpoint's name."""
    state = make_run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        if checkpointer.load(state) is None:
            seed_all(1)
    return state


def live(folder: Path, at: int, losses: list[float]) -> None:
    files = KillingFiles(at)
    checkpointer = Checkpointer(folder, keep=2, files=files)
    state = begin(checkpointer)
    done = len(state["losses"])  # type: ignore[arg-type]
    assert state["losses"] == losses[:done], "a checkpoint has another run's losses"
    files.done, files.log = 0, []
    if done < len(losses):
        next(train(state, done + 1))
        checkpointer.save(done + 1, state)
    checkpointer.close()
    print(f"  lived to the end, {files.done} operations")


def last(folder: Path, losses: list[float]) -> None:
    with Checkpointer(folder, keep=2) as checkpointer:
        state = begin(checkpointer)
        print(f"the last life begins at step {len(state['losses'])}")  # type: ignore[arg-type]
        assert finish(state, len(losses)) == losses


def main(folder: Path, seed: int, kills: int, steps: int) -> int:
    print(f"seed {seed}")
    draw = random.Random(seed)
    in_fork(undisturbed, steps, folder / "losses")
    losses = torch.load(folder / "losses")
    in_fork(lambda: (folder / "log").write_text("\n".join(operations(folder / "count"))))
    log = (folder / "log").read_text().splitlines()
    rare = [at for at, line in enumerate(log) if not line.startswith("write")]
    ends: Counter[int] = Counter()
    while ends[signal.SIGKILL] < kills:
        at = draw.choice(rare) if draw.random() < 0.6 else draw.randrange(len(log))
        status = in_fork(live, folder / "run", at, losses)
        ends[status] += 1
        if status not in (0, signal.SIGKILL) or sum(ends.values()) > 3 * kills:
            print(f"a life ended with {status} instead of SIGKILL; ends: {dict(ends)}")
            return 1
    print(f"{kills} kills, {ends[0]} lives to the end")
    return int(in_fork(last, folder / "run", losses) != 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
