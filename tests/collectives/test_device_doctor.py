# SPDX-License-Identifier: MIT
"""What `python -m pycomm doctor` says of the ranks' GPUs."""

from __future__ import annotations

from typing import Any

import pytest
from fake_cuda.device_ranks import DEVICE, run_on_devices
from ranks import Rank

from pycomm.doctor.devices import measure_devices
from pycomm.doctor.report import _devices
from pycomm.doctor.used import _cuda


def measured(me: Rank) -> Any:
    return measure_devices()


@pytest.mark.parametrize(("mode", "why"), [("auto", "S: 2 ranks share "), ("H", "H: asked for")])
def test_the_mode_and_its_reason_are_measured_and_printed(mode: str, why: str) -> None:
    for found in run_on_devices(measured, 2, mode=mode, env={"LOCAL_RANK": "0"}):
        assert found["kind"] == DEVICE and found["devices"] == [f"{DEVICE}:0"] * 2
        assert found["error"] is None
        assert found["mode"].startswith(why)
        assert found["latency_us"] > 0 and found["bandwidth_gbps"] > 0
        text = "\n".join(_devices(found))
        assert f"{DEVICE}:0 of every rank" in text and f"mode {why}" in text
        gpus = {"devices": ["one"], "pycomm_cuda": True, "pycomm_error": None}
        assert _cuda(gpus, {"devices": found})[0] == f"pycomm, mode {why[0]}"


def test_without_a_gpu_on_every_rank_nothing_is_measured_and_it_is_said() -> None:
    found = {"kind": None, "devices": ["cuda:0", None], "mode": None, "error": None}
    assert "rank by rank: cuda:0, none" in "\n".join(_devices(found))
    gpus = {"devices": ["one"], "pycomm_cuda": True, "pycomm_error": None}
    assert _cuda(gpus, {"devices": found})[0] == "pycomm"
    assert _cuda({**gpus, "pycomm_cuda": False}, None)[0] == "nothing"
