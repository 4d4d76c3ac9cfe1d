# SPDX-License-Identifier: MIT
"""Formulas, arguments and the table of the bench; nothing here starts a process."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from pycomm.bench import add_arguments, run
from pycomm.bench.cells import SPECS, busbw_factor, bytes_for, cells_of, count_for
from pycomm.bench.command import UsageError, parse_size, sizes_between, sweep_of
from pycomm.bench.rows import Row, percentile, row_of, with_ratios
from pycomm.bench.sweep import Sweep
from pycomm.bench.table import header, line, summary


def arguments(*words: str) -> argparse.Namespace:
    """Parses a command line."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_busbw_factors_are_those_of_nccl_tests(world: int) -> None:
    share = (world - 1) / world
    factors = {name: busbw_factor(name, world) for name in SPECS}
    assert factors == {
        "all_reduce": 2 * share,
        "broadcast": 1,
        "reduce": 1,
        "all_gather": share,
        "gather": share,
        "scatter": share,
        "reduce_scatter": share,
        "all_to_all": share,
        "send_recv": 1,
        "barrier": 0,
    }


@pytest.mark.parametrize(
    ("text", "size"),
    [("8", 8), ("64K", 65536), ("16m", 2**24), ("1G", 2**30), ("4KiB", 4096), ("2 MB", 2**21)],
)
def test_sizes_have_binary_suffixes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "-8", "1.5M", "8X", "K", "0K"])
def test_a_bad_size_is_named_with_a_remedy(text: str) -> None:
    with pytest.raises(UsageError, match=r"--min: got .* write it like 8, 64K"):
        parse_size(text, "--min")


def test_sizes_run_from_smallest_to_largest() -> None:
    assert sizes_between(8, 128, 4) == (8, 32, 128)
    assert sizes_between(8, 100, 4) == (8, 32, 100)
    assert sizes_between(8, 8, 2) == (8,)
    for bad in ((16, 8, 2), (8, 16, 1)):
        with pytest.raises(UsageError):
            sizes_between(*bad)


def test_bytes_are_those_of_the_larger_side() -> None:
    assert count_for("all_reduce", 1024, 4, 4) == 256
    assert count_for("all_gather", 1024, 4, 4) == 64
    assert bytes_for("all_gather", 64, 4, 4) == 1024
    assert count_for("all_to_all", 8, 4, 4) == 1, "every rank has at least one element"
    cells = list(cells_of("scatter", 4, [8, 16, 64], ["float32"], ["sum"], ["out"], 1))
    assert [cell.bytes for cell in cells] == [16, 64], "equal counts appear once"
    assert all(cell.op == "none" and cell.root == 1 for cell in cells)


def test_a_placement_that_torch_lacks_falls_back_to_the_one_it_has() -> None:
    cells = list(cells_of("all_reduce", 2, [8], ["float32"], ["sum"], ["out"], 0))
    assert [cell.placement for cell in cells] == ["in"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["all_reduced"], "COLLECTIVE: got 'all_reduced', expected one of all_reduce"),
        (["all", "--dtype", "float23"], "--dtype: got 'float23', expected one of float32"),
        (["all", "--op", "sum,mean"], "--op: got 'mean', expected one of sum"),
        (["all", "--world", "2,x"], "--world: got 'x', expected a whole number from 1"),
        (["all", "--world", "0"], "--world: got '0'"),
        (["all", "--root", "2"], "--root: got 2, expected a rank below 2"),
        (["all", "--min", "8Q"], "--min: got '8Q'"),
        (["all", "--min", "1M", "--max", "1K"], "--min: got 1048576 bytes"),
        (["all", "--factor", "1"], "--factor: got 1"),
        (["all", "--iterations", "0"], "--iterations: got 0"),
        (["all", "--seconds", "0"], "--seconds: got 0"),
        (["all", "--backend", ","], "--backend: got nothing"),
        (["all", "--backend", "gloop"], "--backend: got 'gloop', expected one of gloo"),
        (["all", "--backend", "gloo", "--json", "/no/where/x.json"], "--json: got '/no/where"),
    ],
)
def test_bad_arguments_say_what_was_given_and_expected(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments(*words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("bench: ") and message in error and ";" in error


def test_lists_and_defaults_make_a_sweep() -> None:
    sweep = sweep_of(arguments("all", "--backend", "gloo,gloo", "--dtype", "all", "--in-place"))
    assert isinstance(sweep, Sweep)
    assert sweep.collectives == tuple(SPECS) and len(sweep.dtypes) == 11
    assert sweep.backends == ("gloo", "gloo.2"), "a backend against itself shows the noise"
    assert sweep.placements == ("in",)
    assert sweep.sizes[0] == 8 and sweep.sizes[-1] == 2**28


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys, argparse, pycomm.bench as b;"
        "p = argparse.ArgumentParser(); b.add_arguments(p); p.format_help();"
        "bad = [m for m in sys.modules if m.startswith('pycomm.bench.')"
        " and m.rpartition('.')[2] in ('calls', 'inputs', 'measure', 'plot')];"
        "sys.exit(f'imported too early: {bad}' if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def rows_of_one_cell(first_us: float, second_us: float) -> list[Row]:
    """Makes the rows of a cell measured with backends a and b."""
    cell = next(cells_of("all_reduce", 4, [10**6], ["float32"], ["sum"], ["in"], 0))
    rows = [
        row_of(cell, "a", wrong=0, times_us=[first_us]),
        row_of(cell, "b", wrong=0, times_us=[second_us]),
    ]
    return with_ratios(rows, "b")


def test_bandwidths_and_ratio_follow_from_the_p50() -> None:
    fast, slow = rows_of_one_cell(100.0, 250.0)
    assert fast.algbw_gbps == pytest.approx(10.0)
    assert fast.busbw_gbps == pytest.approx(15.0)
    assert (fast.ratio, slow.ratio) == (2.5, 1.0)


def test_percentiles_are_nearest_rank() -> None:
    values = [float(v) for v in range(100, 0, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99)) == (50.0, 99.0)
    assert percentile([7.0], 0.99) == 7.0


def test_the_summary_counts_where_the_first_backend_is_slower() -> None:
    rows = rows_of_one_cell(100.0, 250.0)
    other = [Row(**{**row.__dict__, "bytes": 8}) for row in rows_of_one_cell(100.0, 50.0)]
    text = "\n".join(summary([*rows, *other], ["a", "b"]))
    assert "a slower than b in 1 of 2 cells" in text
    assert "worst 0.50, median 1.50" in text
    assert "4 rows, 0 unsupported, 0 wrong elements in 0 rows" in text


def test_table_lines_match_their_header_and_show_refusals() -> None:
    row = rows_of_one_cell(1.0, 2.0)[0]
    assert len(line(row, True)) == len(header(True))
    assert len(line(row, False)) == len(header(False))
    cell = next(cells_of("all_reduce", 2, [8], ["int16"], ["sum"], ["in"], 0))
    refused = row_of(cell, "a", reason="Invalid scalar type")
    assert line(refused, True).endswith("unsupported: Invalid scalar type")
