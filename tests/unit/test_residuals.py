# SPDX-License-Identifier: MIT
"""Residuals through steps that count and steps that do not, against a model of plain values."""

from hypothesis import given
from hypothesis import strategies as st

from pycomm.compression.residuals import Residuals

SIZES = [2, 1, 3]
indices = st.sets(st.integers(0, len(SIZES) - 1))
events = st.lists(
    st.tuples(st.sampled_from(["stage", "commit", "discard"]), indices), min_size=1, max_size=20
)


@given(events)
def test_commit_keeps_and_discard_forgets_what_was_staged_of_each_parameter(script):
    residuals = Residuals(SIZES)
    committed, staged = [0.0] * len(SIZES), {}
    for number, (event, chosen) in enumerate(script, start=1):
        if event == "stage":
            order = sorted(chosen, reverse=True)
            read, write = residuals.stage(order)
            for index, source, target in zip(order, read, write, strict=True):
                begin, end = residuals.offsets[index], residuals.offsets[index] + SIZES[index]
                before = staged.get(index, committed[index])
                assert residuals.memories[source][begin:end].eq(before).all()
                residuals.memories[target][begin:end] = before + number
                staged[index] = before + number
        elif event == "commit":
            residuals.commit(chosen)
            for index in chosen & set(staged):
                committed[index] = staged.pop(index)
        else:
            residuals.discard(chosen)
            for index in chosen & set(staged):
                del staged[index]
        assert set(residuals.staged) == set(staged)
        for index, value in enumerate(committed):
            assert residuals.committed(index).tolist() == [value] * SIZES[index]


def test_discard_without_names_forgets_all():
    residuals = Residuals(SIZES)
    residuals.stage([0, 1, 2])
    residuals.discard()
    assert not residuals.staged


def test_rescaling_reaches_what_is_committed_and_what_is_staged():
    residuals = Residuals(SIZES)
    residuals.committed(0).fill_(2)
    _, (write,) = residuals.stage([0])
    residuals.memories[write][:2] = 4
    residuals.rescale(0.5)
    assert residuals.committed(0).tolist() == [1, 1]
    residuals.commit([0])
    assert residuals.committed(0).tolist() == [2, 2]
