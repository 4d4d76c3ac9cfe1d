# SPDX-License-Identifier: MIT
"""The reference itself: it accepts right results and refuses those that are a little wrong."""

from __future__ import annotations

import pytest
import torch
from reference import COMPLEX, DTYPES, FLOATS, expect, make, ops_for, parts_of, same_bits


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_result_without_one_ranks_contribution_is_refused(dtype: torch.dtype) -> None:
    for op in ops_for(dtype):
        inputs = [make(dtype, 500, 10 + rank, op) for rank in range(5)]
        whole, short = expect(inputs, op), expect(inputs[:4], op)
        right = whole.exact if whole.exact is not None else whole.folded
        wrong = short.exact if short.exact is not None else short.folded
        whole.check(right, False, "right")
        # A float8_e8m0fnu has no mantissa: four roundings in a row may lose a whole rank.
        for folds in (True,) if dtype == torch.float8_e8m0fnu else (False, True):
            with pytest.raises(AssertionError, match="without one rank"):
                whole.check(wrong, folds, "without one rank")


@pytest.mark.parametrize("dtype", FLOATS + COMPLEX, ids=str)
def test_a_fold_that_is_off_by_one_bit_is_refused(dtype: torch.dtype) -> None:
    inputs = [make(dtype, 9, 20 + rank) for rank in range(4)]
    expected = expect(inputs, "sum")
    wrong = expected.folded.clone()
    raw = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    part = torch.view_as_real(wrong) if dtype in COMPLEX else wrong
    part.view(raw[parts_of(dtype).itemsize]).flatten()[3] ^= 1
    assert not same_bits(wrong, expected.folded)
    with pytest.raises(AssertionError, match="one bit"):
        expected.check(wrong, True, "one bit")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_the_bound_is_a_few_roundings_wide(dtype: torch.dtype) -> None:
    inputs = [make(dtype, 500, 30 + rank) for rank in range(4)]
    expected = expect(inputs, "sum")
    size = torch.stack(inputs).double().abs().sum(0).numpy()
    assert (expected.bound(False) <= 4 * torch.finfo(dtype).eps * size).all()
    assert (expected.bound(False) > 0).all()
