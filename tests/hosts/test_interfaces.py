# SPDX-License-Identifier: MIT
"""Which network carries the data, over which ports and how many connections, and wrong choices."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import stat
import struct
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from host_ranks import Places
from network import Network
from ranks import Rank, RankError

import pycomm

PAIR = (0, 1)
BYTES = 8 << 20
# Far more than set-up, the store and pings send; far less than the data.
NOISE = 1 << 20


def bytes_sent() -> dict[str, int]:
    """What each interface of this host has sent so far."""
    lines = Path("/proc/thread-self/net/dev").read_text().splitlines()[2:]
    rows = [line.replace(":", " ").split() for line in lines]
    return {row[0]: int(row[9]) for row in rows}


def peers_of_sockets() -> dict[str, list[int]]:
    """For each address at the other end of a TCP connection: bytes received, by connection."""
    found: dict[str, list[int]] = {}
    for fd in os.listdir("/proc/self/fd"):
        link = f"/proc/self/fd/{fd}"
        if not os.path.exists(link) or not stat.S_ISSOCK(os.stat(link).st_mode):
            continue
        with socket.socket(fileno=os.dup(int(fd))) as one, contextlib.suppress(OSError):
            if one.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            there = one.getpeername()[0].removeprefix("::ffff:")  # listeners have none
            info = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 192)
            received = struct.unpack_from("=Q", info, 128)[0]  # tcpi_bytes_received
            found.setdefault(there, []).append(received)
    return found


def sum_and_count(me: Rank) -> tuple[dict[str, int], dict[str, list[int]]]:
    """What a big all_reduce sent over each interface, and received over each connection."""
    before = bytes_sent()
    x = torch.full((BYTES // 4,), float(me.rank + 1))
    dist.all_reduce(x)
    assert torch.equal(x, torch.full_like(x, me.world_size * (me.world_size + 1) / 2))
    dist.barrier()
    connections = peers_of_sockets()
    return {name: sent - before[name] for name, sent in bytes_sent().items()}, connections


# PYCOMM_SOCKET_IFNAME to the interface and the addresses that carry the data.
CHOICES = {
    None: ("eth0", "10.77.0."),
    "eth1": ("eth1", "10.78.0."),
    "=eth1,eth0": ("eth1", "10.78.0."),
    "nosuch,eth": ("eth0", "10.77.0."),
    "^eth0,lo": ("eth1", "10.78.0."),
    "10.78.0.0/16": ("eth1", "10.78.0."),
    "192.168.0.0/16,10.78.0.0/16": ("eth1", "10.78.0."),
    "fd78::/16": ("eth1", "fd78::"),
    "::/0": ("eth0", "fd77::"),
    "fe80::/10": ("eth0", "fe80::"),
}


@pytest.mark.parametrize("choice", CHOICES)
def test_data_goes_over_the_chosen_interface(
    places: Places, network: Network, choice: str | None
) -> None:
    card, beginning = CHOICES[choice]
    other = {"eth0": "eth1", "eth1": "eth0"}[card]
    env = {} if choice is None else {"PYCOMM_SOCKET_IFNAME": choice}
    for sent, connections in places.run(sum_and_count, PAIR, env=env):
        assert sent[card] > BYTES / 2, f"{choice}: {sent}"
        assert sent[other] < NOISE, f"{choice}: {sent}"
        carried = [there for there, each in connections.items() if sum(each) > BYTES / 2]
        assert len(carried) == 1, connections
        assert carried[0].startswith(beginning), f"{choice}: {carried}"


def test_hosts_without_ipv4_find_each_other(places: Places, network: Network) -> None:
    for rank, (sent, connections) in enumerate(places.run(sum_and_count, (4, 5))):
        assert sent["eth0"] > BYTES / 2, sent
        there = network.hosts[5 - rank].address6()
        assert sum(connections[there]) > BYTES / 2, connections


def test_all_connections_of_a_pair_carry_data(places: Places, network: Network) -> None:
    for count in (1, 4):
        env = {"PYCOMM_TCP_CONNECTIONS": str(count)}
        results = places.run(sum_and_count, PAIR, env=env)
        for rank, (_, connections) in enumerate(results):
            each = sorted(connections[network.hosts[1 - rank].address()], reverse=True)
            assert len(each) == 1 + 2 * count, "one for control, and for each lane"
            assert each[count - 1] > BYTES / 2 / count / 2, f"the data is shared: {each}"
            assert each[count] < NOISE, f"messages and control carry next to nothing: {each}"


def accepted_ports(me: Rank) -> set[int]:
    """The local ports of the connections that the peers opened to this rank."""
    rows = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    own = {os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if exists(fd)}
    fields = [row.split() for row in rows]
    return {
        int(one[1].rpartition(":")[2], 16) for one in fields if f"socket:[{one[9]}]" in own
    } & set(range(40000, 40004))


def exists(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


def test_listeners_stay_within_the_port_range(places: Places, network: Network) -> None:
    env = {"PYCOMM_PORT_RANGE": "40000-40003", "PYCOMM_TRANSPORT": "tcp"}
    for _ in range(3):  # ports are free again at once, though connections lived on them
        ports = places.run(accepted_ports, (0, 0, 0, 1), env=env)
        assert all(ports[rank] for rank in range(3)), ports
        assert len(set().union(*ports[:3])) == 3, f"one port for each rank of a host: {ports}"


# ---- what users see when the choice is wrong


def attempt(me: Rank, by_rank: dict[int, dict[str, Any]]) -> tuple[str, str, list[int], float]:
    """How set-up with this rank's options ended: error type, its text, ranks, seconds."""
    began = time.monotonic()
    try:
        me.init(pycomm.Options(connect_timeout_s=20, **by_rank.get(me.rank, {})))
    except (pycomm.CommError, pycomm.UsageError) as error:
        took = time.monotonic() - began
        return type(error).__name__, str(error), list(getattr(error, "ranks", ())), took
    raise AssertionError("set-up came through")


def attempts(
    places: Places, hosts: tuple[int, ...], by_rank: dict[int, dict[str, Any]]
) -> list[tuple[str, str, list[int], float]]:
    ends = places.run(attempt, hosts, by_rank, init=False)
    for rank, (kind, text, ranks, took) in enumerate(ends):
        print(f"rank {rank}: {kind} after {took:.1f} s, ranks={ranks}: {text}")
        assert took < 10, f"rank {rank} waited {took} s"
    return ends


def test_a_wrong_interface_lists_those_there_are_on_every_rank(
    places: Places, network: Network
) -> None:
    ends = attempts(places, (0, 0, 1, 1), {2: {"socket_interface": "ib0,10.99.0.0/16"}})
    for rank, (kind, text, ranks, _) in enumerate(ends):
        assert "PYCOMM_SOCKET_IFNAME=ib0,10.99.0.0/16 names no interface" in text
        assert "eth0 (10.77.0.2, fd77::2, fe80::" in text
        assert "eth1 (10.78.0.2, " in text
        assert kind == ("UsageError" if rank == 2 else "CommError")
        if rank != 2:
            assert ranks == [2]
            assert re.search(r"rank 2 \(pid \d+ on host-b\) cannot join: ", text), text


def test_ranks_of_two_families_are_told_so(places: Places, network: Network) -> None:
    by_rank = {rank: {"socket_interface": "eth0"} for rank in (0, 1, 2)}
    by_rank[3] = {"socket_interface": "fd77::/16"}
    for kind, text, _, _ in attempts(places, (0, 1, 2, 3), by_rank):
        assert kind == "Mismatch", text
        assert "fd77::4 (interface eth0)" in text
        assert "host-d" in text
        assert re.search("one IPv[46], one IPv[46]; set PYCOMM_SOCKET_IFNAME", text), text


def test_loopback_on_one_host_is_refused_by_name(places: Places, network: Network) -> None:
    by_rank = {1: {"socket_interface": "lo"}}
    for kind, text, _, _ in attempts(places, (0, 1, 2), by_rank):
        assert kind == "Mismatch", text
        assert "127.0.0.1 (interface lo)" in text
        assert "set PYCOMM_SOCKET_IFNAME on host-b to an interface" in text


def test_a_full_port_range_says_which_range_of_which_interface(
    places: Places, network: Network
) -> None:
    hosts = (0, 1, 1)
    by_rank = {rank: {"port_range": "40100-40100"} for rank in range(3)}
    ends = attempts(places, hosts, by_rank)
    for _, text, ranks, _ in ends:
        assert (
            "cannot listen on 10.77.0.2 (interface eth0): 1 of 1 ports of "
            "PYCOMM_PORT_RANGE=40100-40100 are in use"
        ) in text, text
        assert "on host-b) cannot join" in text or text.startswith("set-up on rank")
        assert ranks in ([], [1], [2])


def test_a_different_number_of_connections_is_a_mismatch_on_every_rank(places: Places) -> None:
    for kind, text, _, _ in attempts(places, (0, 1, 2), {2: {"tcp_connections": 4}}):
        assert kind == "Mismatch", text
        assert "tcp connections" in text
        assert "rank 2" in text


def test_shm_alone_cannot_join_hosts(places: Places) -> None:
    by_rank = {rank: {"transport": "shm"} for rank in range(3)}
    for kind, text, _, _ in attempts(places, (0, 0, 1), by_rank):
        assert kind == "CommError", text
        assert "no transport joins rank" in text
        assert "allow tcp in PYCOMM_TRANSPORT" in text


def test_a_run_after_all_these_failures_is_sound(places: Places, network: Network) -> None:
    with pytest.raises(RankError, match="set-up came through"):
        places.run(attempt, PAIR, {}, init=False)
    places.run(sum_and_count, PAIR)
