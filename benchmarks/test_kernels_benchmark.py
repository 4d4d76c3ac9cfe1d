# SPDX-License-Identifier: MIT
"""Kernels and plans, in this thread alone: make bench-micro.

`extra_info` of a reduction has GB/s of all operands read and written, as one core moves them.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pycomm.native import load

native = load()
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int32)


@pytest.mark.parametrize("size", [4 << 10, 128 << 10, 4 << 20])
@pytest.mark.parametrize("sources", [2, 4])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int32], ids=str
)
def test_sum(benchmark: Any, dtype: torch.dtype, sources: int, size: int) -> None:
    operands = [torch.ones(size // dtype.itemsize, dtype=dtype) for _ in range(sources)]
    target = torch.empty_like(operands[0])
    benchmark(native.reduce, target, operands)
    assert (target == sources).all()
    if benchmark.stats:
        moved = (sources + 1) * size
        benchmark.extra_info["gb_per_s"] = round(moved / benchmark.stats["median"] / 1e9, 1)


@pytest.mark.parametrize("op", ["avg", "max", "product"])
def test_other_ops(benchmark: Any, op: str) -> None:
    operands = [torch.full((32 << 10,), 2.0) for _ in range(2)]
    target = torch.empty_like(operands[0])
    benchmark(native.reduce, target, operands, op)
    assert (target == {"avg": 2, "max": 2, "product": 4}[op]).all()


WIRES = ("bf16", "fp16s", "int8", "int4")


def gb_per_s(benchmark: Any, size: int) -> None:
    """Notes the float32 bytes encoded or decoded in a second."""
    if benchmark.stats:
        benchmark.extra_info["gb_per_s"] = round(size / benchmark.stats["median"] / 1e9, 1)


@pytest.mark.parametrize("size", [256 << 10, 16 << 20])
@pytest.mark.parametrize("wire", WIRES)
def test_encode(benchmark: Any, wire: str, size: int) -> None:
    values = torch.randn(size // 4)
    out = torch.empty(native.wire_bytes(wire, size // 4), dtype=torch.uint8)
    benchmark(native.encode, wire, values, out)
    assert out.equal(native.encode(wire, values))
    gb_per_s(benchmark, size)


@pytest.mark.parametrize("size", [256 << 10, 16 << 20])
@pytest.mark.parametrize("wire", WIRES)
def test_decode(benchmark: Any, wire: str, size: int) -> None:
    values = torch.randn(size // 4)
    encoded, out = native.encode(wire, values), torch.empty(size // 4)
    benchmark(native.decode, wire, encoded, size // 4, out)
    assert out.equal(native.decode(wire, encoded, size // 4))
    gb_per_s(benchmark, size)


@pytest.mark.parametrize("size", [256 << 10, 16 << 20])
@pytest.mark.parametrize("wire", WIRES)
def test_sum_of_encoded(benchmark: Any, wire: str, size: int) -> None:
    values = torch.randn(size // 4)
    target = torch.zeros(size // 4)
    sources = [native.encode(wire, values), torch.zeros(size // 4)]
    benchmark(native.reduce_encoded, wire, target, sources)
    assert target.equal(native.decode(wire, sources[0], size // 4))
    gb_per_s(benchmark, size)


@pytest.mark.parametrize("world", [2, 8, 64])
@pytest.mark.parametrize("algorithm", ["direct", "ring", "double_binary_tree"])
def test_plan_and_its_text(benchmark: Any, algorithm: str, world: int) -> None:
    text = benchmark(native.plan_text, "all_reduce", algorithm, world, 0)
    assert text


@pytest.mark.parametrize("world", [2, 8])
def test_proof_of_a_plan(benchmark: Any, world: int) -> None:
    assert benchmark(native.plan_check, "all_reduce", "direct", world) == ""
