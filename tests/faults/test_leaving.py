# SPDX-License-Identifier: MIT
"""Ranks that leave: too early, with a reason that reaches the others, or at the end, unnoticed."""

import random
import signal

import pytest
from fault_ranks import Ranks, seconds

WITHIN_S = 1.0
REASONS = {
    "sys_exit": "its process exited without destroy_process_group()",
    "exception": "its process ended with ValueError: the loss is not a number",
    "destroy": "destroy_process_group() was called",
    "os_exit": "",
    "return": "its process exited without destroy_process_group()",
    "half_done": "its process exited without destroy_process_group()",
}


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("how", REASONS)
def test_survivors_get_the_reason_why_a_rank_left(how: str, transport: str) -> None:
    leaver = list(REASONS).index(how) % 3
    with Ranks(
        3, "leave", options={"transport": transport}, leaver=leaver, how=how, count=1 << 22
    ) as ranks:
        for rank in set(range(3)) - {leaver}:
            raised = ranks.wait_for(rank, "raised")
            assert (raised["kind"], raised["ranks"]) == ("PeerFailure", [leaver]), raised
            assert f"rank {leaver} (pid {ranks.pids[leaver]} on" in raised["text"]
            assert REASONS[how] in raised["text"]
            assert "last completed operation is" in raised["text"]
        ranks.go()
        status = ranks.join()[leaver]
        assert status == {"sys_exit": 3, "exception": 1}.get(how, 0)


def test_long_reasons_in_any_script_are_cut_between_characters() -> None:
    words = "Größe ≠ 数 " * 100
    with Ranks(2, "leave", leaver=1, how="exception", words=words) as ranks:
        raised = ranks.wait_for(0, "raised")
        assert "ValueError: Größe ≠ 数" in raised["text"]
        assert "last completed operation is" in raised["text"]


LAST = [
    ("all_reduce", "exit"),
    ("all_reduce", "destroy"),
    ("broadcast", "exit"),
    ("broadcast", "destroy"),
    ("barrier", "exit"),
    ("send", "exit"),
    ("send", "destroy"),
]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(("name", "how"), LAST)
def test_a_rank_that_is_through_may_leave_while_others_still_receive(
    name: str, how: str, transport: str
) -> None:
    """The late one begins when the others have long been waiting, and frames come slowly."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    draw = random.Random(seed)
    for _ in range(8 if how == "destroy" else 2):
        with Ranks(
            4,
            "last_collective",
            options={"transport": transport},
            name=name,
            how=how,
            rounds=draw.randrange(1, 4),
            late=draw.randrange(4),
            seconds=draw.choice([0.0, 0.02, 0.2]),
            count=draw.choice([1, 4096, 1 << 20]),
            async_op=draw.random() < 0.5,
        ) as ranks:
            assert set(ranks.join().values()) == {0}
            for rank in range(4):
                assert not ranks.reports(rank, "raised")
                if name in ("all_reduce", "broadcast") or (name == "send" and rank == 3):
                    assert ranks.wait_for(rank, "result")["exact"]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_receive_from_anybody_outlives_those_who_have_left(transport: str) -> None:
    with Ranks(4, "any_source", options={"transport": transport}) as ranks:
        received = ranks.wait_for(0, "received")
        assert received["source"] == 3
        assert received["first_left"] is True
        # Now nobody is left who could send.
        raised = ranks.wait_for(0, "raised")
        assert raised["kind"] == "PeerFailure"
        assert "no rank is left to receive from" in raised["text"]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_sigterm_counts_as_a_death_that_is_named(transport: str) -> None:
    with Ranks(3, "idle", options={"transport": transport}, victim=2, call="barrier") as ranks:
        ranks.wait_all("ready")
        at = ranks.signal(2, signal.SIGTERM)
        for rank in (0, 1):
            raised = ranks.wait_for(rank, "raised")
            assert (raised["kind"], raised["ranks"]) == ("PeerFailure", [2])
            assert seconds(raised, at) < WITHIN_S
