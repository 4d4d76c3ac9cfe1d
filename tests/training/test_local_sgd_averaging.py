# SPDX-License-Identifier: MIT
"""pycomm.local_sgd.LocalSGD: models trained alone and averaged every so many steps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ranks import Rank, run_ranks
from reference_run import gpt, next_byte_loss, sgd, tokens_of
from torch import Tensor, nn

from pycomm import UsageError
from pycomm.local_sgd import LocalSGD

IN_RANK_ORDER = {"PYCOMM_ALGO": "all_reduce=direct"}
STEPS, EVERY = 7, 3


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    optimizer.zero_grad()
    next_byte_loss(model, tokens).backward()
    optimizer.step()


def values(model: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def average(models: Sequence[nn.Module]) -> None:
    """The mean as it is defined: added in rank order, then divided."""
    for of_ranks in zip(*(model.parameters() for model in models), strict=True):
        mean = of_ranks[0].detach().clone()
        for parameter in of_ranks[1:]:
            mean += parameter.detach()
        mean /= len(of_ranks)
        for parameter in of_ranks:
            parameter.data.copy_(mean)


def several_alone(counts: Sequence[int], every: int) -> list[list[Tensor]]:
    """What each rank should end with when rank r makes counts[r] steps."""
    models = [gpt() for _ in counts]
    optimizers = [sgd(model.parameters()) for model in models]
    shares = [tokens_of(rank, max(counts)) for rank in range(len(counts))]
    done = [0] * len(counts)
    while any(made < count for made, count in zip(done, counts, strict=True)):
        trained = []
        for rank, count in enumerate(counts):
            for number in range(done[rank], min(done[rank] + every, count)):
                step(models[rank], optimizers[rank], shares[rank][number])
            if done[rank] < count:
                trained.append(models[rank])
            done[rank] = min(done[rank] + every, count)
        average(trained)
        for model in models:
            model.load_state_dict(trained[0].state_dict())
    return [values(model) for model in models]


def train_whole(me: Rank, counts: Sequence[int]) -> Any:
    model = gpt()
    if me.rank:  # rank 0's count
        nn.init.zeros_(model.norm.weight)
    optimizer = sgd(model.parameters())
    with LocalSGD(model, optimizer, EVERY) as local:
        for tokens in tokens_of(me.rank, max(counts))[: counts[me.rank]]:
            step(model, optimizer, tokens)
    return values(model), local.rounds, local.bytes_sent


@pytest.mark.parametrize(
    "counts", [(7, 7), (6, 6, 6), (7, 2, 5), (0, 4)], ids=lambda counts: "_".join(map(str, counts))
)
def test_models_are_averaged_every_so_many_steps_and_at_the_end_however_uneven(counts) -> None:
    expected = several_alone(counts, EVERY)
    got = run_ranks(train_whole, len(counts), counts, env=IN_RANK_ORDER)
    rounds = -(-max(counts) // EVERY)  # and no empty one at the end
    bytes_of_model = sum(p.numel() * 4 for p in gpt().parameters())
    for rank, (state, made, sent) in enumerate(got):
        assert same(state, expected[rank]), f"rank {rank}"
        assert same(state, got[0][0])
        assert made == rounds
        assert sent == rounds * (2 * (len(counts) - 1) * bytes_of_model // len(counts))


class Exact(nn.Module):
    """Sums and products of small whole numbers and their halves: every result is representable."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).view(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T).sum()


def whole_numbers(rank: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return [torch.randint(-4, 5, (2, 3), generator=generator).float() for _ in range(5)]


def one_step_at_a_time(me: Rank) -> list[Tensor]:
    model = Exact()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    with LocalSGD(model, optimizer, 1) as local:
        for batch in whole_numbers(me.rank):
            optimizer.zero_grad()
            model(batch).backward()
            optimizer.step()
            assert local.steps_since_round == 0
    assert local.rounds == 5
    return values(model)


def test_with_one_step_and_plain_sgd_it_is_averaging_of_gradients_bit_for_bit() -> None:
    model = Exact()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.25)
    for batches in zip(*(whole_numbers(rank) for rank in range(4)), strict=True):
        optimizer.zero_grad()
        (sum(model(batch) for batch in batches) / 4).backward()
        optimizer.step()
    for state in run_ranks(one_step_at_a_time, 4):
        assert same(state, values(model))


class Uneven(nn.Module):
    """With buffers of all kinds, a parameter that is never used, and one that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.unused = nn.Parameter(torch.tensor([0.1, 0.2, 0.3]))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.register_buffer("rotation", torch.tensor([1j, 2 - 1j]))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layer(x)).square().sum() + self.layer.bias.sum()


def with_buffers(me: Rank) -> Any:
    torch.manual_seed(0)
    model = Uneven()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    torch.manual_seed(1 + me.rank)
    means = []
    with LocalSGD(model, optimizer, 2):
        for _ in range(3 + me.rank):
            means.append(model.norm.running_mean.clone())
            optimizer.zero_grad()
            model(torch.randn(8, 4)).backward()
            optimizer.step()
    return values(model), means


def test_buffers_become_equal_and_unused_parameters_stay() -> None:
    results = run_ranks(with_buffers, 2)
    (first, means), (second, other_means) = results
    assert same(first, second)
    named = dict(zip([n for n, _ in (*Uneven().named_parameters(),)], first, strict=False))
    assert torch.equal(named["unused"], torch.tensor([0.1, 0.2, 0.3]))
    assert torch.equal(named["frozen"], torch.ones(2))
    buffers = dict(Uneven().named_buffers())
    assert torch.equal(first[-len(buffers)], buffers["rotation"])
    assert first[-1].item() == 4  # num_batches_tracked of the rank that made most steps
    assert not torch.equal(means[1], other_means[1])  # between rounds each has its own
    assert torch.equal(means[2], other_means[2])


def narrow(me: Rank, wire: str | None) -> Any:
    model = gpt()
    optimizer = sgd(model.parameters())
    with LocalSGD(model, optimizer, EVERY, wire=wire) as local:
        for tokens in tokens_of(me.rank, STEPS):
            step(model, optimizer, tokens)
    return values(model), local.bytes_sent


@pytest.mark.parametrize(("wire", "ratio"), [("bf16", 0.64), ("int8", 0.46), ("int4", 0.38)])
def test_narrow_formats_send_less_and_leave_equal_models(wire: str, ratio: float) -> None:
    exact, exact_bytes = run_ranks(narrow, 3, None)[0]
    results = run_ranks(narrow, 3, wire)
    for state, sent in results:
        assert same(state, results[0][0])
        assert sent < ratio * exact_bytes  # norms and biases travel as they are
    start = values(gpt())
    moved = sum((a - b).square().sum() for a, b in zip(exact, start, strict=True)).sqrt()
    off = sum((a - b).square().sum() for a, b in zip(exact, results[0][0], strict=True)).sqrt()
    assert 0 < off < 0.25 * moved


def resumed(me: Rank, wire: str | None) -> bool:
    """Whether a run that is stopped after five steps and restored goes on with the same bits."""
    batches = tokens_of(me.rank, STEPS)
    model = gpt()
    optimizer = sgd(model.parameters())
    saved = None
    with LocalSGD(model, optimizer, EVERY, wire=wire) as local:
        for number, tokens in enumerate(batches):
            step(model, optimizer, tokens)
            if number == 4:
                parts = (model, optimizer, local)
                saved = copy.deepcopy([part.state_dict() for part in parts])
    whole = values(model)
    model = gpt()
    optimizer = sgd(model.parameters())
    local = LocalSGD(model, optimizer, EVERY, wire=wire)
    for part, state in zip((model, optimizer, local), saved, strict=True):
        part.load_state_dict(state)
    with local:
        for tokens in batches[5:]:
            step(model, optimizer, tokens)
    return same(whole, values(model)) and local.rounds == 3


@pytest.mark.parametrize("wire", [None, "int8"])
def test_a_restored_run_goes_on_with_the_same_bits(wire: str | None) -> None:
    assert all(run_ranks(resumed, 2, wire, env=IN_RANK_ORDER))


def test_one_process_trains_as_without_it() -> None:
    models = [gpt(), gpt()]
    for model in models:
        optimizer = sgd(model.parameters())
        local = LocalSGD(model, optimizer, 2, wire="int8")
        if model is models[0]:
            local.attach()
        for tokens in tokens_of(0):
            step(model, optimizer, tokens)
        local.detach()
    assert same(values(models[0]), values(models[1]))


def test_an_exception_leaves_the_block_without_a_round() -> None:
    model = gpt()
    optimizer = sgd(model.parameters())
    with pytest.raises(ZeroDivisionError), LocalSGD(model, optimizer, 100) as local:
        step(model, optimizer, tokens_of(0)[0])
        raise ZeroDivisionError
    assert local.rounds == 0
    step(model, optimizer, tokens_of(0)[1])
    assert local.steps_since_round == 1  # it counts no more


def test_wrong_arguments_say_what_is_expected() -> None:
    model = gpt()
    optimizer = sgd(model.parameters())
    with pytest.raises(UsageError, match="sync_every=0.*1 or more"):
        LocalSGD(model, optimizer, 0)
    with pytest.raises(UsageError, match="wire='int3'.*int4"):
        LocalSGD(model, optimizer, 2, wire="int3")
    with pytest.raises(UsageError, match="expected a torch.nn.Module and the torch.optim"):
        LocalSGD(model, model, 2)
    with pytest.raises(UsageError, match="process_group is a str"):
        LocalSGD(model, optimizer, 2, process_group="world")


def other_models(me: Rank) -> str:
    model = nn.Linear(2 + me.rank, 1)
    with pytest.raises(UsageError) as raised:
        LocalSGD(model, sgd(model.parameters()), 2)
    return str(raised.value)


def test_models_that_differ_are_refused_on_every_rank() -> None:
    for text in run_ranks(other_models, 2):
        assert text.startswith("LocalSGD: rank 1 has parameter weight: float32[1, 3]")
