# SPDX-License-Identifier: MIT
"""Which gradients travel together: properties of assign_buckets over random models."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pycomm
from pycomm.native import load

Parameter = tuple[int, str, int]  # bytes, dtype, device
PARAMETER = st.tuples(
    st.integers(0, 1 << 20),
    st.sampled_from(["float32", "bfloat16", "float64"]),
    st.integers(-1, 1),
)
LIMITS = st.lists(st.integers(1, 1 << 21), min_size=2, max_size=2).map(sorted)


@st.composite
def models(draw: st.DrawFn) -> tuple[list[Parameter], list[int]]:
    parameters = draw(st.lists(PARAMETER, max_size=40))
    return parameters, draw(st.permutations(range(len(parameters))))


@settings(max_examples=300, deadline=None)
@given(model=models(), limits=LIMITS)
def test_buckets_hold_each_parameter_once_in_order_and_close_at_their_limit(
    model: tuple[list[Parameter], list[int]], limits: list[int]
) -> None:
    (parameters, order), (first, limit) = model, limits
    buckets = load().assign_buckets(parameters, order, first, limit)
    assert buckets == load().assign_buckets(parameters, order, first, limit)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(len(parameters)))
    place = {index: at for at, index in enumerate(order)}
    closed = 0
    kinds_left_open = set()
    for number, bucket in enumerate(buckets):
        kinds = {parameters[index][1:] for index in bucket}
        assert len(kinds) == 1  # one dtype and device
        assert bucket == sorted(bucket, key=place.__getitem__)
        sizes = [parameters[index][0] for index in bucket]
        wanted = limit if number else first
        assert sum(sizes[:-1]) < wanted  # without its last parameter it was not full
        if sum(sizes) >= wanted and not kinds_left_open:
            closed += 1
        else:  # those that stay open come last, one for each kind
            assert sum(sizes) < wanted
            assert not kinds & kinds_left_open
            kinds_left_open |= kinds
    assert closed + len(kinds_left_open) == len(buckets)


@settings(max_examples=100, deadline=None)
@given(model=models(), limits=LIMITS)
def test_full_buckets_come_in_the_order_in_which_they_are_complete(
    model: tuple[list[Parameter], list[int]], limits: list[int]
) -> None:
    (parameters, order), (first, limit) = model, limits
    buckets = load().assign_buckets(parameters, order, first, limit)
    place = {index: at for at, index in enumerate(order)}
    full = [
        bucket
        for number, bucket in enumerate(buckets)
        if sum(parameters[index][0] for index in bucket) >= (limit if number else first)
    ]
    last = [place[bucket[-1]] for bucket in full]
    assert last == sorted(last)


@pytest.mark.parametrize(
    ("order", "limits", "text"),
    [
        ([0], (1, 1), "the order has 1 entries, expected one for each of 2"),
        ([0, 0], (1, 1), "names parameter 0 twice"),
        ([0, 2], (1, 1), "names parameter 2"),
        ([0, 1], (0, 1), "expected both positive"),
    ],
)
def test_what_is_no_order_and_no_limit_is_refused(
    order: list[int], limits: tuple[int, int], text: str
) -> None:
    with pytest.raises(pycomm.UsageError, match=text):
        load().assign_buckets([(4, "float32", -1)] * 2, order, *limits)
