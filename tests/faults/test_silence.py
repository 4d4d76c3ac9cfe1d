# SPDX-License-Identifier: MIT
"""A stopped rank is found out within the detect timeout; a slow one is left alone."""

import signal
import time

import pytest
from fault_ranks import Ranks, seconds

DETECT_S = 1.0
# The guarantee is detect timeout + 0.2 s; the rest is for a machine that does other things.
SLACK_S = 0.2 + 0.6
ENV = {"PYCOMM_DETECT_TIMEOUT": str(DETECT_S)}


def stops(victim: int) -> dict:
    """Stops once, when it is about to send its fourth frame to a peer."""
    peer = (victim + 1) % 4
    fault = {"kind": "signal", "frame": 3, "signal": signal.SIGSTOP, "peers": [peer]}
    return {victim: {"args": {"fault": fault}}}


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(("algorithm", "victim"), [("ring", 1), ("direct", 0), ("one_shot", 3)])
def test_a_rank_stopped_in_mid_operation_is_named_by_all_and_raises_when_it_goes_on(
    algorithm: str, victim: int, transport: str
) -> None:
    with Ranks(
        4,
        "all_reduce",
        options={"algorithm": algorithm, "transport": transport},
        env=ENV,
        per_rank=stops(victim),
        count=1 << 20,
    ) as ranks:
        ranks.wait_stopped(victim)
        stopped_at = time.monotonic()
        for rank in set(range(4)) - {victim}:
            raised = ranks.wait_for(rank, "raised")
            assert (raised["kind"], raised["ranks"]) == ("PeerFailure", [victim])
            assert "does not answer" in raised["text"]
            assert f"rank {victim} (pid {ranks.pids[victim]} on" in raised["text"]
            assert seconds(raised, stopped_at) < DETECT_S + SLACK_S
        goes_on_at = ranks.signal(victim, signal.SIGCONT)
        raised = ranks.wait_for(victim, "raised")
        assert (raised["kind"], raised["ranks"]) == ("PeerFailure", [victim])
        assert "declared this rank dead" in raised["text"]
        assert seconds(raised, goes_on_at) < 1.0
        assert set(ranks.join().values()) == {0}


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("call", ["recv", "recv_any", "send", "barrier"])
def test_a_rank_stopped_outside_is_found_by_those_who_wait_for_it(
    call: str, transport: str
) -> None:
    """With two ranks the other waits for the stopped one itself."""
    args = {"missing": [1], "call": {"name": "recv" if call == "recv_any" else call, "peer": 1}}
    if call == "recv_any":
        args["call"]["peer"] = None
    if call == "send":
        args["call"]["shape"] = [1 << 22]
    with Ranks(2, "late_or_never", options={"transport": transport}, env=ENV, **args) as ranks:
        ranks.wait_for(1, "ready")
        stopped_at = ranks.signal(1, signal.SIGSTOP)
        raised = ranks.wait_for(0, "raised")
        assert (raised["kind"], raised["ranks"]) == ("PeerFailure", [1])
        assert seconds(raised, stopped_at) < DETECT_S + SLACK_S


@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_a_stop_of_half_a_second_does_no_harm(transport: str) -> None:
    """With the default detect timeout, for which it is promised."""
    with Ranks(
        4,
        "all_reduce",
        options={"algorithm": "ring", "transport": transport},
        per_rank=stops(2),
        count=1 << 20,
    ) as ranks:
        ranks.wait_stopped(2)
        time.sleep(0.5)
        ranks.signal(2, signal.SIGCONT)
        assert all(one["exact"] for one in ranks.wait_all("result").values())
        ranks.join()
        assert not any(ranks.reports(rank, "raised") for rank in range(4))


@pytest.mark.parametrize("how", ["sleep", "busy"])
@pytest.mark.parametrize("transport", ["shm", "tcp"])
def test_slow_is_not_dead(how: str, transport: str) -> None:
    """Asleep for three times the detect timeout, or in C with the GIL held for as long."""
    with Ranks(
        3,
        "slow",
        options={"transport": transport},
        env=ENV,
        late=1,
        seconds=3 * DETECT_S,
        how=how,
        count=1 << 18,
        async_op=how == "busy",
    ) as ranks:
        assert set(ranks.join().values()) == {0}
        for rank in range(3):
            assert ranks.wait_for(rank, "result")["exact"]
            assert not ranks.reports(rank, "raised")
