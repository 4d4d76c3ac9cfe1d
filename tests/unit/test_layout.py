# SPDX-License-Identifier: MIT
"""pycomm.Layout: what it refuses and what it suggests, YAML files, command lines."""

from __future__ import annotations

import argparse
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from pycomm import Layout, UsageError
from pycomm.layout import fitting


def test_a_layout_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Layout().tp = 2  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tp": 0}, "Layout(tp=0): expected an integer of 1 or more"),
        ({"dp": "2"}, "Layout(dp='2'): expected an integer of 1 or more or None"),
        ({"wire": "fp8"}, "expected one of fp32, bf16, fp16s, int8, auto"),
        ({"mode": "async"}, "expected one of sync, local, diloco, ps-sync, ps-async, ps-ssp"),
        ({"clip": 0}, "Layout(clip=0): expected a number above 0 or None"),
        ({"shard": 1}, "Layout(shard=1): expected True or False"),
        ({"stages": 2}, 'schedule="interleaved"'),
        ({"schedule": "interleaved", "pp": 2}, "stages=2 or more"),
        ({"microbatches": 3, "pp": 4}, "expected 4 or more microbatches"),
        ({"sequence": True}, "sequence parallel needs tp=2 or more"),
        ({"mode": "diloco", "tp": 2}, "modes other than sync join whole replicas"),
    ],
)
def test_a_field_that_is_not_understood_is_refused_at_once(
    fields: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError) as refused:
        Layout(**fields)
    assert told in str(refused.value)


def test_dp_is_what_tp_and_pp_leave() -> None:
    assert Layout(tp=2, pp=2).resolved(8).dp == 2
    assert Layout().resolved(3).dp == 3


def test_a_world_that_does_not_fit_is_told_those_that_do() -> None:
    with pytest.raises(UsageError) as refused:
        Layout(tp=4).resolved(6)
    assert "Layout(tp=4) needs a multiple of 4 ranks and there are 6" in str(refused.value)
    assert "dp=6 tp=1 pp=1, dp=3 tp=1 pp=2" in str(refused.value)
    with pytest.raises(UsageError, match=r"Layout\(dp=2, tp=2\) needs 4 ranks and there are 2"):
        Layout(dp=2, tp=2).resolved(2)


def test_heads_and_layers_that_do_not_fit_are_told_those_that_do() -> None:
    with pytest.raises(UsageError) as refused:
        Layout(tp=4, pp=4).resolved(16).check_model([6], 3)
    text = str(refused.value)
    assert "6 attention heads cannot be divided among tp=4" in text
    assert "3 layers cannot make 4 stages" in text
    assert text.endswith("for 16 ranks this model fits dp=16 tp=1 pp=1, dp=8 tp=1 pp=2, "
                         "dp=8 tp=2 pp=1, dp=4 tp=2 pp=2")  # fmt: skip


def test_a_batch_that_cannot_be_cut_is_told_one_that_can() -> None:
    layout = Layout(dp=2, pp=2, accumulate=3)
    assert layout.microbatch_count == 4
    assert layout.check_batch(48) == 8
    with pytest.raises(UsageError, match="expected a multiple of 24, such as 48"):
        layout.check_batch(50)


def test_fitting_lists_every_product() -> None:
    assert fitting(4) == [(4, 1, 1), (2, 1, 2), (1, 1, 4), (2, 2, 1), (1, 2, 2), (1, 4, 1)]
    assert fitting(4, heads=[6], layers=1) == [(4, 1, 1), (2, 2, 1)]


def test_a_layout_comes_from_a_yaml_file(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    file = tmp_path / "layout.yaml"
    file.write_text("tp: 2\nwire: bf16\nshard: true\nclip: 1.0\n")
    assert Layout.from_yaml(file) == Layout(tp=2, wire="bf16", shard=True, clip=1.0)
    file.write_text("tpp: 2\n")
    with pytest.raises(UsageError, match=r"has \['tpp'\], expected some of dp, tp, pp"):
        Layout.from_yaml(file)
    with pytest.raises(UsageError, match="cannot be read"):
        Layout.from_yaml(tmp_path / "none.yaml")


def test_a_layout_comes_from_a_command_line(tmp_path: Path) -> None:
    words = ["--tp", "2", "--shard", "--clip", "0.5", "--sync-every", "10", "--other", "x"]
    assert Layout.from_args(words) == Layout(tp=2, shard=True, clip=0.5, sync_every=10)
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int)
    Layout.add_arguments(parser)
    args = parser.parse_args(["--steps", "3", "--dp", "2", "--no-shard"])
    assert Layout.from_args(args) == Layout(dp=2)
    pytest.importorskip("yaml")
    file = tmp_path / "layout.yaml"
    file.write_text("tp: 2\npp: 2\n")
    assert Layout.from_args(["--layout", str(file), "--pp", "4"]) == Layout(tp=2, pp=4)
