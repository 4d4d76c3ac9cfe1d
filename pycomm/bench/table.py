# SPDX-License-Identifier: MIT
"""The table on the terminal: columns as nccl-tests names them, and the closing summary."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from pycomm.bench.rows import Row

COLUMNS = (
    ("collective", -14),
    ("bytes", 11),
    ("count", 11),
    ("dtype", 13),
    ("op", 5),
    ("root", 4),
    ("place", 5),
    ("world", 5),
    ("backend", -8),
    ("p50_us", 11),
    ("p99_us", 11),
    ("algbw", 8),
    ("busbw", 8),
    ("wrong", 6),
)


def header(ratio: bool) -> str:
    """Returns the line of column names."""
    names = [_cell(name, width) for name, width in COLUMNS]
    return "  ".join([*names, _cell("ratio", 7)] if ratio else names).rstrip()


def line(row: Row, ratio: bool) -> str:
    """Returns the line of one row; `ratio` adds the column that compares backends."""
    fixed = [
        row.collective,
        str(row.bytes),
        str(row.count),
        row.dtype,
        row.op,
        str(row.root),
        row.placement,
        str(row.world),
        row.backend,
    ]
    widths = [width for _, width in COLUMNS]
    if row.reason is not None:
        text = "  ".join(_cell(value, width) for value, width in zip(fixed, widths, strict=False))
        return f"{text}  unsupported: {row.reason}"
    measured = [
        _number(row.time_us_p50, 2),
        _number(row.time_us_p99, 2),
        _number(row.algbw_gbps, 3),
        _number(row.busbw_gbps, 3),
        "-" if row.wrong is None else str(row.wrong),
    ]
    cells = [_cell(value, width) for value, width in zip(fixed + measured, widths, strict=True)]
    return "  ".join([*cells, _cell(_number(row.ratio, 2), 7)] if ratio else cells).rstrip()


def summary(rows: Sequence[Row], backends: Sequence[str]) -> list[str]:
    """Returns the closing lines: the first backend against each other, per world; then totals."""
    lines = []
    first = backends[0]
    for world in dict.fromkeys(row.world for row in rows):
        times: dict[tuple[object, ...], dict[str, float]] = {}
        for row in rows:
            if row.world == world and row.time_us_p50 is not None:
                key = (row.collective, row.bytes, row.dtype, row.op, row.placement)
                times.setdefault(key, {})[row.backend] = row.time_us_p50
        for other in backends[1:]:
            ratios = [
                cell[other] / cell[first]
                for cell in times.values()
                if first in cell and other in cell
            ]
            if ratios:
                slower = sum(ratio < 1 for ratio in ratios)
                lines.append(
                    f"# {world} ranks: {first} slower than {other} in {slower} of "
                    f"{len(ratios)} cells; "
                    f"time of {other} / {first}: worst {min(ratios):.2f}, "
                    f"median {statistics.median(ratios):.2f}"
                )
    wrong = sum(row.wrong or 0 for row in rows)
    bad = sum(1 for row in rows if row.wrong)
    unsupported = sum(1 for row in rows if row.reason is not None)
    lines.append(
        f"# {len(rows)} rows, {unsupported} unsupported, {wrong} wrong elements in {bad} rows"
    )
    return lines


def _cell(text: str, width: int) -> str:
    """Pads to the right of positive widths, to the left of negative ones."""
    return text.rjust(width) if width > 0 else text.ljust(-width)


def _number(value: float | None, digits: int) -> str:
    """Formats a number, or a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"
