# SPDX-License-Identifier: MIT
"""How a worker and a server find each other, and what they say.

Each pair has a group of its own of two ranks, so that a death ends that pair and no other. It is
made when the worker joins, through a torch store, under a number that the store gives out.

A worker sends headers of four int64, `kind` and three numbers, some followed by more:

    HELLO rank, wire               answered by  clock
    ENTER clock
    PUSH  seen, missing            then, if pieces are missing, uint8[pieces]; then the gradient
    PULL  clock                    answered by  updates, lowest clock   and float32[size]
    REPORT                         answered by  bytes                   and uint8[bytes], JSON
    LEAVE
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch._C._distributed_c10d import FileStore, PrefixStore, Store, TCPStore
from torch.distributed import DistError

from pycomm.communicator import Communicator
from pycomm.errors import CommError, UsageError
from pycomm.options import Options
from pycomm.parameter_server.ending import EndingStore

HELLO, ENTER, PUSH, PULL, REPORT, LEAVE = range(6)
SERVER, WORKER = 0, 1  # ranks in a pair
_POLL_S = 0.05  # between two looks at the store; joining is rare
_FORMS = 'expected "tcp://HOST:PORT", "file:///PATH", or one of torch.distributed\'s stores'
Header = NDArray[np.int64]


def header(kind: int = 0, *numbers: int) -> Header:
    """What is sent before anything else, or memory for one."""
    return np.array([kind, *numbers, *[0] * (3 - len(numbers))], np.int64)


class Meeting:
    """Servers' and workers' place in a store."""

    def __init__(self, store: str | Store | None, name: str, hosts: bool, timeout_s: float) -> None:
        """Connects to the store, or opens it. Blocking.

        Args:
            store: "tcp://HOST:PORT", "file:///PATH", one of torch's, or None: the environment's
                MASTER_ADDR and MASTER_PORT.
            name: What this set of servers is called; several may share a store.
            hosts: Whether this process listens, if the store is an address. Under torchrun its
                agent does.
            timeout_s: How long whatever one waits for in the store may take.

        Raises:
            UsageError: the store is not understood.
            CommError: it cannot be reached.
        """
        opened = open_store(store, hosts, timeout_s)
        # One connection for all threads: nobody waits in it, so nobody keeps others from it.
        self.store = PrefixStore(f"parameter_server/{name}", opened)
        self._timeout_s = timeout_s

    def pair(
        self,
        number: int,
        server: int,
        rank: int,
        timeout_s: float,
        ended: Callable[[], str] | None = None,
    ) -> Communicator:
        """The group of worker `number` and a server. Collective over the two, blocking.

        `ended` says why the server has ended, "" if it has not; None: ask what it has told.

        Raises:
            CommError: the other did not come, or the server has ended.
        """
        options = Options(timeout_s=timeout_s, connect_timeout_s=self._timeout_s, wire="fp32")
        store = PrefixStore(f"pair{number}/{server}", self.store)
        ended = ended or (lambda: self.ended(server))
        return Communicator(rank, 2, EndingStore(store, ended), options)

    def tell(self, key: str, value: Any) -> None:
        """Leaves something for whoever asks."""
        self.store.set(key, json.dumps(value))

    def told(self, key: str) -> Any:
        """What somebody has told, or None."""
        return json.loads(self.store.get(key)) if self.store.check([key]) else None

    def ask(self, key: str, why: str) -> Any:
        """What somebody has told; blocks until it is there.

        Raises:
            CommError: it did not come in time; `why` says what is missing.
        """
        wait_until(lambda: self.store.check([key]), self._timeout_s, why)
        return json.loads(self.store.get(key))

    def number(self) -> int:
        """The next worker's; local but for the store."""
        return int(self.store.add("joins", 1)) - 1

    def numbers(self) -> int:
        """How many workers have one."""
        return int(self.store.add("joins", 0))

    def all_come(self, workers: int, servers: int) -> None:
        """Blocks until so many workers have a number.

        Raises:
            CommError: they did not come in time, or a server has ended.
        """

        def ready() -> bool:
            self.expect_servers(servers)
            return self.numbers() >= workers

        why = f"fewer than workers={workers}, which begin together, have come"
        wait_until(ready, self._timeout_s, why)

    def expect_servers(self, servers: int) -> None:
        """Looks whether they are there still.

        Raises:
            CommError: one has ended.
        """
        for server in range(servers):
            if reason := self.ended(server):
                raise CommError(
                    f"Worker: {reason}; start the servers again, on a new store or with another "
                    "name="
                )

    def ended(self, server: int) -> str:
        """That and why a server has ended, as it has told; "" if it has not."""
        reason = self.told(f"ended{server}")
        return "" if reason is None else f"server {server} has ended, {reason}"


def wait_until(ready: Callable[[], bool], timeout_s: float, why: str) -> None:
    """Looks again and again; blocks.

    Raises:
        CommError: timeout_s seconds have passed.
    """
    deadline = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > deadline:
            raise CommError(f"parameter server: {why} after {timeout_s:g} s")
        time.sleep(_POLL_S)


def open_store(store: str | Store | None, hosts: bool, timeout_s: float) -> Store:
    """The store at an address, or the one given."""
    if isinstance(store, Store):
        return store
    if store is None:
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
        if missing:
            raise UsageError(
                "parameter server: no store is given and the environment has no "
                f"{', no '.join(missing)}; start it with torchrun, or give store=, {_FORMS}"
            )
        address = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
            return open_store(address, hosts, timeout_s)
        # The agent's store outlives the processes that it starts again.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return PrefixStore(f"attempt{attempt}", open_store(address, False, timeout_s))
    kind, _, rest = str(store).partition("://")
    host, _, port = rest.rpartition(":")
    if kind == "file" and rest:
        return cast("Store", FileStore(rest, -1))
    if kind != "tcp" or not host or not port.isdecimal():
        raise UsageError(f"parameter server: got store {store!r}, {_FORMS}")
    try:
        return TCPStore(
            host,
            int(port),
            is_master=hosts,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
        )
    except DistError as error:
        raise CommError(
            f"parameter server: the store {store} cannot be reached: {error}"
        ) from error


def text_of(value: Any) -> torch.Tensor:
    """JSON as uint8."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def value_of(text: torch.Tensor) -> Any:
    """What text_of was given."""
    return json.loads(bytes(text.tolist()))
