# SPDX-License-Identifier: MIT
"""The benchmark of torch's operations counts the bytes it should, and says where no GPU is."""

import json
import subprocess
import sys
from pathlib import Path

import torch

PROGRAM = Path(__file__).with_name("gpu_torch_operations.py")


def test_every_operation_has_a_row_with_the_bytes_it_must_move(tmp_path: Path) -> None:
    record = tmp_path / "rows.json"
    command = [sys.executable, str(PROGRAM), "--device", "cpu", "--mib", "0.25", "--rounds", "1"]
    subprocess.run([*command, "--json", str(record)], check=True, stdout=subprocess.PIPE)
    rows = {row["kernel"]: row for row in json.loads(record.read_text())["rows"]}
    moved = {name: row["moved"] / row["bytes"] for name, row in rows.items()}
    assert moved["cat"] == moved["_foreach_copy_ to float32"] == 2
    assert moved["cat, div_, to(float16)"] == moved["_foreach_copy_ from bfloat16"] == 1.5
    assert moved["add of 2"] == 3
    assert all(row["us"] > 0 and row["tensors"] > 50 for row in rows.values())


def test_a_machine_without_gpu_is_told_apart_by_its_exit_code() -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), "--mib", "0.25", "--rounds", "1"],
                          capture_output=True, check=False)  # fmt: skip
    assert done.returncode == (0 if torch.cuda.is_available() else 77)
