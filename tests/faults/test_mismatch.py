# SPDX-License-Identifier: MIT
"""Ranks that do not call the same thing: pycomm.Mismatch on every rank, in that very call."""

import pytest
from fault_ranks import Ranks, seconds

WITHIN_S = 1.0

# What the others call, what the odd rank calls, and a word of each that the text must hold.
DISAGREEMENTS = {
    "shape": ({"name": "all_reduce"}, {"name": "all_reduce", "shape": [9]}, "[8]", "[9]"),
    "large shape": (
        {"name": "all_reduce", "shape": [1 << 20]},
        {"name": "all_reduce", "shape": [(1 << 20) + 16]},
        "[1048576]",
        "[1048592]",
    ),
    "dtype": ({"name": "all_reduce"}, {"name": "all_reduce", "dtype": "int32"}, "float32", "int32"),
    "op": ({"name": "all_reduce"}, {"name": "all_reduce", "op": "MAX"}, "sum", "max"),
    "order": ({"name": "all_reduce"}, {"name": "broadcast"}, "all_reduce", "broadcast"),
    "barrier": ({"name": "barrier"}, {"name": "all_reduce"}, "barrier()", "all_reduce"),
    "gather": ({"name": "all_gather"}, {"name": "gather"}, "all_gather", "gather"),
    "scatter": ({"name": "reduce_scatter"}, {"name": "all_to_all"}, "reduce_scatter", "all_to_all"),
    "blocks": ({"name": "all_gather"}, {"name": "all_gather", "shape": [7]}, "[8]", "[7]"),
    "asynchronous": (
        {"name": "all_reduce", "async_op": True},
        {"name": "all_reduce", "async_op": True, "shape": [9]},
        "[8]",
        "[9]",
    ),
}
for _name in ("broadcast", "reduce", "gather", "scatter"):
    DISAGREEMENTS[f"root of {_name}"] = (
        {"name": _name},
        {"name": _name, "root": 1},
        "root 0",
        "root 1",
    )

PLACES = [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2), (4, 0), (4, 1), (4, 2), (4, 3)]


def check_everybody(ranks: Ranks, words: tuple[str, ...], odd: int) -> None:
    ranks.join()
    for rank in range(ranks.world_size):
        first, *later = ranks.reports(rank, "raised")
        assert (first["kind"], first["call"]) == ("Mismatch", "call"), first
        assert seconds(first) < WITHIN_S
        for word in words:
            assert word in first["text"], first["text"]
        assert f"rank {odd} " in first["text"], first["text"]
        assert [one["call"] for one in later] == ["again"], later
        assert seconds(later[0]) < 0.1
        assert later[0]["text"].partition(": ")[2] == first["text"].partition(": ")[2]
        assert ranks.wait_for(rank, "result")["exact"]  # of a group made afterwards


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize("what", DISAGREEMENTS)
def test_a_disagreement_is_named_on_every_rank(what: str, transport: str) -> None:
    """At two, three and four ranks, each rank being the odd one in turn."""
    usual, unusual, *words = DISAGREEMENTS[what]
    places = PLACES if transport == "shm" else [(4, 1), (3, 2)]
    for world_size, odd in places:
        with Ranks(
            world_size,
            "calls",
            options={"transport": transport},
            call=usual,
            per_rank={odd: {"args": {"call": unusual}}},
        ) as ranks:
            check_everybody(ranks, tuple(words), odd)


@pytest.mark.parametrize(
    ("one", "other"),
    [("one_shot", "direct"), ("ring", "direct"), ("ring", "halving_doubling")],
)
def test_ranks_set_to_different_algorithms_are_told_so(one: str, other: str) -> None:
    with Ranks(
        4,
        "calls",
        env={"PYCOMM_ALGO": one},
        call={"name": "all_reduce", "shape": [100_000]},
        per_rank={2: {"env": {"PYCOMM_ALGO": other}}},
    ) as ranks:
        check_everybody(ranks, ("PYCOMM_ALGO",), 2)


@pytest.mark.parametrize("transport", ["shm", "tcp"])
@pytest.mark.parametrize(
    ("sent", "expected"),
    [({"shape": [8]}, {"shape": [6]}), ({"dtype": "float64"}, {"dtype": "int64"})],
)
def test_a_message_that_does_not_fit_is_refused(sent: dict, expected: dict, transport: str) -> None:
    send = {"name": "send", "peer": 1, **sent}
    recv = {"name": "recv", "peer": 0, **expected}
    with Ranks(
        2,
        "calls",
        options={"transport": transport},
        call=send,
        per_rank={1: {"args": {"call": recv}}},
    ) as ranks:
        ranks.join()
        receiver, again = ranks.reports(1, "raised")
        assert (receiver["kind"], receiver["call"]) == ("Mismatch", "call")
        for value in (*sent.values(), *expected.values()):
            assert str(value) in receiver["text"]
        assert "rank 0 sent" in receiver["text"]
        assert "rank 1 expected" in receiver["text"]
        # The message had left the sender, whose send is over; its next call raises.
        sender = ranks.reports(0, "raised")
        assert [one["call"] for one in sender] == ["again"]
        assert sender[0]["kind"] == again["kind"] == "Mismatch"
