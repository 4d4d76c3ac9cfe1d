# SPDX-License-Identifier: MIT
"""Rank processes placed on several hosts.

    places = Places(network)
    places.run(function, [0, 0, 1])           # ranks 0 and 1 on host a, rank 2 on host b

Processes of one placement are kept between runs, see ranks.py. Without namespaces (`network` is
None) the hosts are made up: all ranks use loopback, and PYCOMM_HOST_ID tells them apart. That shows
which transport and which plan several hosts get, and nothing about networks.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from network import Network, enter_host
from ranks import Pool, run_ranks

# What several hosts with several ranks look like: the host of each rank.
TOPOLOGIES = {
    "2 hosts x 2 ranks": (0, 0, 1, 1),
    "4 hosts x 1 rank": (0, 1, 2, 3),
    "3 hosts, 2 + 1 + 1 ranks": (0, 0, 1, 2),
}


def enter(namespaces: Sequence[tuple[str, str]], rank: int) -> None:
    """Moves a new rank process to its host; `namespaces` has path and host name by rank."""
    enter_host(*namespaces[rank])


def pretend(hosts: Sequence[int], rank: int) -> None:
    """Makes a new rank process believe that it is on a host of its own."""
    os.environ["PYCOMM_HOST_ID"] = f"pretended-{hosts[rank]}"


class Places:
    """The rank processes of each placement, by the hosts of the ranks."""

    def __init__(self, network: Network | None) -> None:
        self.network = network
        self._pools: dict[tuple[int, ...], Pool] = {}

    def run(
        self,
        function: Callable[..., Any],
        hosts: Sequence[int],
        *args: Any,
        **settings: Any,
    ) -> list[Any]:
        """As run_ranks; hosts has the host of each rank."""
        return run_ranks(function, len(hosts), *args, pool=self.pool(tuple(hosts)), **settings)

    def pool(self, hosts: tuple[int, ...]) -> Pool:
        if hosts not in self._pools:
            self._pools[hosts] = self._make(hosts)
        return self._pools[hosts]

    def _make(self, hosts: tuple[int, ...]) -> Pool:
        if self.network is None:
            return Pool(enter=partial(pretend, hosts))
        places = [self.network.hosts[host] for host in hosts]
        store = self.network.store
        if not all(place.ipv4 for place in places):
            store = _Reached(store, self.network.store_ip6)
        paths = [(place.namespace.path, place.name) for place in places]
        return Pool(store=store, enter=partial(enter, paths))

    def forget(self, hosts: Sequence[int]) -> None:
        """Ends the processes of a placement; the next run has new ones."""
        pool = self._pools.pop(tuple(hosts), None)
        if pool is not None:
            pool.close()

    def close(self) -> None:
        for hosts in list(self._pools):
            self.forget(hosts)


class _Reached:
    """Where the members of a pool reach a store that this process reaches otherwise."""

    def __init__(self, store: Any, host: str) -> None:
        self.host = host
        self.port = store.port


def backend() -> Any:
    """The C++ backend of the default group."""
    return dist.group.WORLD._get_backend(torch.device("cpu"))
