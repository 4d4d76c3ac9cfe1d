# SPDX-License-Identifier: MIT
"""Where ranks are in a data set, written so that ranks of another number can go on from there.

An epoch is one order of samples. Ranks share it out and each counts how many of its own it has
consumed. When the world size (or anything else that decides who gets what) changes in mid-epoch,
the counts of all ranks are put on record, and what they leave is shared out anew. So the records of
an epoch say exactly which samples are done: replaying the shares gives them, however often they
changed.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from pycomm.data.order import Integers, epoch_order
from pycomm.data.shares import Shares, deal
from pycomm.errors import UsageError

VERSION = 1
# Epoch to what happened to it, in order: {"shares", "consumed"}: so many samples of each rank were
# consumed, then the rest was shared out anew; {"carried"}: these ids of an earlier epoch came in;
# {"left"}: what was left went to the next epoch.
Records = dict[int, list[dict[str, Any]]]


@dataclass(frozen=True)
class Course:
    """What the order of every epoch follows from."""

    length: int
    seed: int
    shuffle: bool


class Position(NamedTuple):
    """A rank's epoch, how many of its samples of it are consumed, and the records from there on."""

    epoch: int
    consumed: int
    records: Records


def left(course: Course, records: Records, epoch: int) -> Integers:
    """Return the samples of an epoch that nobody on record consumed, in order."""
    ids = epoch_order(course.length, course.seed, epoch, course.shuffle)
    for event in records.get(epoch, []):
        if "carried" in event:
            ids = np.concatenate([ids, np.array(event["carried"], dtype=np.int64)])
            continue
        if "left" in event:
            ids = ids[:0]
            continue
        dealt = deal(ids, _shares_of(event["shares"]))
        keep = np.ones(len(ids), dtype=bool)
        for rank, consumed in enumerate(event["consumed"]):
            keep[dealt.places(rank)[:consumed]] = False
        ids = ids[keep]
    return ids


def to_state(course: Course, shares: Shares, rank: int, position: Position) -> dict[str, Any]:
    """Return a rank's position as plain numbers, strings, lists and dicts."""
    return {
        "version": VERSION,
        **asdict(course),
        "shares": _to_dict(shares),
        "rank": rank,
        "epoch": position.epoch,
        "consumed": position.consumed,
        "records": {str(epoch): copy.deepcopy(one) for epoch, one in position.records.items()},
    }


def course_of(states: Sequence[dict[str, Any]], length: int) -> Course:
    """Return the order that states follow.

    Raises:
        UsageError: they are not a ShardedSampler's, do not belong together, or are of a data set
            of another length.
    """
    if not states or any(one.get("version") != VERSION for one in states):
        versions = [one.get("version") for one in states]
        raise UsageError(
            f"ShardedSampler: got states of versions {versions}, expected one or more, of version "
            f"{VERSION}, from state_dict()"
        )
    first = states[0]
    if first["length"] != length:
        raise UsageError(
            f"ShardedSampler: the state is of a data set of {first['length']} samples, this one "
            f"has {length}; a position means nothing in other data: use the same, or begin anew"
        )
    for key in ("length", "seed", "shuffle", "shares"):
        if any(one[key] != first[key] for one in states):
            values = {one["rank"]: one[key] for one in states}
            raise UsageError(f"ShardedSampler: states differ in {key}, by rank: {values}")
    return Course(length, int(first["seed"]), bool(first["shuffle"]))


def resume(
    course: Course, shares: Shares, rank: int, states: Sequence[dict[str, Any]], in_step: bool
) -> Position:
    """Return where a rank goes on.

    Args:
        course: Of the states.
        shares: Of the ranks that go on.
        rank: Of them.
        states: Of all ranks that stopped; with in_step one of them stands for all.
        in_step: All ranks that stopped had consumed as many batches.

    Raises:
        UsageError: states are missing.
    """
    saved = _shares_of(states[0]["shares"])
    by_rank = {int(one["rank"]): one for one in states}
    if saved == shares and rank in by_rank:
        own = by_rank[rank]
        position = Position(int(own["epoch"]), int(own["consumed"]), _records_of(own))
    else:
        missing = sorted(set(range(saved.world_size)) - set(by_rank))
        if missing and (not in_step or saved.uneven == "join"):
            raise UsageError(
                f"ShardedSampler: the states of ranks {missing} of {saved.world_size} are missing; "
                "ranks that do not go in step are resumed with load_rank_states of all their states"
            )
        position = _close(course, saved, by_rank)
        if saved == shares:  # another rank's state, and all were in step
            event = position.records[position.epoch].pop()
            position = position._replace(consumed=event["consumed"][rank])
    return at_a_step(course, shares, rank, position)


def _to_dict(shares: Shares) -> dict[str, Any]:
    return {**asdict(shares), "weights": list(shares.weights)}


def _shares_of(state: dict[str, Any]) -> Shares:
    return Shares(**{**state, "weights": tuple(state["weights"])})


def _records_of(state: dict[str, Any]) -> Records:
    return {int(epoch): copy.deepcopy(one) for epoch, one in state["records"].items()}


def _close(course: Course, shares: Shares, by_rank: dict[int, dict[str, Any]]) -> Position:
    """Put on record what all ranks have consumed, from the hindmost rank's epoch on."""
    hindmost = min(by_rank.values(), key=lambda one: int(one["epoch"]))
    begin = int(hindmost["epoch"])
    records = _records_of(hindmost)
    for epoch in range(begin, max(int(one["epoch"]) for one in by_rank.values()) + 1):
        ids = left(course, records, epoch)
        dealt = deal(ids, shares)
        passed = any(int(one["epoch"]) > epoch for one in by_rank.values())
        if passed and len(ids) and not len(dealt.sizes) and shares.uneven == "spread":
            # Too few for a step: the ranks in front took them along, as at_a_step does.
            records.setdefault(epoch, []).append({"left": len(ids)})
            records.setdefault(epoch + 1, []).append({"carried": ids.tolist()})
            continue
        lengths = [int(length) for length in dealt.sizes.sum(axis=0)]
        consumed = []
        for rank in range(shares.world_size):
            # A rank whose state is not here is in step with the one that is.
            one = by_rank.get(rank, hindmost)
            own = int(one["consumed"]) if int(one["epoch"]) == epoch else 0
            if int(one["epoch"]) > epoch:
                own = lengths[rank]
            elif rank not in by_rank:
                ends = dealt.ends(int(one["rank"]))
                batches = int(np.searchsorted(ends, own, side="right"))
                own = int(dealt.sizes[:batches, rank].sum())
            consumed.append(own)
        event = {"shares": _to_dict(shares), "consumed": consumed}
        records.setdefault(epoch, []).append(event)
    return Position(begin, 0, records)


def at_a_step(course: Course, shares: Shares, rank: int, position: Position) -> Position:
    """Return the position, or the beginning of the next epoch in which this rank has something.

    Samples that are too few to make a step are not lost: they are added to the next epoch.
    """
    epoch, consumed, records = position
    records = {number: list(events) for number, events in records.items() if number >= epoch}
    while epoch in records or consumed:  # a fresh epoch is known to have a step
        rest: list[int] = []
        if not _over(course, records, epoch):
            ids = left(course, records, epoch)
            dealt = deal(ids, shares)
            if consumed < len(dealt.places(rank)):
                return Position(epoch, consumed, records)
            if not len(dealt.sizes) and shares.uneven == "spread":
                rest = ids.tolist()
        records.pop(epoch, None)
        epoch, consumed = epoch + 1, 0
        if rest:
            records.setdefault(epoch, []).append({"carried": rest})
    return Position(epoch, consumed, records)


def _over(course: Course, records: Records, epoch: int) -> bool:
    """Whether all ranks had consumed all their shares when these were last put on record."""
    events = records.get(epoch, [])
    if not events or "shares" not in events[-1]:
        return False
    ids = left(course, {epoch: events[:-1]}, epoch)
    lengths = deal(ids, _shares_of(events[-1]["shares"])).sizes.sum(axis=0)
    return bool((lengths <= np.array(events[-1]["consumed"])).all())
