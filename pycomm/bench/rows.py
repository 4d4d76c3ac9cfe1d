# SPDX-License-Identifier: MIT
"""One measured line of the table, and what is computed from several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pycomm.bench.cells import Cell, busbw_factor


@dataclass(frozen=True)
class Row:
    """One cell measured with one backend.

    Attributes:
        bytes, count, dtype, op, root, placement, world: as in `Cell`.
        time_us_min, time_us_p50, time_us_p99: microseconds of one call, None if not timed.
        algbw_gbps, busbw_gbps: bandwidth at the p50 in GB/s (1e9 bytes/s), None if not timed.
        wrong: wrong elements over all ranks in the first and the last call, None if not called.
        samples: timed samples; a sample is ``calls`` calls back to back.
        reason: why the backend does not support the cell, None if it does.
        ratio: the reference backend's p50 over this backend's; above 1, this one is faster.
    """

    collective: str
    bytes: int
    count: int
    dtype: str
    op: str
    root: int
    placement: str
    world: int
    backend: str
    time_us_min: float | None = None
    time_us_p50: float | None = None
    time_us_p99: float | None = None
    algbw_gbps: float | None = None
    busbw_gbps: float | None = None
    wrong: int | None = None
    samples: int = 0
    calls: int = 0
    reason: str | None = None
    ratio: float | None = None


def percentile(values: Sequence[float], fraction: float) -> float:
    """Returns the smallest value that a ``fraction`` of them do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)]


def row_of(
    cell: Cell,
    backend: str,
    *,
    wrong: int | None = None,
    times_us: Sequence[float] = (),
    calls: int = 0,
    reason: str | None = None,
) -> Row:
    """Builds a row from the per-call times of the samples, in microseconds."""
    row = Row(
        cell.collective,
        cell.bytes,
        cell.count,
        cell.dtype,
        cell.op,
        cell.root,
        cell.placement,
        cell.world,
        backend,
        wrong=wrong,
        samples=len(times_us),
        calls=calls,
        reason=reason,
    )
    if not times_us:
        return row
    p50_us = percentile(times_us, 0.50)
    algbw_gbps = cell.bytes / (p50_us * 1e3)
    return replace(
        row,
        time_us_min=min(times_us),
        time_us_p50=p50_us,
        time_us_p99=percentile(times_us, 0.99),
        algbw_gbps=algbw_gbps,
        busbw_gbps=algbw_gbps * busbw_factor(cell.collective, cell.world),
    )


def with_ratios(rows: Sequence[Row], reference: str) -> list[Row]:
    """Fills in ``ratio`` for the rows of one cell, against the row of the reference backend."""
    times = [row.time_us_p50 for row in rows if row.backend == reference]
    base = times[0] if times else None
    return [
        replace(row, ratio=base / row.time_us_p50 if base and row.time_us_p50 else None)
        for row in rows
    ]
