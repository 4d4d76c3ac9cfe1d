# SPDX-License-Identifier: MIT
"""Set-up: ranks that do not come, ranks that disagree, strangers at the door."""

import re
import socket
import threading
import time
from pathlib import Path

import pytest
from fault_ranks import Ranks, seconds

CONNECT_S = 2.0


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("absent", [0, 2])
def test_a_rank_that_never_starts_is_named(absent: int, transport: str) -> None:
    options = {"transport": transport, "connect_timeout_s": CONNECT_S}
    with Ranks(3, "setup", options=options, absent=(absent,)) as ranks:
        for rank in set(range(3)) - {absent}:
            raised = ranks.wait_for(rank, "raised")
            assert raised["pycomm"], raised
            assert raised["ranks"] == [absent]
            assert f"rank {absent} did not publish its address" in raised["text"]
            assert seconds(raised) < CONNECT_S + 1.0


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_rank_that_dies_after_publishing_its_address_is_named(
    victim: int, transport: str
) -> None:
    """It waits for another's address then, so that nobody has connected yet."""
    last = (victim + 1) % 3
    options = {"transport": transport, "connect_timeout_s": CONNECT_S}
    late = {last: {"args": {"wait_before": True}}}
    with Ranks(3, "setup", options=options, per_rank=late) as ranks:
        for rank in set(range(3)) - {last}:
            ranks.wait_for(rank, "begins")
        time.sleep(0.3)
        ranks.kill(victim)
        ranks.wait_ended(victim)
        ranks.go()
        for rank in set(range(3)) - {victim}:
            raised = ranks.wait_for(rank, "raised")
            assert raised["pycomm"], raised
            assert re.search(rf"rank {victim}\b", raised["text"]), raised["text"]
            assert seconds(raised) < CONNECT_S + 1.0


SETTINGS = {
    "world size": ({"args": {"own_world_size": 3}}, "3", "2"),
    # Else ranks would cut tensors differently: it depends on whether all of them share memory.
    "transports": ({"options": {"transport": "tcp,shm"}}, "tcp,shm", " has transports "),
    "segment bytes": ({"options": {"segment_bytes": 8192}}, "8192", "16384"),
}


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("what", SETTINGS)
def test_ranks_with_different_settings_name_both(what: str, transport: str) -> None:
    own, here, there = SETTINGS[what]
    options = {"transport": transport, "connect_timeout_s": CONNECT_S, "segment_bytes": 16384}
    with Ranks(2, "setup", options=options, per_rank={1: own}) as ranks:
        for rank in range(2):
            raised = ranks.wait_for(rank, "raised")
            assert raised["kind"] == "Mismatch", raised
            for word in (what, here, there, f"rank {1 - rank}"):
                assert word in raised["text"], raised["text"]
            assert seconds(raised) < 1.0


def pester(port: int, stop: threading.Event) -> int:
    """Connects again and again: silent, with an HTTP request, with garbage, half a hello."""
    calls = 0
    kept = []
    words = [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x00\xff" * 4096, b"qcyp"]
    while not stop.is_set():
        try:
            stranger = socket.create_connection(("127.0.0.1", port), timeout=1)
            stranger.sendall(words[calls % len(words)])
        except OSError:
            continue
        kept = [*kept, stranger][-64:]
        calls += 1
        time.sleep(0.0005)
    for stranger in kept:
        stranger.close()
    return calls


def test_strangers_at_the_door_do_not_disturb() -> None:
    """Rank 2 comes late; until then strangers call at the listener of rank 0."""
    options = {"transport": "tcp", "connect_timeout_s": 20}
    late = {2: {"args": {"wait_before": True}}}
    with Ranks(3, "setup", options=options, per_rank=late) as ranks:
        port = listening_port(ranks.pids[0])
        stop = threading.Event()
        strangers = [threading.Thread(target=pester, args=(port, stop)) for _ in range(2)]
        for one in strangers:
            one.start()
        time.sleep(1.0)
        ranks.go()
        try:
            results = [ranks.wait_for(rank, "result")["exact"] for rank in range(3)]
        finally:
            stop.set()
            for one in strangers:
                one.join()
        assert results == [True] * 3
        assert "refused a connection" in (ranks.dir / "rank0.log").read_text()


def listening_port(pid: int) -> int:
    """The TCP port on which that process listens."""
    give_up = time.monotonic() + 10
    while time.monotonic() < give_up:
        links = [link.readlink() for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
        own = {str(link)[8:-1] for link in links if str(link).startswith("socket:[")}
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in own:
                return int(fields[1].rpartition(":")[2], 16)
        time.sleep(0.01)
    raise AssertionError(f"process {pid} does not listen")
