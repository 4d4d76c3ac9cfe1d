# SPDX-License-Identifier: MIT
"""The error of a sum in each wire format: within its limit, and no larger with more ranks."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import wire_error

WORLDS = (2, 3, 5, 8, 16, 64, 256)


@pytest.fixture(scope="module")
def errors():
    return wire_error.measure(WORLDS, elements=16384)


def test_a_direct_sum_is_as_far_off_with_256_ranks_as_with_two(errors):
    assert wire_error.faults(errors) == []


def test_where_every_hop_narrows_the_error_grows_and_would_be_noticed(errors):
    ring = errors["bf16 ring"]
    assert ring[64] > 3 * errors["bf16"][64]
    assert wire_error.faults({**errors, "bf16": ring})


def test_fp16s_is_ahead_of_the_fp16_hook_with_many_ranks(errors):
    assert errors["fp16s"][64] < 0.5 * errors["torch's fp16 hook"][64]


def test_what_overflows_or_vanishes_in_the_fp16_hook_survives_fp16s():
    for magnitude in (1e5, 1e-7):
        tensors = [magnitude * tensor for tensor in wire_error.gradients(4, elements=4096)]
        assert wire_error.relative_error(wire_error.direct("fp16s", tensors), tensors) < 3e-4
        lost = wire_error.relative_error(wire_error.fp16_hook(tensors), tensors)
        assert not lost < 0.01, lost


def test_the_simulated_sum_is_exact_where_the_format_is():
    tensors = [torch.full((1000,), float(rank + 1)) for rank in range(5)]
    for wire in ("fp32", "bf16", "fp16s"):
        assert wire_error.direct(wire, tensors).equal(torch.full((1000,), 15.0))
