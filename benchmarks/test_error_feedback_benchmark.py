# SPDX-License-Identifier: MIT
"""What error feedback adds to encoding, on one core: make bench-micro.

`extra_info` has GB/s of float32 gradients; "copy" copies as many.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pycomm.native import load

native = load()


def tell_rate(benchmark: Any, count: int) -> None:
    if benchmark.stats:
        rate = 4 * count / benchmark.stats["median"] / 1e9
        benchmark.extra_info["gb_per_s"] = round(rate, 2)


@pytest.mark.parametrize("count", [64 << 10, 4 << 20])
def test_copy(benchmark: Any, count: int) -> None:
    values, target = torch.randn(count), torch.zeros(count)
    benchmark(target.copy_, values)
    assert target.equal(values)
    tell_rate(benchmark, count)


@pytest.mark.parametrize("count", [64 << 10, 4 << 20])
@pytest.mark.parametrize("wire", ["int8", "int4"])
@pytest.mark.parametrize("feedback", [False, True], ids=["plain", "feedback"])
def test_encode(benchmark: Any, wire: str, count: int, feedback: bool) -> None:
    values, residual = torch.randn(count), torch.zeros(count)
    out = torch.zeros(native.wire_bytes(wire, count), dtype=torch.uint8)
    if feedback:
        benchmark(native.encode_with_residual, wire, values, residual, out)
    else:
        benchmark(native.encode, wire, values, out)
    assert bool(out.any()) and bool(residual.any()) == feedback
    tell_rate(benchmark, count)


@pytest.mark.parametrize("wire", ["int8", "int4"])
def test_a_bucket_of_one_of_two_ranks(benchmark: Any, wire: str) -> None:
    """All that a rank computes for a bucket of 25 MiB: half encoded, half reduced, half decoded."""
    count = 25 << 18
    cut = native.EncodedBucket(wire, 0, 2, [(0, 0, 0, count)], 0)
    bucket, memories = torch.randn(count), [torch.zeros(count), torch.zeros(count)]
    sizes = [cut.bytes_for(owner) for owner in range(2)]
    sent, mean, other = (torch.zeros(sizes[i], dtype=torch.uint8) for i in (1, 0, 1))
    received = native.encode(wire, torch.randn(sum(n for _, n in cut.owned())))

    def step() -> None:
        cut.encode(bucket, sent, memories, [0], [1])
        cut.reduce(bucket, received, mean, memories, [0], [1])
        cut.decode([mean, other], bucket)

    benchmark(step)
    assert bool(memories[1].any())
    tell_rate(benchmark, count)
