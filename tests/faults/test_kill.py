# SPDX-License-Identifier: MIT
"""kill -9: every survivor raises, soon, and names the rank that died."""

import itertools
import random
import re
import signal
import socket

import pytest
from fault_ranks import Ranks, seconds

WORLD = 4
ALGORITHMS = (
    "one_shot",
    "direct",
    "ring",
    "recursive_doubling",
    "halving_doubling",
    "double_binary_tree",
)
# Benchmarks hold the target of 250 ms; a test must pass while the machine does other things.
WITHIN_S = 1.0
LARGE = 1 << 20  # float32 elements, so that every algorithm sends at least 8 frames to a peer


def check_survivor(ranks: Ranks, rank: int, victim: int, killed_at: float, numbered: str) -> None:
    raised = ranks.wait_for(rank, "raised")
    assert raised["kind"] == "PeerFailure", raised
    assert raised["ranks"] == [victim], raised
    text = raised["text"]
    assert f"rank {victim} (pid {ranks.pids[victim]} on {socket.gethostname()})" in text
    assert "last completed operation is" in text
    assert re.match(rf"{numbered} on rank {rank} of {ranks.world_size}: ", text), text
    took = seconds(raised, killed_at)
    assert took < WITHIN_S, took


def stop_in_operation(victim: int, frame: int) -> dict:
    """The victim stops right before it sends that frame: the death is inside the operation."""
    fault = {"kind": "signal", "frame": frame, "signal": signal.SIGSTOP}
    return {victim: {"args": {"fault": fault}}}


# Every rank under every algorithm on both transports; phases and sync or not take turns.
CASES = [
    (transport, algorithm, victim, (0, 3, 7)[number % 3], number % 2 == 1)
    for number, (algorithm, victim, transport) in enumerate(
        itertools.product(ALGORITHMS, range(WORLD), ("shm", "tcp"))
    )
]


@pytest.mark.parametrize(("transport", "algorithm", "victim", "frame", "async_op"), CASES)
def test_all_survivors_name_a_rank_killed_in_mid_all_reduce(
    transport: str, algorithm: str, victim: int, frame: int, async_op: bool
) -> None:
    options = {"algorithm": algorithm, "transport": transport}
    fault = stop_in_operation(victim, frame)
    with Ranks(
        WORLD, "all_reduce", options=options, per_rank=fault, count=LARGE, async_op=async_op
    ) as ranks:
        ranks.wait_stopped(victim)
        killed_at = ranks.kill(victim)
        statuses = ranks.join()
        for rank in set(range(WORLD)) - {victim}:
            check_survivor(ranks, rank, victim, killed_at, "all_reduce(?: #2)?")
            first, again = ranks.reports(rank, "raised")
            assert again["call"] == "again"
            assert seconds(again) < 0.1
            assert first["text"].partition(": ")[2] == again["text"].partition(": ")[2]
            assert statuses[rank] == 0
        assert statuses[victim] == -signal.SIGKILL


BLOCKED = ("work_wait", "barrier", "recv", "recv_any", "send", "irecv", "future", "broadcast")


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("call", BLOCKED)
def test_survivors_that_wait_for_each_other_learn_of_a_death(call: str, transport: str) -> None:
    victim = BLOCKED.index(call) % WORLD
    with Ranks(WORLD, "idle", options={"transport": transport}, victim=victim, call=call) as ranks:
        ranks.wait_all("ready")
        killed_at = ranks.kill(victim)
        ranks.join()
        for rank in set(range(WORLD)) - {victim}:
            raised = ranks.wait_for(rank, "raised")
            assert (raised["kind"], raised["ranks"]) in (
                ("PeerFailure", [victim]),
                ("DistBackendError", []),  # what torch makes of a failed future
                ("RuntimeError", []),
            ), raised
            assert call == "future" or raised["kind"] == "PeerFailure"
            assert f"rank {victim} (pid {ranks.pids[victim]} on" in raised["text"]
            assert seconds(raised, killed_at) < WITHIN_S


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("leave", ["exception", "os_exit", "kill"])
def test_survivors_that_end_at_once_do_not_hide_the_culprit(leave: str, transport: str) -> None:
    """Each survivor's end must not look like the cause to a survivor that hears later."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(4):
        victim, frame = draw.randrange(WORLD), draw.randrange(8)
        with Ranks(
            WORLD,
            "raise_on_failure",
            options={"transport": transport, "algorithm": "ring"},
            per_rank=stop_in_operation(victim, frame),
            count=LARGE,
            leave=leave,
        ) as ranks:
            ranks.wait_stopped(victim)
            killed_at = ranks.kill(victim)
            ranks.join()
            for rank in set(range(WORLD)) - {victim}:
                check_survivor(ranks, rank, victim, killed_at, "all_reduce(?: #2)?")


def test_a_group_of_two_survives_nothing_but_says_so() -> None:
    with Ranks(2, "all_reduce", per_rank=stop_in_operation(1, 0), count=LARGE) as ranks:
        ranks.wait_stopped(1)
        killed_at = ranks.kill(1)
        check_survivor(ranks, 0, 1, killed_at, "all_reduce(?: #2)?")


def test_a_death_between_calls_is_raised_by_the_next_call() -> None:
    with Ranks(3, "late_or_never", missing=[0, 1, 2], call={"name": "barrier"}) as ranks:
        ranks.wait_all("ready")
        ranks.kill(1)
        ranks.go()
        for rank in (0, 2):
            raised = ranks.wait_for(rank, "raised")
            assert (raised["kind"], raised["ranks"]) == ("PeerFailure", [1])
