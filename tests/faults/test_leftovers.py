# SPDX-License-Identifier: MIT
"""Nothing stays behind: no file, port or process of the dead, no descriptor of the living."""

import os
from pathlib import Path

import pytest
from fault_ranks import Ranks

CYCLES = 20


def traces() -> dict[str, set[str]]:
    """What a group could leave on this machine."""
    listening = {
        line.split()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A"
    }
    unix = {
        line.split()[-1]
        for line in Path("/proc/net/unix").read_text().splitlines()
        if "@pycomm-" in line
    }
    return {"shm": set(os.listdir("/dev/shm")), "ports": listening, "unix": unix}


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("end", ["kill", "normal", "failure"])
def test_no_trace_is_left(end: str, transport: str) -> None:
    """Other tests may run at the same time, so only names of pycomm and of these ranks count."""
    before = traces()
    fail = end == "failure"
    scenario = "idle" if end == "kill" else "cycles"
    args = {"victim": 0, "call": "barrier", "cycles": 2, "fail": fail}
    with Ranks(3, scenario, options={"transport": transport}, **args) as ranks:
        if end == "kill":
            ranks.wait_all("ready")
            for rank in range(3):
                ranks.kill(rank)
        ranks.join()
        pids = list(ranks.pids.values())
    after = traces()
    assert not [name for name in after["shm"] - before["shm"] if "pycomm" in name]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    # A name or port that another test's ranks hold by chance is owned by a living process.
    held = sockets_of_the_living()
    for line in Path("/proc/net/unix").read_text().splitlines():
        fields = line.split()
        if fields[-1].startswith("@pycomm-") and fields[-1] not in before["unix"]:
            assert fields[6] in held, f"nobody holds {fields[-1]}"


def sockets_of_the_living() -> set[str]:
    inodes = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:
            continue
        if target.startswith("socket:["):
            inodes.add(target[8:-1])
    return inodes


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("fail", [False, True])
@pytest.mark.parametrize("async_op", [False, True])
def test_cycles_of_init_and_destroy_hold_on_to_nothing(
    transport: str, fail: bool, async_op: bool
) -> None:
    options = {"transport": transport}
    with Ranks(3, "cycles", options=options, cycles=CYCLES, fail=fail, async_op=async_op) as ranks:
        ranks.join()
        for rank in range(3):
            cycles = ranks.reports(rank, "cycle")
            assert len(cycles) == CYCLES
            assert cycles[-1]["fds"] == cycles[0]["fds"]
            assert cycles[-1]["threads"] == cycles[0]["threads"]
            # The first cycles fill allocators' pools.
            assert cycles[-1]["bytes"] - cycles[4]["bytes"] < 5 << 20
