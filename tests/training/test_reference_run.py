# SPDX-License-Identifier: MIT
"""The truth of the training tests is itself right, and sees what it is there to see."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from ranks import Rank
from reference_run import Run, alone, expect_equal, gpt, run_in_rank_order, sgd, tokens_of, train

WORLD_SIZE = 3
SHARES = [tokens_of(rank) for rank in range(WORLD_SIZE)]


def test_shares_one_after_the_other_equal_the_whole_batch() -> None:
    """Only rounding differs: the mean over a batch is the mean over equal shares of it."""
    whole = [torch.cat(batches) for batches in zip(*SHARES, strict=True)]
    in_shares, (at_once,) = alone(gpt, SHARES), alone(gpt, [whole])
    mean = torch.tensor([run.losses for run in in_shares]).mean(0)
    torch.testing.assert_close(mean, torch.tensor(at_once.losses), rtol=1e-5, atol=0)
    torch.testing.assert_close(in_shares[0].state, at_once.state, rtol=1e-4, atol=1e-5)
    assert at_once.losses[-1] != at_once.losses[0]
    moved = [
        name for name, value in gpt().named_parameters() if not value.equal(at_once.state[name])
    ]
    assert moved == [name for name, _ in gpt().named_parameters()]


def by_hand(me: Rank, how: str) -> Run:
    model = gpt()

    def reduce_gradients(model: torch.nn.Module) -> None:
        for parameter in model.parameters():
            if how == "right":
                parameter.grad.mul_(1 / me.world_size)
            if how != "not reduced":
                dist.all_reduce(parameter.grad)

    dist.barrier()
    return train(model, sgd(model.parameters()), tokens_of(me.rank), before_step=reduce_gradients)


def test_gradients_reduced_by_hand_are_equal_bit_for_bit() -> None:
    runs = run_in_rank_order(by_hand, WORLD_SIZE, "right")
    expect_equal(runs, alone(gpt, SHARES))
    assert runs[0].collectives == {"barrier", "all_reduce sum"}


@pytest.mark.parametrize("how", ["not reduced", "summed"])
def test_wrong_gradients_are_seen(how: str) -> None:
    with pytest.raises(AssertionError, match="rank 0, losses"):
        expect_equal(run_in_rank_order(by_hand, WORLD_SIZE, how), alone(gpt, SHARES))
