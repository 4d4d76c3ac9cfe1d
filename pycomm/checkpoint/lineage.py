# SPDX-License-Identifier: MIT
"""Which checkpoints a run descends from, where several runs have gone on from the same one.

Checkpoints that follow each other are one *course*, whose number is in their names. A run that goes
on from the newest checkpoint stays on its course. One that was told to load an older one, or that
loaded none, or that saves a step again, begins the next course with its first save. The newest
checkpoint is the last one of the last course: what was saved on other courses from there on is
abandoned. It can be loaded by its step, and is removed when the run that goes on has left its step
behind.

A checkpoint's manifest has its *past*: the courses before its own with the last step of each that
it descends from. A run that dies before its first save has abandoned nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pycomm.checkpoint.folder import Found, Past


class Lineage:
    """Where a run stands: what it has loaded, or saved last."""

    def __init__(self) -> None:
        """Nothing has been loaded."""
        self._last: tuple[int, int] | None = None  # course and step
        self._past: Past = ()

    def stand(self, at: Found, past: Past) -> None:
        """Take note of a checkpoint that was loaded or saved."""
        self._last, self._past = (at.course, at.step), past

    def next(self, found: Sequence[Found], step: int) -> tuple[int, Past]:
        """Return course and past of the checkpoint that is to be saved.

        Args:
            found: The folder's, newest first.
            step: That of the new one.
        """
        newest = found[0] if found else None
        if self._last is None:
            return (0, ()) if newest is None else (newest.course + 1, ())
        course, last = self._last
        if last < step and (newest is None or (newest.course, newest.step) <= self._last):
            return course, self._past
        past = (*self._past, (course, last))
        begin = course + 1 if newest is None else max(newest.course, course) + 1
        return begin, tuple((one, min(until, step - 1)) for one, until in past)


def descends(at: Found, past: Past, one: Found) -> bool:
    """Return whether a checkpoint, of this past, is another or was made after it."""
    if one.course == at.course:
        return one.step <= at.step
    return any(one.course == course and one.step <= until for course, until in past)


def to_try(found: Sequence[Found], past_of: Callable[[Found], Past | None]) -> list[Found]:
    """Return the newest checkpoint and those it descends from, newest first.

    Args:
        found: The folder's, newest first.
        past_of: A checkpoint's past; None: its manifest cannot be read. Such a one is to be tried,
            too, to be told what is wrong with it. It abandons what its step says that it does.
    """
    tried: list[Found] = []
    for one in found:
        if any(one.course < broken.course and one.step >= broken.step for broken in tried):
            continue
        past = past_of(one)
        if past is not None:
            return tried + [other for other in found if descends(one, past, other)]
        tried.append(one)
    return tried
