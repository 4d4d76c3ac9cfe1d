# SPDX-License-Identifier: MIT
"""Starts rank processes quickly: imports torch once, then forks one process for each job it reads.

Run as a program by fault_ranks.Starter. Reads one JSON job a line from standard input, answers on
standard output with {"pid": ...} for each and {"exited": pid, "status": ...} when one has ended. A
rank is a process of its own which leaves through the end of `__main__`, so that exceptions,
sys.exit and atexit take the way they take in any script. Ranks die with this process and this
process with its parent.
"""

import ctypes
import gc
import json
import os
import select
import signal
import sys

import torch

import pycomm
from pycomm.native import load

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def become_rank(job: dict) -> None:
    """What a child does before its scenario: own files, own environment."""
    die_with_parent()
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(f"{job['dir']}/rank{job['rank']}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.closerange(3, 256)
    os.environ.update(job["env"])
    torch.set_num_threads(1)


def answer(**words: object) -> None:
    os.write(1, (json.dumps(words) + "\n").encode())


def reap() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        answer(exited=pid, status=os.waitstatus_to_exitcode(status))


def next_job() -> dict:
    """Serves until this process is a child with a job to do."""
    wake, alarm = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(alarm)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    unread = b""
    while True:
        ready, _, _ = select.select([0, wake], [], [])
        if wake in ready:
            os.read(wake, 4096)
            reap()
        if 0 not in ready:
            continue
        piece = os.read(0, 65536)
        if not piece:
            os._exit(0)
        *lines, unread = (unread + piece).split(b"\n")
        for line in lines:
            job = json.loads(line)
            pid = os.fork()
            if pid == 0:
                become_rank(job)
                return job
            answer(pid=pid)


if __name__ == "__main__":
    die_with_parent()
    load()
    assert pycomm.Options
    import fault_scenarios

    gc.freeze()  # what is loaded by now need not be copied for, or collected by, any rank
    job = next_job()
    # From here on this is a rank. Nothing catches what the scenario raises.
    fault_scenarios.run(job)
    sys.stdout.flush()
