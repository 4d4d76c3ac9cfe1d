# SPDX-License-Identifier: MIT
"""The codecs as Python sees them: what they give back, and what they refuse and how."""

import pytest
import torch

from pycomm import UsageError
from pycomm.native import load

WIRES = ["fp32", "bf16", "fp16s", "int8", "int4"]
# Half a step of each format, relative to the largest magnitude of a block.
HALF_STEPS = {"fp32": 0, "bf16": 2**-8, "fp16s": 2**-11, "int8": 0.51 / 127, "int4": 0.51 / 7}


@pytest.fixture(scope="module")
def native():
    return load()


def some(count):
    return torch.randn(count, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("wire", WIRES)
@pytest.mark.parametrize("count", [0, 1, 65, 1000])
def test_what_is_decoded_is_within_half_a_step(native, wire, count):
    values = some(count)
    data = native.encode(wire, values)
    assert data.dtype == torch.uint8
    assert data.numel() == native.wire_bytes(wire, count)
    decoded = native.decode(wire, data, count)
    assert decoded.dtype == torch.float32
    assert decoded.shape == (count,)
    if count:
        assert (decoded - values).abs().max() <= HALF_STEPS[wire] * values.abs().max()


def test_results_go_where_they_are_asked_for(native):
    values = some(300)
    data = torch.empty(native.wire_bytes("int8", 300), dtype=torch.uint8)
    assert native.encode("int8", values, data) is data
    decoded = torch.empty(300)
    assert native.decode("int8", data, 300, out=decoded) is decoded
    assert decoded.equal(native.decode("int8", native.encode("int8", values), 300))


def test_encoding_with_a_residual_keeps_what_was_lost(native):
    values, residual = some(300), 0.01 * some(301)[:300]
    wanted = values + residual
    data = torch.empty(native.wire_bytes("int4", 300), dtype=torch.uint8)
    native.encode_with_residual("int4", values, residual, data)
    assert data.equal(native.encode("int4", wanted))
    assert residual.equal(wanted - native.decode("int4", data, 300))


def test_encoding_with_a_residual_never_keeps_what_is_not_finite(native):
    values, residual = some(300), 0.01 * some(301)[:300]
    before = residual.clone()
    values[70] = torch.inf
    data = torch.empty(native.wire_bytes("int4", 300), dtype=torch.uint8)
    native.encode_with_residual("int4", values, residual, data)
    assert native.decode("int4", data, 300)[64:128].isnan().all()
    assert residual[64:128].equal(before[64:128])
    assert residual.isfinite().all()


def test_encoded_and_plain_sources_are_added_in_order(native):
    a, b = some(300), some(301)[:300]
    target = b.clone()
    native.reduce_encoded("int8", target, [native.encode("int8", a), target], divisor=2)
    assert target.equal((native.decode("int8", native.encode("int8", a), 300) + b) / 2)


def strided():
    return torch.zeros(20)[::2]


def data_of(count):
    return torch.zeros(count, dtype=torch.uint8)


MISTAKES = {
    "unknown_format": (lambda m: m.encode("int3", some(3)), ["int3", "int8"]),
    "wrong_dtype": (
        lambda m: m.encode("int8", some(3).double()),
        ["encode: values", "float64[3]", "expected float32", ".to("],
    ),
    "meta_device": (
        lambda m: m.encode("int8", torch.empty(3, device="meta")),
        ["on meta", "expected float32 on cpu"],
    ),
    "sparse": (lambda m: m.encode("int8", some(3).to_sparse()), ["expected float32 on cpu"]),
    "strided": (lambda m: m.encode("int8", strided()), ["not contiguous", ".contiguous()"]),
    "short_out": (
        lambda m: m.encode("int8", some(3), data_of(6)),
        ["out is uint8[6]", "expected 7 elements"],
    ),
    "short_bytes": (
        lambda m: m.decode("int8", data_of(6), 3),
        ["encoded is uint8[6]", "expected 7 elements"],
    ),
    "float_bytes": (lambda m: m.decode("int8", some(7), 3), ["float32[7]", "expected uint8"]),
    "negative_count": (lambda m: m.decode("int8", data_of(0), -1), ["-1", "0 or more"]),
    "residual_of_another_size": (
        lambda m: m.encode_with_residual("int8", some(3), some(4), data_of(7)),
        ["residual is float32[4]", "expected 3 elements"],
    ),
    "no_sources": (lambda m: m.reduce_encoded("int8", some(3), []), ["at least one"]),
    "zero_divisor": (
        lambda m: m.reduce_encoded("int8", some(3), [data_of(7)], 0),
        ["divisor is 0", "1 or more"],
    ),
    "source_of_another_size": (
        lambda m: m.reduce_encoded("int8", some(3), [data_of(8)]),
        ["source is uint8[8]", "expected 7 elements"],
    ),
    "rank_out_of_range": (lambda m: m.EncodedBucket("int8", 2, 2, [], 0), ["rank 2 of 2"]),
    "owner_out_of_range": (lambda m: bucket(m).bytes_for(3), ["rank 3 of 2"]),
    "bucket_of_another_size": (
        lambda m: bucket(m).encode(some(4), data_of(0), [], [], []),
        ["EncodedBucket.encode: bucket is float32[4]", "expected 3 elements"],
    ),
    "one_memory": (
        lambda m: bucket(m).encode(some(3), data_of(7), [some(3)], [0], [0]),
        ["1 memories", "none or 2"],
    ),
    "short_memories": (
        lambda m: bucket(m).encode(some(3), data_of(7), [some(2), some(2)], [0], [0]),
        ["float32[2]", "at least 3"],
    ),
    "memory_out_of_range": (
        lambda m: bucket(m).encode(some(3), data_of(7), [some(3), some(3)], [0], [2]),
        ["memory 2", "0 or 1"],
    ),
    "too_few_memories_named": (
        lambda m: bucket(m).encode(some(3), data_of(7), [some(3), some(3)], [0], []),
        ["0 memories named", "each of 1 parameters"],
    ),
    "too_few_encodings": (lambda m: bucket(m).decode([data_of(7)], some(3)), ["each of 2 ranks"]),
}


def bucket(native):
    """Of rank 1 of 2: one parameter of three elements, which rank 0 owns."""
    return native.EncodedBucket("int8", 1, 2, [(0, 0, 0, 3)], 0)


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named(native, name):
    call, pieces = MISTAKES[name]
    with pytest.raises(UsageError) as caught:
        call(native)
    for piece in pieces:
        assert piece in str(caught.value)
