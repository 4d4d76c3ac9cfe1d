# SPDX-License-Identifier: MIT
"""A training run that is killed in the middle of every save, again and again: a script.

    python checkpoint_kills.py FOLDER SEED KILLS STEPS

Each life is a fork of this process, which itself never trains, so that a life costs some
milliseconds. A life loads the newest checkpoint, or now and then an older one, checks that it is
what the lives before have made the newest and that its losses are those of a run that was never
disturbed, trains one step, begins to save, and is killed with SIGKILL at a random operation of the
save. At the end one life goes on to STEPS. Prints what it did; exits with 1 at a failure.
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
from pycomm.checkpoint.folder import Found, found


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


def begin(checkpointer: Checkpointer, newest: int | None, step: int | None) -> dict[str, object]:
    """Load; nothing but whole checkpoints may be there under a checkpoint's name."""
    state = make_run()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        loaded = checkpointer.load(state)
        assert loaded == newest, f"step {loaded} is the newest instead of {newest}"
        if loaded is None:
            seed_all(1)
        if step is not None:
            checkpointer.load(state, step)
    return state


def live(folder: Path, at: int, losses: list[float], newest: int | None, step: int | None) -> None:
    files = KillingFiles(at)
    checkpointer = Checkpointer(folder, keep=2, files=files)
    state = begin(checkpointer, newest, step)
    done = len(state["losses"])  # type: ignore[arg-type]
    assert state["losses"] == losses[:done], "a checkpoint has another run's losses"
    files.done, files.log = 0, []
    if done < len(losses):
        next(train(state, done + 1))
        checkpointer.save(done + 1, state)
    checkpointer.close()
    print(f"  lived to the end, {files.done} operations")


def last(folder: Path, losses: list[float], newest: int | None) -> None:
    with Checkpointer(folder, keep=2) as checkpointer:
        state = begin(checkpointer, newest, None)
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
    there: set[Found] = set()
    newest: int | None = None
    while ends[signal.SIGKILL] < kills:
        at = draw.choice(rare) if draw.random() < 0.6 else draw.randrange(len(log))
        older = sorted({one.step for one in there} - {newest})
        step = draw.choice(older) if older and draw.random() < 0.3 else None
        status = in_fork(live, folder / "run", at, losses, newest, step)
        ends[status] += 1
        for one in set(found(folder / "run")) - there:  # one that was given its name
            newest = one.step
            print(f"  saved {one.path.name}" + ("" if step is None else f", after {step}"))
        there = set(found(folder / "run"))
        if status not in (0, signal.SIGKILL) or sum(ends.values()) > 3 * kills:
            print(f"a life ended with {status} instead of SIGKILL; ends: {dict(ends)}")
            return 1
    print(f"{kills} kills, {ends[0]} lives to the end")
    return int(in_fork(last, folder / "run", losses, newest) != 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *map(int, sys.argv[2:5])))
