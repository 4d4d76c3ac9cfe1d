# SPDX-License-Identifier: MIT
"""What a rank does in each fault test, by name. Runs in the processes of fault_zygote.py."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

import pycomm

Scenario = Callable[["Rank"], None]
SCENARIOS: dict[str, Scenario] = {}
# Tests of how a process ends go through Python's exit; it takes half a second that the others save.
ENDS_AS_SCRIPTS_DO = ("raise_on_failure", "leave", "last_collective")


def scenario(function: Scenario) -> Scenario:
    SCENARIOS[function.__name__] = function
    return function


def run(job: dict[str, Any]) -> None:
    SCENARIOS[job["scenario"]](Rank(job))
    if job["scenario"] not in ENDS_AS_SCRIPTS_DO:
        if dist.is_initialized():
            dist.destroy_process_group()
        os._exit(0)


class Rank:
    """One rank of a test: its group, its arguments, its report."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.rank: int = job["rank"]
        self.world_size: int = job["world_size"]
        self.args: dict[str, Any] = job["args"]
        self.options: dict[str, Any] = job["options"]
        self._report = os.open(
            f"{job['dir']}/rank{self.rank}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND
        )
        port, self._name = job["store"]
        self._tcp_store = dist.TCPStore("127.0.0.1", port, None, False, wait_for_workers=False)
        self._signals = dist.PrefixStore(f"{self._name}-test", self._tcp_store)

    def note(self, event: str, **values: Any) -> None:
        record = {"event": event, "at": time.monotonic(), **values}
        os.write(self._report, (json.dumps(record) + "\n").encode())

    def wait_for_go(self, what: str = "go") -> None:
        self._signals.wait([what], timedelta(seconds=60))

    def init(self, name: str = "world", world_size: int | None = None) -> None:
        """Makes the default group."""
        seconds = self.args.get("timeout_s", 60)
        dist.init_process_group(
            "pycomm",
            store=dist.PrefixStore(f"{self._name}-{name}", self._tcp_store),
            rank=self.rank,
            world_size=world_size or self.world_size,
            timeout=timedelta(seconds=seconds),
            pg_options=pycomm.Options(**self.options),
        )

    @property
    def backend(self) -> Any:
        return dist.group.WORLD._get_backend(torch.device("cpu"))

    def tensor(self, count: int | None = None) -> torch.Tensor:
        """Integers that differ from rank to rank; sums of them are exact."""
        count = count or self.args.get("count", 1024)
        return (torch.arange(count) % 1000).to(torch.float32) + self.rank

    def is_sum(self, tensor: torch.Tensor) -> bool:
        ranks = self.world_size * (self.world_size - 1) // 2
        each = torch.arange(tensor.numel()) % 1000 * self.world_size + ranks
        return torch.equal(tensor, each.to(torch.float32))

    def all_reduce(self, tensor: torch.Tensor) -> None:
        """Synchronous or not, as the test says."""
        work = dist.all_reduce(tensor, async_op=self.args.get("async_op", False))
        if work is not None:
            work.wait()

    def attempt(self, call: str, function: Callable[[], Any]) -> bool:
        """Calls it and notes "done" or "raised"; whether it came through."""
        began = time.monotonic()
        try:
            function()
        except Exception as error:  # noqa: BLE001
            self.note(
                "raised",
                call=call,
                took=time.monotonic() - began,
                kind=type(error).__name__,
                pycomm=isinstance(error, pycomm.CommError),
                text=str(error),
                ranks=list(getattr(error, "ranks", ())),
            )
            return False
        self.note("done", call=call, took=time.monotonic() - began)
        return True

    def inject(self) -> None:
        """The fault of this rank's arguments, towards every peer or those listed."""
        fault = self.args.get("fault")
        if not fault:
            return
        peers = fault.get("peers", [p for p in range(self.world_size) if p != self.rank])
        for peer in peers:
            self.backend._inject_fault(peer, fault["kind"], fault["frame"], fault.get("signal", 0))


@scenario
def all_reduce(self: Rank) -> None:
    """A small all_reduce, one with the fault, and one more to hear the first cause again."""
    self.init()
    dist.all_reduce(self.tensor(8))
    self.inject()
    tensor = self.tensor()
    self.note("ready")
    if self.attempt("all_reduce", lambda: self.all_reduce(tensor)):
        self.note("result", exact=self.is_sum(tensor))
    self.attempt("again", lambda: dist.all_reduce(self.tensor(8)))
    if self.args.get("leave") == "at_once":
        os._exit(1)
    self.attempt("destroy", dist.destroy_process_group)


@scenario
def raise_on_failure(self: Rank) -> None:
    """Survivors do not catch: their processes end while others may still have to learn."""
    self.init()
    dist.all_reduce(self.tensor(8))
    self.inject()
    tensor = self.tensor()
    self.note("ready")
    try:
        self.all_reduce(tensor)
    except pycomm.CommError as error:
        self.note("raised", kind=type(error).__name__, text=str(error), ranks=list(error.ranks))
        if self.args["leave"] == "os_exit":
            os._exit(1)
        if self.args["leave"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise


@scenario
def idle(self: Rank) -> None:
    """The victim stays out of the calls in which all the others block on each other."""
    self.init()
    dist.all_reduce(self.tensor(8))
    others = [r for r in range(self.world_size) if r != self.args["victim"]]
    if self.rank == self.args["victim"]:
        self.note("ready")
        time.sleep(60)
    after = others[(others.index(self.rank) + 1) % len(others)]
    big, small = torch.zeros(1 << 22), torch.zeros(4)
    calls = {
        "work_wait": lambda: dist.all_reduce(big, async_op=True).wait(),
        "barrier": dist.barrier,
        "recv": lambda: dist.recv(small, after),
        "recv_any": lambda: dist.recv(small),
        "send": lambda: dist.send(big, after),
        "irecv": lambda: dist.irecv(small, after).wait(),
        "future": lambda: dist.all_reduce(big, async_op=True).get_future().wait(),
        "broadcast": lambda: dist.broadcast(big, src=others[0]),
    }
    self.note("ready")
    self.attempt("blocked", calls[self.args["call"]])
    self.attempt("again", lambda: dist.all_reduce(small))


@scenario
def calls(self: Rank) -> None:
    """Each rank makes the call its arguments describe; then a new group must work."""
    self.init()
    self.note("ready")
    self.attempt("call", lambda: make_call(self, self.args["call"]))
    self.attempt("again", lambda: dist.all_reduce(torch.zeros(4)))
    dist.destroy_process_group()
    os.environ.pop("PYCOMM_ALGO", None)
    self.init("second")
    tensor = self.tensor()
    self.attempt("second group", lambda: dist.all_reduce(tensor))
    self.note("result", exact=self.is_sum(tensor))
    dist.destroy_process_group()


def make_call(self: Rank, call: dict[str, Any]) -> None:
    dtype = getattr(torch, call.get("dtype", "float32"))
    tensor = torch.ones(call.get("shape", [8]), dtype=dtype)
    name, root = call["name"], call.get("root", 0)
    op = getattr(dist.ReduceOp, call.get("op", "SUM"))
    many = [torch.empty_like(tensor) for _ in range(self.world_size)]
    if name == "all_reduce":
        work = dist.all_reduce(tensor, op, async_op=call.get("async_op", False))
        if work is not None:
            work.wait()
    elif name == "broadcast":
        dist.broadcast(tensor, root)
    elif name == "reduce":
        dist.reduce(tensor, root, op)
    elif name == "gather":
        dist.gather(tensor, many if self.rank == root else None, root)
    elif name == "scatter":
        dist.scatter(tensor, many if self.rank == root else None, root)
    elif name == "all_gather":
        dist.all_gather(many, tensor)
    elif name == "reduce_scatter":
        dist.reduce_scatter(tensor, many, op)
    elif name == "all_to_all":
        dist.all_to_all(many, [tensor] * self.world_size)
    elif name == "barrier":
        dist.barrier()
    elif name == "send":
        dist.send(tensor, call["peer"])
    elif name == "recv":
        dist.recv(tensor, call["peer"])
    else:
        raise ValueError(name)


@scenario
def slow(self: Rank) -> None:
    """One rank comes late, asleep or busy with the GIL held; nobody may take that for death."""
    self.init()
    dist.all_reduce(self.tensor(8))
    self.note("ready")
    if self.rank == self.args["late"]:
        began = time.monotonic()
        while time.monotonic() - began < self.args["seconds"]:
            if self.args["how"] == "sleep":
                time.sleep(self.args["seconds"])
            else:
                sum(range(3 * 10**7))  # one C call that does not give the GIL back
    tensor = self.tensor()
    self.attempt("all_reduce", lambda: self.all_reduce(tensor))
    self.note("result", exact=self.is_sum(tensor))
    dist.destroy_process_group()


@scenario
def leave(self: Rank) -> None:
    """One rank leaves in its own way before the others' next call."""
    self.init()
    dist.all_reduce(self.tensor(8))
    self.note("ready")
    if self.rank == self.args["leaver"]:
        how = self.args["how"]
        if how == "sys_exit":
            sys.exit(3)
        if how == "os_exit":
            os._exit(0)
        if how == "exception":
            raise ValueError(self.args.get("words", "the loss is not a number"))
        if how == "destroy":
            dist.destroy_process_group()
            self.wait_for_go()
        if how == "half_done":
            dist.all_reduce(self.tensor(), async_op=True)
            sys.exit(0)
        return
    self.attempt("call", lambda: self.all_reduce(self.tensor()))
    self.attempt("again", dist.barrier)


@scenario
def last_collective(self: Rank) -> None:
    """Everybody leaves right after the last collective; the slow one is still reading then."""
    self.init()
    self.inject()
    for _ in range(self.args["rounds"] - 1):
        self.all_reduce(self.tensor(8))
    name = self.args["name"]
    tensor = self.tensor()
    if name == "broadcast" and self.rank != 0:
        tensor.zero_()
    if self.rank == self.args["late"]:
        time.sleep(self.args["seconds"])
    if name == "all_reduce":
        call = lambda: self.all_reduce(tensor)  # noqa: E731
    elif name == "broadcast":
        call = lambda: dist.broadcast(tensor, 0)  # noqa: E731
    elif name == "send":
        peer = self.world_size - 1
        send, recv = lambda: dist.send(tensor, peer), lambda: dist.recv(tensor, 0)
        call = {0: send, peer: recv}.get(self.rank, lambda: None)
    else:
        call = dist.barrier
    self.attempt("last", call)
    if name == "all_reduce":
        self.note("result", exact=self.is_sum(tensor))
    elif name in ("broadcast", "send"):
        first = torch.arange(tensor.numel()) % 1000
        self.note("result", exact=torch.equal(tensor, first.to(torch.float32)))
    if self.args["how"] == "destroy":
        dist.destroy_process_group()
        os._exit(0)


@scenario
def any_source(self: Rank) -> None:
    """Ranks 1 and 2 leave at once, rank 3 once it has sent; rank 0 receives from anybody."""
    self.init()
    dist.all_reduce(self.tensor(8))
    if self.rank in (1, 2):
        dist.destroy_process_group()
        self._signals.set(f"left{self.rank}", "1")
        self.wait_for_go("end")
    if self.rank == 3:
        self.wait_for_go("left1")
        self.wait_for_go("left2")
        time.sleep(0.3)
        dist.send(self.tensor(8), 0)
        return
    tensor = torch.zeros(8)
    source = dist.recv(tensor)
    left = self._signals.check(["left1", "left2"])
    self.note("received", source=source, first_left=left)
    self.attempt("recv", lambda: dist.recv(tensor))


@scenario
def impatient_wait(self: Rank) -> None:
    """Rank 0 waits too short a time, then long enough."""
    self.init()
    tensor = self.tensor()
    if self.rank == 1:
        self.wait_for_go()
    work = dist.all_reduce(tensor, async_op=True)
    if self.rank == 0:
        self.attempt("wait", lambda: work.wait(timedelta(milliseconds=100)))
    work.wait()
    self.note("result", exact=self.is_sum(tensor))
    dist.all_reduce(tensor)


@scenario
def late_or_never(self: Rank) -> None:
    """The ranks in `missing` do not make the call."""
    self.init()
    dist.all_reduce(self.tensor(8))
    self.note("ready")
    if self.rank in self.args["missing"]:
        self.wait_for_go()
    else:
        self.attempt("call", lambda: make_call(self, self.args["call"]))
    self.attempt("again", lambda: dist.all_reduce(self.tensor(8)))


@scenario
def setup(self: Rank) -> None:
    """Only connects, and says how that went."""
    if self.args.get("wait_before"):
        self.wait_for_go()
    world_size = self.args.get("own_world_size")
    self.note("begins")
    came = self.attempt("init", lambda: self.init(world_size=world_size))
    if came:
        tensor = self.tensor()
        self.attempt("all_reduce", lambda: dist.all_reduce(tensor))
        self.note("result", exact=self.is_sum(tensor))
        dist.destroy_process_group()
    elif not self.args.get("leave"):
        self.wait_for_go("end")


def open_things() -> dict[str, int]:
    """What a process holds: descriptors, threads, resident bytes."""
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return {
        "fds": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "bytes": resident,
    }


@scenario
def cycles(self: Rank) -> None:
    """Makes and destroys the group again and again, some of them after a failure."""
    for cycle in range(self.args["cycles"]):
        self.init(f"cycle{cycle}")
        self.attempt("all_reduce", lambda: self.all_reduce(self.tensor(1 << 16)))
        if self.args["fail"]:
            call = {"name": "all_reduce", "shape": [8 + self.rank]}
            self.attempt("mismatch", lambda call=call: make_call(self, call))
        dist.destroy_process_group()
        self.note("cycle", **open_things())
    self.note("end")
