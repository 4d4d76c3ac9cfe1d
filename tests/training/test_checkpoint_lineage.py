# SPDX-License-Identifier: MIT
"""Runs that go on from an older checkpoint: theirs is the newest then, and nothing is lost."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from checkpoint_runs import FailingFiles, make_run, operations, seed_all, train
from hypothesis import given
from hypothesis import strategies as st

from pycomm.checkpoint import Checkpointer, CheckpointError
from pycomm.checkpoint.folder import Found, Past
from pycomm.checkpoint.lineage import Lineage, to_try

# ---- the rules, without a disk

Action = tuple[str, int]


@given(
    st.lists(
        st.tuples(st.sampled_from(["anew", "newest", "older"]), st.integers(0, 99))
        | st.tuples(st.just("save"), st.integers(-2, 3)),
        max_size=40,
    )
)
def test_the_last_saved_is_the_newest_and_before_it_comes_what_its_run_had_loaded(
    actions: list[Action],
) -> None:
    """Against a tree in which each checkpoint knows the one that its run stood at."""
    lineage, at, step = Lineage(), None, 0
    parents: dict[Found, Found | None] = {}
    pasts: dict[Found, Past] = {}
    last: Found | None = None
    for what, number in actions:
        found = sorted(parents, reverse=True)
        if what == "save":
            step = max(0, step + number)
            while at is not None and at.step >= step:  # a step that is saved once more
                at = parents[at]
            course, past = lineage.next(found, step)
            last = Found(course, step, Path())
            assert last not in parents, "a name is given twice"
            parents[last], pasts[last], at = at, past, last
            lineage.stand(last, past)
        else:
            lineage, at, step = Lineage(), None, 0
            if found and what != "anew":
                at = found[0] if what == "newest" else found[number % len(found)]
                lineage.stand(at, pasts[at])
                step = at.step
    chain = []
    while last is not None:
        chain.append(last)
        last = parents[last]
    assert to_try(sorted(parents, reverse=True), pasts.get) == chain


# ---- on a disk


def saved(folder: Path, steps: range, begin: int | None = None, **how: Any) -> dict[str, Any]:
    """A run that goes on from the checkpoint of a step and saves after each of some."""
    state = make_run()
    with Checkpointer(folder, keep=None, **how) as checkpointer:
        if begin is None:
            seed_all(1)
        else:
            assert checkpointer.load(state, begin) == begin
        for step in train(state, max(steps)):
            if step in steps:
                checkpointer.save(step, state)
    return state


def newest(folder: Path) -> tuple[int | None, list[float]]:
    state = make_run()
    with Checkpointer(folder) as checkpointer:
        return checkpointer.load(state), state["losses"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("step-*"))


def test_after_an_older_one_was_loaded_and_a_new_one_saved_that_is_the_newest(
    tmp_path: Path,
) -> None:
    state = saved(tmp_path, range(2, 8))
    before = names(tmp_path)
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.load(make_run(), 3)
    assert names(tmp_path) == before and newest(tmp_path)[0] == 7, "merely loading changed it"
    branch = saved(tmp_path, range(4, 6), 3)
    assert newest(tmp_path) == (5, branch["losses"])
    assert set(before) < set(names(tmp_path)), "saving without keep= removed something"
    # The abandoned ones are there; of a step that both have the new one counts.
    with Checkpointer(tmp_path) as checkpointer:
        assert checkpointer.latest() == 5
        again = make_run()
        assert checkpointer.load(again, 7) == 7 and again["losses"] == state["losses"]
    # And that run goes on in the folder, too.
    saved(tmp_path, range(8, 9), 7)
    assert newest(tmp_path)[0] == 8
    assert names(tmp_path)[-1] == "step-00000008.2"


def test_a_run_that_dies_before_its_first_save_has_a_name_has_abandoned_nothing(
    tmp_path: Path,
) -> None:
    saved(tmp_path / "template", range(2, 6))
    log = operations(tmp_path / "log")
    rare = [at for at, line in enumerate(log) if not line.startswith("write")]
    named = next(at for at, line in enumerate(log) if line.startswith("to step-"))
    ends = []
    for at in rare:
        folder = tmp_path / "run"
        shutil.copytree(tmp_path / "template", folder)
        try:
            saved(folder, range(4, 5), 3, async_=False, files=FailingFiles(at))
        except CheckpointError:
            assert at <= named + 1, log[at]
        ends.append(newest(folder)[0])
        assert ends[-1] == (5 if at <= named else 4), log[at]
        assert {f"step-{step:08d}" for step in range(2, 6)} <= set(names(folder))
        shutil.rmtree(folder)
    assert set(ends) == {4, 5}


@pytest.mark.parametrize("file", ["__0_0.distcp", "manifest.json"])
def test_before_a_broken_one_comes_what_its_run_had_loaded(file: str, tmp_path: Path) -> None:
    saved(tmp_path, range(2, 8))
    saved(tmp_path, range(4, 5), 3)
    (tmp_path / "step-00000004.1" / file).unlink()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert newest(tmp_path)[0] == 3
    said = [str(one.message) for one in caught if "is broken" in str(one.message)]
    assert len(said) == 1 and "step-00000004.1" in said[0]


def test_old_ones_of_every_course_go_when_the_run_has_left_their_steps_behind(
    tmp_path: Path,
) -> None:
    saved(tmp_path, range(2, 8))
    state = make_run()
    with Checkpointer(tmp_path, keep=2) as checkpointer:
        checkpointer.load(state, 3)
        kept = []
        for step in train(state, 9):
            checkpointer.save(step, state)
            checkpointer.wait()
            kept.append([name.removeprefix("step-0000000") for name in names(tmp_path)])
    assert kept == [
        ["3", "4", "4.1", "5", "6", "7"],
        ["4", "4.1", "5", "5.1", "6", "7"],
        ["5", "5.1", "6", "6.1", "7"],
        ["6", "6.1", "7", "7.1"],
        ["7", "7.1", "8.1"],
        ["8.1", "9.1"],
    ]
