# SPDX-License-Identifier: MIT
"""What the doctor finds wrong, and what to do about it."""

from __future__ import annotations

from dataclasses import asdict, dataclass

BROKEN = "broken"  # a group cannot be made, or not the one that was asked for: exit code 1
ADVICE = "advice"  # works, but slower or less well than it could


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        kind: BROKEN or ADVICE.
        what: What was found, with the values.
        remedy: What to do.
    """

    kind: str
    what: str
    remedy: str

    def facts(self) -> dict[str, str]:
        """Returns the fields, as they appear in the JSON."""
        return asdict(self)


def broken(what: str, remedy: str) -> Problem:
    """Returns a problem that makes the doctor's exit code 1."""
    return Problem(BROKEN, what, remedy)


def advice(what: str, remedy: str) -> Problem:
    """Returns a problem that leaves the exit code alone."""
    return Problem(ADVICE, what, remedy)
