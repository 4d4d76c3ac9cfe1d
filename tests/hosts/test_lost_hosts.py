# SPDX-License-Identifier: MIT
"""Hosts that cannot be reached during set-up, and hosts that are lost in the middle of the work."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from host_ranks import Places
from network import Network
from ranks import Died, Rank

import pycomm

DETECT_S = 1.0
# On top of what is promised: this many ranks share few cores with other tests' leftovers.
SLACK_S = 4.0
CONNECT_S = 4.0
# A group closes its channels to hosts that vanished after this long, all together.
LINGER_S = 2.0

Ended = tuple[str, str, list[int], float]  # kind of error, its text, its ranks, CLOCK_MONOTONIC

_keys = itertools.count()


def report(error: Exception, since: float = 0.0) -> Ended:
    ranks = list(getattr(error, "ranks", ()))
    return type(error).__name__, str(error), ranks, time.monotonic() - since


def show(ends: list[Ended], since: float = 0.0) -> None:
    for rank, (kind, text, ranks, at) in enumerate(ends):
        print(f"rank {rank}: {kind} after {at - since:.1f} s, ranks={ranks}: {text}")


# ---- set-up


def connect(me: Rank, late: int = -1, dies: int = -1) -> Ended:
    """How set-up ended and after how long; `late` comes after `dies` has been killed."""
    if me.rank == late:
        time.sleep(1.5)
    if me.rank == dies:
        threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()
    began = time.monotonic()
    try:
        me.init(pycomm.Options(connect_timeout_s=CONNECT_S if late < 0 else 30))
    except pycomm.CommError as error:
        return report(error, began)
    raise AssertionError("set-up came through")


# What is done to the route from host d to host b, what undoes it, and how the kernel words it.
BLOCKED = {
    "no route": (
        "ip route add unreachable 10.77.0.2/32",
        "ip route del unreachable 10.77.0.2/32",
        "No route to host, after 0.",
    ),
    "black hole": (
        "ip route add blackhole 10.77.0.2/32",
        "ip route del blackhole 10.77.0.2/32",
        "Invalid argument, after 0.",
    ),
    "no answer": (
        "ip neigh replace 10.77.0.2 lladdr 02:00:00:00:00:99 dev eth0 nud permanent",
        "ip neigh del 10.77.0.2 dev eth0",
        "Connection timed out, after ",
    ),
}


@pytest.mark.parametrize("how", BLOCKED)
def test_a_host_that_cannot_be_reached_is_named_with_both_ends(
    places: Places, network: Network, how: str
) -> None:
    block, undo, reason = BLOCKED[how]
    blocked = network.hosts[3].namespace
    blocked.run(block)
    try:
        ends = places.run(connect, (0, 1, 2, 3), init=False)
    finally:
        blocked.run(undo)
    show(ends)
    cannot = (
        r"cannot connect to rank 1 \(pid \d+ on host-b\) at 10\.77\.0\.2:\d+ "
        r"\(its interface eth0\) from 10\.77\.0\.4 \(interface eth0\): " + reason
    )
    for rank, (_, text, ranks, took) in enumerate(ends):
        assert took < CONNECT_S + SLACK_S, f"rank {rank}"
        assert text.startswith(f"set-up on rank {rank} of 4: "), text
        if rank != 3:
            assert "rank 3" in text
        if rank != 3 and how == "no answer":
            continue  # its own patience may end before it is told
        told = "" if rank == 3 else r"rank 3 \(pid \d+ on host-d\) cannot join: "
        assert re.match(rf"set-up on rank {rank} of 4: {told}{cannot}", text), text
        assert "PYCOMM_SOCKET_IFNAME" in text
        assert ranks == [1]


def test_a_rank_killed_before_others_connect_is_refused_and_named_on_all(places: Places) -> None:
    hosts = (0, 1, 2, 3)
    ends = places.run(connect, hosts, 0, 1, init=False, dies=(1,))
    places.forget(hosts)  # torch counts groups made, and the new process of rank 1 made none
    assert isinstance(ends.pop(1), Died)
    show(ends)
    for kind, text, ranks, took in ends:
        assert kind == "PeerFailure"
        assert ranks == [1]
        assert re.search(r"cannot connect to rank 1 \(pid \d+ on [\w.-]+\) at ", text), text
        assert "Connection refused" in text
        assert took < 15


# ---- in the middle of the work


def until_it_fails(me: Rank, key: str, dies: int = -1) -> tuple[Ended, float]:
    """Sums again and again. What ended it, and how long it took to leave the group then."""
    me.init(pycomm.Options(detect_timeout_s=DETECT_S))
    x = torch.ones(50_000)
    dist.all_reduce(x)
    me.store.underlying_store.set(f"{key}/{me.rank}", "1")
    give_up = time.monotonic() + 30
    try:
        for rounds in itertools.count():
            dist.all_reduce(x.fill_(1.0))
            if me.rank == dies and rounds == 20:
                os.kill(os.getpid(), signal.SIGKILL)
            assert time.monotonic() < give_up, "nothing ended it"
    except pycomm.CommError as error:
        ended = report(error)
    dist.destroy_process_group()
    return ended, time.monotonic() - ended[3]


@contextlib.contextmanager
def once_all_work(network: Network, key: str, action: Callable[[], None]) -> Iterator[list[float]]:
    """Does something to the network while four ranks sum; when it did it."""
    done: list[float] = []

    def body() -> None:
        network.store.wait([f"{key}/{rank}" for rank in range(4)], timedelta(seconds=60))
        time.sleep(0.3)
        done.append(time.monotonic())
        action()

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield done
    finally:
        thread.join()


def lose(
    places: Places,
    network: Network,
    hosts: tuple[int, ...],
    action: Callable[[], None],
    undo: Callable[[], None],
) -> list[Ended]:
    """Ranks on these hosts sum until the action parts them; how it ended for each, all in time."""
    key = f"lost{next(_keys)}"
    try:
        with once_all_work(network, key, action) as done:
            results = places.run(until_it_fails, hosts, key, init=False)
    finally:
        undo()
        places.forget(hosts)  # their connections to the store have suffered
    ends = [ended for ended, _ in results]
    show(ends, done[0])
    for rank, (ended, leaving) in enumerate(results):
        assert ended[0] == "PeerFailure", f"rank {rank}"
        assert ended[3] - done[0] < DETECT_S + SLACK_S, f"rank {rank}"
        assert leaving < LINGER_S + SLACK_S, f"rank {rank} took {leaving} s to leave"
    return ends


def expect_other_side(ends: list[Ended], names: tuple[str, ...]) -> None:
    """Ranks 0, 1 name one of 2, 3 as silent, and the other way round, with its host."""
    for rank, (_, text, ranks, _) in enumerate(ends):
        there = (2, 3) if rank < 2 else (0, 1)
        assert len(ranks) == 1, text
        assert ranks[0] in there, text
        assert re.search(rf"rank {ranks[0]} \(pid \d+ on {names[ranks[0]]}\)", text), text
        assert "does not answer: silent for 1 s" in text


def test_a_pulled_cable_ends_all_ranks_on_both_sides(places: Places, network: Network) -> None:
    host = network.hosts[1]
    ends = lose(
        places, network, (0, 0, 1, 1), lambda: network.pull(host), lambda: network.plug(host)
    )
    expect_other_side(ends, ("host-a", "host-a", "host-b", "host-b"))


def test_an_interface_taken_down_ends_all_ranks_on_both_sides(
    places: Places, network: Network
) -> None:
    card = network.hosts[1].namespace
    ends = lose(
        places,
        network,
        (0, 0, 1, 1),
        lambda: card.run("ip link set eth0 down"),
        lambda: card.run("ip link set eth0 up"),
    )
    expect_other_side(ends, ("host-a", "host-a", "host-b", "host-b"))


def test_a_partition_into_halves_ends_both(places: Places, network: Network) -> None:
    ends = lose(places, network, (0, 1, 2, 3), network.split, network.join)
    expect_other_side(ends, ("host-a", "host-b", "host-c", "host-d"))


def test_a_killed_rank_is_named_with_its_host(places: Places) -> None:
    hosts = (0, 0, 1, 1)
    key = f"killed{next(_keys)}"
    results = places.run(until_it_fails, hosts, key, 3, init=False, dies=(3,))
    assert isinstance(results.pop(3), Died)
    for rank, ((kind, text, ranks, _), _) in enumerate(results):
        print(f"rank {rank}: {kind}, ranks={ranks}: {text}")
        assert (kind, ranks) == ("PeerFailure", [3])
        assert re.search(r"rank 3 \(pid \d+ on [\w.-]+\)", text), text
        if places.network is not None:
            assert "on host-b)" in text


def test_after_all_that_a_new_group_works(places: Places, network: Network) -> None:
    for hosts in ((0, 0, 1, 1), (0, 1, 2, 3)):
        assert places.run(total, hosts) == [4.0] * 4


def total(me: Rank) -> float:
    x = torch.ones(50_000)
    dist.all_reduce(x)
    return float(x[-1])
