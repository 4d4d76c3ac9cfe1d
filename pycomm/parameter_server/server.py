# SPDX-License-Identifier: MIT
"""A parameter server: its workers' threads around one shard."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from types import TracebackType
from typing import Any

from torch import nn
from torch._C._distributed_c10d import Store
from torch.distributed import DistError
from typing_extensions import Self

from pycomm.backend import shortened
from pycomm.errors import CommError, PeerFailure, UsageError
from pycomm.parameter_server import pair
from pycomm.parameter_server.checkpoint import Saver
from pycomm.parameter_server.clocks import Clocks, Member
from pycomm.parameter_server.packing import Packing, trained
from pycomm.parameter_server.pair import Meeting
from pycomm.parameter_server.session import Session
from pycomm.parameter_server.shard import MakeOptimizer, MakeScheduler, Shard
from pycomm.parameter_server.shards import deal

_log = logging.getLogger("pycomm.parameter_server")
_ON_DEATH = ("go_on", "raise")


class Server:
    """Keeps one shard of a model's parameters, and steps it with what workers push.

        Server(build(), functools.partial(torch.optim.SGD, lr=0.1), store="tcp://node0:29600").serve()

    Every server is made with the same model and arguments but `index`. Making one is local, but for
    the store and a checkpoint, about which all servers agree; `start` or `serve` lets workers in.

    Args:
        model: Gives names, shapes and first values of the parameters. It is not changed.
        optimizer: Makes an optimizer of (name, parameter) pairs, as torch's take them. Parameters
            are the server's pieces, flat, under the names of the whole ones, so it must be of a
            kind that treats elements by themselves (SGD, Adam, AdamW, Adagrad, RMSprop);
            `same_as` makes one like a given optimizer.
        store: Where all meet: "tcp://HOST:PORT", which server 0 listens on, "file:///PATH", one of
            torch.distributed's stores; None: the environment's MASTER_ADDR and MASTER_PORT.
        index: Of this server, 0 to servers - 1.
        servers: How many there are.
        workers: How many begin together: parameters are given out when they have joined. More may
            join at any time.
        mode: "sync": a step is made of one gradient of each worker, their mean, in the order of
            workers. "async": each gradient is a step of its own, at once. "ssp": as async, but a
            worker that is more than `staleness` steps ahead of the slowest waits.
        staleness: The bound of ssp, 0 or more.
        shards: "range" or "hash", see docs/parameter_server.md.
        scheduler: Makes a learning rate scheduler of the optimizer; it is stepped once for each
            step of the fastest worker.
        on_death: What sync does when a worker dies: "go_on" with the others, or "raise".
        checkpoint: A folder for checkpoints; if it has some of all servers, they go on from the
            newest.
        checkpoint_every: Steps of the slowest worker between two of them.
        name: Of this set of servers, if several share a store.
        timeout_s: Seconds that a worker may let pass between two messages.
        connect_timeout_s: Seconds that joining may take.

    Raises:
        UsageError: an argument is not understood.
        CommError: the store or another server is not there.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: MakeOptimizer,
        *,
        store: str | Store | None = None,
        index: int = 0,
        servers: int = 1,
        workers: int = 1,
        mode: str = "sync",
        staleness: int | None = None,
        shards: str = "range",
        scheduler: MakeScheduler | None = None,
        on_death: str = "go_on",
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: int = 100,
        name: str = "default",
        timeout_s: float = 24 * 3600.0,
        connect_timeout_s: float = 60.0,
    ) -> None:
        if not 0 <= index < servers:
            raise UsageError(
                f"Server: got index={index} of {servers} servers, expected one of them"
            )
        if on_death not in _ON_DEATH:
            raise UsageError(
                f"Server: got on_death={on_death!r}, expected one of {', '.join(_ON_DEATH)}"
            )
        if type(checkpoint_every) is not int or checkpoint_every < 1:
            raise UsageError(
                f"Server: got checkpoint_every={checkpoint_every!r}, expected steps, 1 or more"
            )
        Clocks(mode, staleness, workers)  # refuses what it does not understand
        named = trained(model)
        dealt = deal({name: p.numel() for name, p in named.items()}, servers, shards)
        self.index, self._on_death = index, on_death
        self._timeout_s, self._connect_timeout_s = timeout_s, connect_timeout_s
        self._pieces = Packing(dealt[index])
        self._shapes = {piece.name: list(named[piece.name].shape) for piece in dealt[index]}
        self._described = {
            "servers": servers,
            "workers": workers,
            "mode": mode,
            "staleness": staleness,
            "shards": shards,
            "model": digest_of(named),
        }
        self._meeting = Meeting(store, name, index == 0, connect_timeout_s)
        self._refuse_second()
        self._saver = None if checkpoint is None else Saver(checkpoint, index, self._meeting)
        clock = -1 if self._saver is None else self._saver.agree(servers)
        self._shard = Shard(
            self._pieces,
            named,
            optimizer,
            scheduler,
            Clocks(mode, staleness, workers, max(clock, 0)),
        )
        if self._saver is not None:
            if clock >= 0:
                self._shard.load(self._saver.load(clock)["shard"])
            self._saved, self._every = max(clock, 0), checkpoint_every
            self._shard.on_step = self._checkpoint_if_due
        self._lock = threading.Lock()  # of what follows
        self._sessions: list[Session] = []
        self._threads: list[threading.Thread] = []
        self._busy = 0  # threads of workers
        self._left = 0
        self._deaths: list[str] = []
        self._error: BaseException | None = None
        self._begun = time.monotonic()
        self._ended = threading.Event()

    # ---- life

    def serve(self) -> dict[str, Any]:
        """Serves until all workers have come and none is left; blocking. Returns `report()`.

        Raises:
            CommError: a worker died, and `on_death` is "raise".
            Exception: whatever the optimizer raised.
        """
        with self:
            self.wait()
        return self.report()

    def start(self) -> Self:
        """Lets workers in, in threads of this process; local. `wait` or `close` ends it."""
        self._meeting.tell(f"server{self.index}", self._described)
        self._begin_thread(self._let_in, "parameter server")
        return self

    def wait(self, timeout_s: float | None = None) -> bool:
        """Blocks until all workers have come and none is left; whether that is so now.

        Raises:
            CommError: a worker died, and `on_death` is "raise".
            Exception: whatever the optimizer raised.
        """
        ended = self._ended.wait(timeout_s)
        if self._error is not None:
            raise self._error
        return ended

    def close(self, reason: str = "the server was closed") -> None:
        """Ends all threads; workers that are still there raise. Writes a last checkpoint.

        Blocks while threads end and the checkpoint is written, not for workers that are joining.
        """
        self._ended.set()
        with contextlib.suppress(DistError):  # whoever holds the store may be gone
            self._meeting.tell(f"ended{self.index}", reason)
        self._shard.close(reason)
        self._close_pairs(reason)
        for thread in self._threads:
            thread.join()
        if self._saver is not None:
            if self._error is None and self._shard.done > self._saved:
                self._checkpoint(self._shard.done)
            self._saver.wait()
            self._check_saved()

    def __enter__(self) -> Self:
        """Starts."""
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes."""
        alone = self._ended.is_set() and self._error is None
        reason = "since all workers had left" if alone else "its with block has ended"
        self.close(reason if kind is None else f"its server raised {kind.__name__}: {error}")

    def report(self) -> dict[str, Any]:
        """What has happened so far; local.

        Returns:
            updates: steps of the optimizer. clock: steps of the slowest worker. joined, left, died
            and live: workers. deaths: what was said of each. staleness: how many updates by others
            a gradient had not seen, to how many gradients. lead: how many steps a worker was ahead
            of the slowest when it was given parameters, to how often. waited_s: seconds that
            workers waited for others, summed. received_bytes, sent_bytes: of gradients and of
            parameters. seconds: since the server was made.
        """
        with self._shard.changed:
            clocks, shard = self._shard.clocks, self._shard
            return {
                "index": self.index,
                "updates": shard.updates,
                "clock": shard.done,
                "live": len(clocks.members),
                "joined": clocks.joined,
                "left": self._left,
                "died": len(self._deaths),
                "deaths": list(self._deaths),
                "staleness": dict(sorted(shard.staleness.items())),
                "lead": dict(sorted(clocks.leads.items())),
                "waited_s": sum(session.waited_s for session in self._sessions),
                "received_bytes": sum(session.received_bytes for session in self._sessions),
                "sent_bytes": sum(session.sent_bytes for session in self._sessions),
                "seconds": time.monotonic() - self._begun,
            }

    # ---- workers

    def _begin_thread(self, target: Any, name: str, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _let_in(self) -> None:
        """Begins a thread for each worker that takes a number from the store."""
        known = 0
        try:
            while not self._ended.wait(pair._POLL_S):
                there = self._meeting.numbers()
                for number in range(known, there):
                    with self._lock:
                        self._busy += 1
                    self._begin_thread(self._serve, f"worker {number}", number)
                known = there
        except Exception as error:  # noqa: BLE001
            # Whoever is there is served on; nobody can join any more.
            _log.warning("server %d: the store is lost, nobody can join: %s", self.index, error)

    def _serve(self, number: int) -> None:
        """One worker, from its joining to its end."""
        session: Session | None = None
        member: Member | None = None
        left = False
        try:
            comm = self._meeting.pair(
                number, self.index, pair.SERVER, self._timeout_s, self._why_ended
            )
            session = Session(number, comm, self._shard, self._pieces)
            with self._lock:
                self._sessions.append(session)
            if self._ended.is_set():  # whoever has ended it did not see this pair
                return
            member = session.greet(self._connect_timeout_s)
            _log.info("server %d: worker %d joined at step %d", self.index, number, member.clock)
            session.answer(member, self.report)
            left = True
        except CommError as error:
            self._lost(number, member, error)
        except BaseException as error:  # noqa: BLE001 - wait() raises it
            self._fail(error)
        finally:
            if session is not None:
                if session.member is not None:
                    self._shard.leave(session.member)
                session.comm.close(f"server {self.index} has ended its pair", left)
            self._end_if_done(left)

    def _why_ended(self) -> str:
        return "the server has ended" if self._ended.is_set() else ""

    def _lost(self, number: int, member: Member | None, error: CommError) -> None:
        """A worker died, or the server is closing."""
        if self._ended.is_set():
            return
        if member is None:
            _log.warning("server %d: worker %d did not join: %s", self.index, number, error)
            return
        text = f"worker {member.rank} at step {member.clock}: {error}"
        self._deaths.append(text)
        _log.warning("server %d goes on without %s", self.index, text)
        if self._shard.clocks.mode == "sync" and self._on_death == "raise":
            self._fail(PeerFailure(f"parameter server {self.index}: {text}"))

    def _fail(self, error: BaseException) -> None:
        """Ends the server with an error, which all workers hear of."""
        with self._lock:
            self._error = self._error or error
        reason = f"server {self.index} has ended with {type(error).__name__}: {error}"
        self._shard.close(reason)
        self._close_pairs(reason)
        self._ended.set()

    def _close_pairs(self, reason: str) -> None:
        with self._lock:
            pairs = [session.comm for session in self._sessions]
        for one in pairs:
            one.close(shortened(reason), False)

    def _end_if_done(self, left: bool) -> None:
        with self._shard.changed, self._lock:
            self._left += left
            self._busy -= 1
            if not self._busy and self._shard.clocks.joined >= self._shard.clocks.workers:
                self._ended.set()

    # ---- the store and the disk

    def _refuse_second(self) -> None:
        if int(self._meeting.store.add(f"made{self.index}", 1)) > 1:
            raise UsageError(
                f"Server: a server {self.index} has been on this store before; give a new store, "
                "or another name= to all servers and workers"
            )

    def _checkpoint_if_due(self, clock: int) -> None:
        """Under the shard's lock."""
        if clock // self._every > self._saved // self._every:
            # All servers must name it alike, and the slowest's death may let the clock jump.
            self._checkpoint(clock // self._every * self._every)

    def _checkpoint(self, clock: int) -> None:
        if self._saver is None:
            return
        self._saver.wait()
        self._check_saved()
        self._saver.save(
            clock,
            {
                "described": self._described,
                "shapes": self._shapes,
                "pieces": [(one.name, one.begin, one.end) for one in self._pieces.pieces],
                "shard": self._shard.state(),
            },
        )
        self._saved = clock

    def _check_saved(self) -> None:
        if self._saver is not None and self._saver.error is not None:
            error, self._saver.error = self._saver.error, None
            _log.error("server %d: a checkpoint could not be written: %s", self.index, error)


def digest_of(named: dict[str, nn.Parameter]) -> str:
    """What workers and servers must agree on: names and shapes."""
    lines = [f"{name} {list(parameter.shape)}" for name, parameter in named.items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
