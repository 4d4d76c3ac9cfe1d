# SPDX-License-Identifier: MIT
"""Runs a function on several ranks: as processes that are kept between tests, or as threads.

    def sums(me):                                   # at module level: it is pickled by name
        x = torch.full((4,), float(me.rank))
        dist.all_reduce(x)
        return x

    run_ranks(sums, 3)                              # [tensor(3.), ...], one result for each rank

    def sums_too(me):                               # any function: threads share memory
        x = torch.full((4,), float(me.rank))
        me.backend.allreduce([x]).wait()
        return x

    run_threads(sums_too, 3)

Processes come from a forkserver that has imported torch, so a new one costs some milliseconds. Each
run makes its own group over its own prefix of one TCPStore, and destroys it. After a run in which
anything went wrong the processes it used are replaced. All of them die with this process.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import importlib
import itertools
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import debug

PR_SET_PDEATHSIG = 1
TIMEOUT_S = 60.0
# After the first rank has failed the others get this long to say what they saw.
SETTLE_S = 5.0
# Imported once for all rank processes.
PRELOADED = ["torch.distributed.tensor.parallel", "torch.distributed.fsdp"]
PRELOADED += ["torch.distributed.pipelining", "pycomm.options"]


class RankError(AssertionError):
    """A rank raised, died or did not finish; the text has every rank's account."""


@dataclass(frozen=True)
class Died:
    """The result of a rank that `dies` allowed to die; exitcode is minus the signal's number."""

    exitcode: int | None


@dataclass
class Rank:
    """What a rank is told: handed to the function as its first argument.

    Attributes:
        rank: This rank.
        world_size: How many there are.
        store: A store of this run alone, for rendezvous of groups the function makes itself.
        backend: Threads only: the C++ backend of the group.
        group: Threads only: a ProcessGroup around it, for calls that Backend has no binding for.
    """

    rank: int
    world_size: int
    store: Any
    backend: Any = None
    group: Any = None

    def init(self, options: Any = None, name: str = "pycomm", timeout_s: float = TIMEOUT_S) -> None:
        """Makes the default group; for functions run with init=False."""
        self._inits = getattr(self, "_inits", 0) + 1
        dist.init_process_group(
            name,
            store=dist.PrefixStore(f"init{self._inits}", self.store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=timedelta(seconds=timeout_s),
            pg_options=options,
        )


# ---- processes


@dataclass
class _Job:
    """One rank's share of a run, as it travels to the rank's process."""

    path: list[str]
    call: bytes  # (function, args), pickled: unpickling needs `path`
    rank: int
    world_size: int
    number: int
    env: dict[str, str]
    init: bool
    timeout_s: float


@dataclass
class _Member:
    process: Any
    connection: Connection
    traces: Path
    broken: bool = False


@dataclass
class Pool:
    """Rank processes, started when first needed; member i is rank i of every run.

    Attributes:
        store: What all of them meet at; made with the first one unless it is given.
        enter: Called with its rank in each new process before it does anything; picklable.
    """

    members: list[_Member] = field(default_factory=list)
    store: Any = None
    enter: Callable[[int], None] | None = None
    folder: Any = None

    def member(self, index: int) -> _Member:
        while len(self.members) <= index:
            self.members.append(self._start(len(self.members)))
        if self.members[index].broken or not self.members[index].process.is_alive():
            self._end(self.members[index])
            self.members[index] = self._start(index)
        return self.members[index]

    def _start(self, rank: int) -> _Member:
        if self.store is None:
            self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        if self.folder is None:
            self.folder = tempfile.TemporaryDirectory(prefix="pycomm_ranks_")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        here, there = context.Pipe()
        traces = Path(self.folder.name) / f"trace{time.monotonic_ns()}"
        enter = None if self.enter is None else partial(self.enter, rank)
        address = (self.store.host, self.store.port)
        process = context.Process(
            target=_serve, args=(there, address, str(traces), enter), daemon=False
        )
        process.start()
        there.close()
        return _Member(process, here, traces)

    def _end(self, member: _Member) -> None:
        member.process.kill()
        member.process.join(timeout=10)
        member.connection.close()

    def close(self) -> None:
        for member in self.members:
            self._end(member)
        self.members.clear()


_pool = Pool()
_runs = itertools.count(1)  # of all pools: several may share a store
atexit.register(_pool.close)


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    transport: str | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    init: bool = True,
    dies: Sequence[int] = (),
    pool: Pool | None = None,
) -> list[Any]:
    """Runs function(me, *args) on world_size processes; returns their results by rank.

    Args:
        function: At module level, so that another process can import it.
        world_size: Number of ranks.
        args: Handed on; picklable.
        transport: PYCOMM_TRANSPORT of the run.
        env: More environment variables of the run; they are taken back afterwards.
        timeout_s: Seconds after which the run has failed. Also the group's timeout.
        init: Make a default group before and destroy it after; otherwise the function does.
        dies: Ranks whose death is part of the test; their result is a Died.
        pool: The processes to use; by default those that all tests share.

    Raises:
        RankError: A rank raised, died unasked, or did not finish in time.
    """
    env = dict(env or {})
    if transport is not None:
        env["PYCOMM_TRANSPORT"] = transport
    pool = pool or _pool
    number = next(_runs)
    members = [pool.member(rank) for rank in range(world_size)]
    call = pickle.dumps((function, args))
    for rank, member in enumerate(members):
        job = _Job(list(sys.path), call, rank, world_size, number, env, init, timeout_s)
        member.connection.send(job)
    results, errors = _collect(members, timeout_s, frozenset(dies))
    if errors:
        for member in members:
            member.broken = True
        raise RankError("\n".join(errors))
    return [results[rank] for rank in range(world_size)]


def _collect(
    members: list[_Member], timeout_s: float, dies: frozenset[int]
) -> tuple[dict[int, Any], list[str]]:
    """Waits for every rank's answer; returns results by rank, and accounts of what went wrong."""
    results: dict[int, Any] = {}
    errors: list[str] = []
    deadline = time.monotonic() + timeout_s + 5
    waiting = dict(enumerate(members))
    while waiting:
        left_s = max(0.0, deadline - time.monotonic())
        ready = wait([member.connection for member in waiting.values()], left_s)
        if not ready:
            if not errors:
                errors.append(f"no end after {timeout_s:g} s")
            errors += [f"rank {rank} is at\n{_where(member)}" for rank, member in waiting.items()]
            return results, errors
        for rank, member in list(waiting.items()):
            if member.connection not in ready:
                continue
            del waiting[rank]
            try:
                worked, value = member.connection.recv()
            except (EOFError, OSError):
                member.process.join(timeout=5)
                member.broken = True
                worked, value = rank in dies, Died(member.process.exitcode)
            if worked:
                results[rank] = pickle.loads(value) if isinstance(value, bytes) else value
                continue
            errors.append(f"rank {rank} of {len(members)}: {value}")
            deadline = min(deadline, time.monotonic() + SETTLE_S)
    return results, errors


def _where(member: _Member) -> str:
    """The stack of a rank that does not answer."""
    os.kill(member.process.pid, signal.SIGUSR1)
    for _ in range(20):
        time.sleep(0.05)
        if member.traces.exists() and member.traces.stat().st_size:
            break
    return member.traces.read_text() if member.traces.exists() else "(no stack)"


def _serve(
    connection: Connection,
    address: tuple[str, int],
    traces: str,
    enter: Callable[[], None] | None,
) -> None:
    """A rank process: does one job after the other until the pipe closes."""
    # If the parent died before this line the pipe is closed and recv() below ends.
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # ^C reaches the parent, which ends the ranks
    torch.set_num_threads(1)
    with open(traces, "w") as file:
        faulthandler.register(signal.SIGUSR1, file=file, all_threads=True)
        if enter is not None:
            enter()
        store = dist.TCPStore(*address, is_master=False)
        while True:
            try:
                job = connection.recv()
            except EOFError:
                return
            connection.send(_do(job, store))


def _do(job: _Job, store: Any) -> tuple[bool, Any]:
    sys.path[:] = job.path
    importlib.invalidate_caches()
    before = dict(os.environ)
    os.environ.update(job.env)
    # torch names a default group by how many there were, and counts those whose set-up failed, too:
    # ranks that saw one more of them than others would look for each other under another name.
    dist.distributed_c10d._world.group_count = 0
    debug._clear_sharding_prop_cache()  # would take a mesh for an earlier run's equal one
    me = Rank(job.rank, job.world_size, dist.PrefixStore(f"run{job.number}", store))
    try:
        function, args = pickle.loads(job.call)
        if job.init:
            me.init(timeout_s=job.timeout_s)
        value = function(me, *args)
        if job.init and dist.is_initialized():
            dist.destroy_process_group()
        return True, pickle.dumps(value)
    except BaseException:
        text = traceback.format_exc()
        if dist.is_initialized():  # so that the others need not wait for this rank
            with contextlib.suppress(Exception):
                dist.group.WORLD._get_backend(torch.device("cpu")).close("its test raised", False)
        return False, text
    finally:
        os.environ.clear()
        os.environ.update(before)


# ---- threads


def run_threads(
    function: Callable[..., Any],
    world_size: int,
    *args: Any,
    transport: str = "shm",
    algorithm: str = "",
    timeout_s: float = TIMEOUT_S,
    options: Mapping[str, Any] | None = None,
) -> list[Any]:
    """Runs function(me, *args) on world_size threads, each with a backend; returns results by rank.

    Args:
        function: Anything that can be called.
        world_size: Number of ranks.
        args: Handed on, the same objects to every rank.
        transport: "shm", "tcp" or "shm,tcp".
        algorithm: As PYCOMM_ALGO; "" chooses by size.
        timeout_s: Seconds after which the run has failed. Also the group's timeout.
        options: More attributes of BackendOptions, such as {"detect_timeout_ms": 500}.

    Raises:
        RankError: A rank raised or did not finish in time.
    """
    from pycomm.native import load

    module = load()
    store = dist.HashStore()
    results: list[Any] = [None] * world_size
    errors: list[str] = []

    def rank_main(rank: int) -> None:
        native = module.BackendOptions()
        native.timeout_ms = int(timeout_s * 1000)
        native.transports = transport
        for name, value in (options or {}).items():
            setattr(native, name, value)
        backend = None
        try:
            if algorithm:
                native.set_algorithms(algorithm)
            group_store = dist.PrefixStore("threads", store)
            backend = module.Backend(group_store, rank, world_size, native)
            group = dist.ProcessGroup(group_store, rank, world_size)
            kind = dist.ProcessGroup.BackendType.CUSTOM
            group._register_backend(torch.device("cpu"), kind, backend)
            group._set_default_backend(kind)
            me = Rank(rank, world_size, group_store, backend, group)
            results[rank] = function(me, *args)
            backend.close("the test is over", True)
        except BaseException:
            errors.append(f"rank {rank} of {world_size}: {traceback.format_exc()}")
            if backend is not None:
                backend.close("its thread raised", False)

    threads = [
        threading.Thread(target=rank_main, args=(rank,), name=f"rank {rank}", daemon=True)
        for rank in range(world_size)
    ]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + timeout_s + 5
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    for rank, thread in enumerate(threads):
        if thread.is_alive():
            frame = sys._current_frames().get(thread.ident or 0)
            stack = "".join(traceback.format_stack(frame)) if frame else "(no stack)"
            errors.append(f"rank {rank} has no end after {timeout_s:g} s, is at\n{stack}")
    if errors:
        raise RankError("\n".join(errors))
    return results
