# SPDX-License-Identifier: MIT
"""python -m pycomm plan: steps, proof and cost of each algorithm; two levels with their hosts."""

from __future__ import annotations

import pytest

from pycomm.__main__ import main


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["plan", *words])
    said = capsys.readouterr()
    return code, said.out, said.err


def test_it_prints_proves_and_costs_a_plan(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = printed(capsys, "all_reduce", "ring", "3")
    assert code == 0 and "proved" in out
    assert "1048576 bytes: 4 dependent messages, busiest rank sends " in out


def test_a_two_level_plan_is_made_for_the_hosts_that_are_given(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for hosts in ("0,0,1,1", "7,3,7,3", "0,1,1,1"):
        code, out, _ = printed(capsys, "all_reduce", "hierarchical", "4", "--hosts", hosts)
        assert code == 0 and "proved" in out, out
    # One rank a host: the ring between hosts is all there is.
    _, two, _ = printed(capsys, "all_reduce", "hierarchical", "4", "--hosts", "0,0,1,1")
    _, one, _ = printed(capsys, "all_reduce", "hierarchical", "4", "--hosts", "0,1,2,3")
    assert two != one and "6 dependent messages" in one


def test_hosts_that_do_not_fit_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["4"], ["4", "--hosts", "0,1"]):
        code, _, error = printed(capsys, "all_reduce", "hierarchical", *words)
        assert code == 2
        assert "expected the host of each of 4 ranks, such as --hosts 0,0,1,1" in error
    code, _, error = printed(capsys, "gather", "hierarchical", "2", "--hosts", "0,1")
    assert code == 2 and "gather has no two-level plan" in error


def test_it_lists_two_levels_where_there_are_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert "ring" in printed(capsys, "all_reduce")[1]
    assert "hierarchical" in printed(capsys, "broadcast")[1]
    assert "hierarchical" not in printed(capsys, "gather")[1]
