# SPDX-License-Identifier: MIT
"""How parameter servers deal a model out, pack it, and decide who may go on: no processes here."""

from __future__ import annotations

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pycomm import UsageError
from pycomm.native import load
from pycomm.parameter_server.clocks import Clocks
from pycomm.parameter_server.packing import Packing
from pycomm.parameter_server.shards import Piece, deal

SIZES = st.lists(st.integers(0, 5000), min_size=1, max_size=12).map(
    lambda sizes: {f"layer{i}.weight": size for i, size in enumerate(sizes)}
)


@given(SIZES, st.integers(1, 7), st.sampled_from(["range", "hash"]))
@settings(max_examples=200, deadline=None)
def test_every_element_has_one_server_and_servers_have_like_loads(sizes, servers, kind) -> None:
    total = sum(sizes.values())
    if servers > total:
        with pytest.raises(UsageError, match=f"servers={servers}: expected 1 to {total}"):
            deal(sizes, servers, kind)
        return
    dealt = deal(sizes, servers, kind)
    assert dealt == deal(sizes, servers, kind)
    seen = sorted((p.name, i) for pieces in dealt for p in pieces for i in range(p.begin, p.end))
    assert seen == sorted((name, i) for name, size in sizes.items() for i in range(size))
    loads = [sum(piece.size for piece in pieces) for pieces in dealt]
    # By range to one element; by hash to one chunk, a sixteenth of a share or 1024 elements.
    chunk = 1 if kind == "range" else min(max(total // (16 * servers), 1024), total // servers)
    assert max(loads) - min(loads) <= chunk
    names = list(sizes)
    for pieces in dealt:
        order = [(names.index(p.name), p.begin, p.end) for p in pieces]
        assert order == sorted(order)
        assert all(a[0] != b[0] or a[2] < b[1] for a, b in zip(order, order[1:], strict=False))


def test_hashing_spreads_each_layer_over_the_servers() -> None:
    dealt = deal({"large": 1 << 20, "small": 1 << 10}, 4, "hash")
    for pieces in dealt:
        assert sum(piece.size for piece in pieces if piece.name == "large") > 0.8 * (1 << 18)


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="shards='random': expected one of range, hash"):
        deal({"a": 3}, 1, "random")


PIECES = [Piece("a", 0, 100), Piece("b", 10, 3000), Piece("c", 0, 1024), Piece("d", 0, 1)]


@pytest.mark.parametrize("wire", ["fp32", "bf16", "fp16s", "int8", "int4"])
def test_a_vector_survives_the_wire_and_small_pieces_are_exact(wire: str) -> None:
    packing = Packing(PIECES, wire)
    torch.manual_seed(1)
    vector = torch.randn(packing.size)
    message = packing.message(vector)
    packing.encode(vector, message, None)
    got = vector if wire == "fp32" else torch.zeros(packing.size)
    packing.decode(message, got)
    by_name = dict(zip([p.name for p in packing.pieces], packing.views(got), strict=True))
    sent = dict(zip([p.name for p in packing.pieces], packing.views(vector), strict=True))
    for name in ("a", "d") if wire != "fp32" else by_name:
        assert torch.equal(by_name[name], sent[name])
    error = ((got - vector).norm() / vector.norm()).item()
    assert error <= {"fp32": 0, "bf16": 3e-3, "fp16s": 4e-4, "int8": 9e-3, "int4": 0.2}[wire]
    if wire == "int8":
        coded = 2990 + 1024
        assert message.nbytes == load().wire_bytes("int8", coded) + 4 * 101


def test_a_residual_delivers_in_the_end_what_coarse_steps_lost() -> None:
    packing = Packing([Piece("a", 0, 2048)], "int4")
    torch.manual_seed(2)
    vector, residual, total = torch.randn(2048), torch.zeros(2048), torch.zeros(2048)
    message, got = packing.message(vector), torch.zeros(2048)
    for _ in range(50):
        packing.encode(vector, message, residual)
        packing.decode(message, got)
        total += got
    torch.testing.assert_close(total / 50, vector, rtol=0, atol=0.02)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="wire='int2': expected one of fp32, bf16"):
        Packing(PIECES, "int2")


EVENTS = st.lists(
    st.tuples(st.sampled_from(["join", "push", "leave"]), st.integers(0, 5)), max_size=80
)


@given(EVENTS, st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_no_pull_is_answered_beyond_the_bound_and_the_slowest_never_waits(events, bound) -> None:
    clocks = Clocks("ssp", bound, 1)
    waiting: set[int] = set()  # they have pushed and not been answered: they do nothing else
    for number, (event, who) in enumerate(events):
        there = sorted(clocks.members)
        if event == "join":
            member = clocks.join(number, who)
            clocks.enter(member, clocks.lowest)
        elif there:
            member = clocks.members[there[who % len(there)]]
            if event == "leave":
                clocks.leave(member)
                waiting.discard(member.number)
            elif member.number not in waiting:
                clocks.advance(member)
                waiting.add(member.number)
        for one in sorted(waiting):
            if clocks.may_pull(clocks.members[one], 0):
                clocks.pulled(clocks.members[one])
                waiting.discard(one)
        if clocks.members:
            slowest = min(clocks.members.values(), key=lambda one: one.clock)
            assert slowest.number not in waiting
    assert max(clocks.leads, default=0) <= bound


def test_nobody_is_given_parameters_before_all_who_begin_together_have_come() -> None:
    for mode, bound in (("sync", None), ("async", None), ("ssp", 3)):
        clocks = Clocks(mode, bound, 2)
        first = clocks.join(0, 0)
        assert not clocks.may_pull(first, 0)
        clocks.join(1, 1)
        assert clocks.may_pull(first, 0)
        clocks.leave(clocks.members[1])
        assert clocks.may_pull(first, 0)


def test_wrong_modes_are_refused_with_what_is_expected() -> None:
    make = functools.partial(Clocks, workers=1)
    for mode, bound, text in (
        ("bsp", None, "mode='bsp': expected one of sync, async, ssp"),
        ("ssp", None, "mode='ssp' with staleness=None: ssp needs a bound"),
        ("async", 3, "mode='async' with staleness=3: ssp needs a bound"),
        ("ssp", -1, "staleness=-1: expected a number of steps"),
    ):
        with pytest.raises(UsageError, match=text):
            make(mode, bound)
    with pytest.raises(UsageError, match="workers=0: expected how many begin together"):
        Clocks("sync", None, 0)
