# SPDX-License-Identifier: MIT
"""Operations that run out of time name who never arrived and leave the flight recorder behind."""

import json
from pathlib import Path

import pytest
from fault_ranks import Ranks, seconds

TIMEOUT_S = 1.0
CALLS = [
    ({"name": "all_reduce", "shape": [1 << 18]}, [0]),
    ({"name": "all_reduce", "shape": [1 << 18]}, [2]),
    ({"name": "barrier"}, [3]),
    ({"name": "broadcast", "root": 1}, [1]),
    ({"name": "all_gather"}, [1, 3]),
]


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(("call", "missing"), CALLS)
def test_a_timeout_names_the_ranks_that_never_arrived(
    call: dict, missing: list[int], transport: str, tmp_path: Path
) -> None:
    with Ranks(
        4,
        "late_or_never",
        options={"transport": transport, "algorithm": "all_reduce=ring"},
        env={"PYCOMM_FLIGHT_DIR": str(tmp_path)},
        timeout_s=TIMEOUT_S,
        missing=missing,
        call=call,
    ) as ranks:
        waiting = [rank for rank in range(4) if rank not in missing]
        began, ended = [], []
        for rank in waiting:
            raised = ranks.wait_for(rank, "raised")
            assert raised["kind"] == "Timeout"
            assert seconds(raised) < TIMEOUT_S + 1.0
            began.append(raised["at"] - raised["took"])
            ended.append(raised["at"])
            assert set(raised["ranks"]) <= set(missing)
            assert raised["ranks"]
            for absent in missing:
                assert f"waiting for rank {absent} (pid {ranks.pids[absent]}" in raised["text"]
            assert "it never arrived at operation #2" in raised["text"]
        # The first who came has waited for all of its time, the others heard of it.
        assert min(ended) - min(began) >= TIMEOUT_S
        ranks.go()
        ranks.join()
        for absent in missing:
            # On a busy machine it may find the others' frames before their notice.
            assert ranks.reports(absent, "raised")[0]["kind"] in ("Timeout", "Mismatch")
        for rank in waiting:
            check_flight(tmp_path, rank, call["name"])


def check_flight(folder: Path, rank: int, collective: str) -> None:
    (dump,) = folder.glob(f"pycomm_flight_*_rank{rank}.json")
    told = json.loads(dump.read_text())
    assert told["rank"] == rank
    assert "timeout after" in told["failure"]
    last = told["entries"][-1] if told["entries"][-1]["sequence"] == 2 else told["entries"][-2]
    assert (last["sequence"], last["collective"]) == (2, collective)
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("name", ["recv", "send"])
def test_a_message_times_out(name: str, transport: str) -> None:
    with Ranks(
        2,
        "late_or_never",
        options={"transport": transport},
        timeout_s=TIMEOUT_S,
        missing=[1],
        call={"name": name, "peer": 1, "shape": [1 << 22]},
    ) as ranks:
        raised = ranks.wait_for(0, "raised")
        assert (raised["kind"], raised["ranks"]) == ("Timeout", [1])
        assert seconds(raised) < TIMEOUT_S + 0.5
        assert "rank 1 (pid" in raised["text"]
        ranks.go()
        ranks.join()


def test_wait_with_a_timeout_leaves_the_operation_and_the_group_alone() -> None:
    with Ranks(2, "impatient_wait") as ranks:
        raised = ranks.wait_for(0, "raised")
        assert raised["kind"] == "Timeout"
        assert "it goes on in the background" in raised["text"]
        ranks.go()
        assert set(ranks.join().values()) == {0}
        assert all(ranks.wait_for(rank, "result")["exact"] for rank in range(2))


@pytest.mark.parametrize("kind", ["drop", "cut"])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("frame", [0, 4, 31])
def test_a_lost_frame_or_link_is_an_error_on_every_rank(
    kind: str, transport: str, frame: int
) -> None:
    """The last frame of all can only be missed by its deadline."""
    fault = {"kind": kind, "frame": frame, "peers": [2]}
    with Ranks(
        3,
        "all_reduce",
        options={"transport": transport, "algorithm": "one_shot"},
        per_rank={1: {"args": {"fault": fault}}},
        timeout_s=TIMEOUT_S,
        count=1 << 20,
    ) as ranks:
        ranks.join()
        raised = {rank: ranks.reports(rank, "raised") for rank in range(3)}
        # Rank 2 misses the frame; whoever had all it needed before may learn with its next call.
        assert raised[2][0]["call"] == "all_reduce"
        for rank in range(3):
            assert raised[rank], ranks.reports(rank)
            assert raised[rank][0]["kind"] in ("Mismatch", "PeerFailure", "Timeout")
            assert seconds(raised[rank][0]) < TIMEOUT_S + 1.0
            assert all(one["exact"] for one in ranks.reports(rank, "result"))
