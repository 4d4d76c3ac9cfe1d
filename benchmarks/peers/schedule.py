# SPDX-License-Identifier: MIT
"""How one cell is timed: who is next, how many calls make a sample, and what is kept."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

SAMPLE_NS = 1_000_000  # a sample of small calls: long against the skew in which a barrier is left
CALLS_MAX = 1000
SAMPLES_MAX = 20  # in one turn
CACHED_BYTES = 8 << 20  # above it no cache remembers a rank's buffer from call to call
ROUNDS_MIN = 5


def turns(contenders: Sequence[T], rounds: int) -> Iterator[list[T]]:
    """A B C, then C B A, and so on: a drift of the machine hits all alike."""
    for number in range(rounds):
        yield list(contenders) if number % 2 == 0 else list(reversed(contenders))


@dataclass(frozen=True)
class Turn:
    """One turn of a contender: warm untimed calls, then `samples` samples of `calls` calls."""

    warm: int
    calls: int
    samples: int

    def command(self) -> str:
        """The line that asks for it."""
        return f"time {self.warm} {self.calls} {self.samples}"


def plan_turn(call_ns: float, size: int, turn_ns: float) -> Turn:
    """What fits into turn_ns for a contender whose calls take about call_ns."""
    call_ns = max(call_ns, 50.0)
    calls = int(min(CALLS_MAX, max(1, SAMPLE_NS / call_ns)))
    samples = int(min(SAMPLES_MAX, max(1, turn_ns / (calls * call_ns))))
    return Turn(max(1, calls // 4) if size <= CACHED_BYTES else 0, calls, samples)


def slowest_ns(answers: Sequence[str], calls: int) -> list[float]:
    """All ranks' answers to `time` as nanoseconds per call: of each sample the slowest rank's."""
    by_rank = []
    for answer in answers:
        words = answer.split()
        if not words or words[0] != "times":
            raise ValueError(f"a rank answered {answer[:200]!r} when asked for times")
        by_rank.append([int(word) / calls for word in words[1:]])
    return [max(sample) for sample in zip(*by_rank, strict=True)]


def percentile(ordered: Sequence[float], share: float) -> float:
    """Nearest rank: the smallest value that is not below `share` of the values."""
    return ordered[max(0, -(-len(ordered) * round(share * 1000) // 1000) - 1)]


@dataclass
class Samples:
    """What one contender showed in one cell, in nanoseconds per call."""

    calls: int = 0
    rounds: list[list[float]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """For the results: percentiles over all samples, and each round's median, in us."""
        ordered = sorted(value for one in self.rounds for value in one)
        return {
            "p50_us": round(percentile(ordered, 0.5) / 1e3, 4),
            "p99_us": round(percentile(ordered, 0.99) / 1e3, 4),
            "min_us": round(ordered[0] / 1e3, 4),
            "samples": len(ordered),
            "calls": self.calls,
            "rounds_us": [round(statistics.median(one) / 1e3, 4) for one in self.rounds],
        }
