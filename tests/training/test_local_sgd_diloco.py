# SPDX-License-Identifier: MIT
"""pycomm.local_sgd.DiLoCo against its definition, computed in one process."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from ranks import Died, Rank, run_ranks
from reference_run import adam, gpt, tokens_of
from test_local_sgd_averaging import IN_RANK_ORDER, same, step, values
from torch import Tensor, nn

from pycomm import PeerFailure, UsageError
from pycomm.local_sgd import DiLoCo, LocalSGD
from pycomm.local_sgd.diloco import cut

STEPS = 15


@dataclass(frozen=True)
class Case:
    """How rounds are held; names as in DiLoCo."""

    world_size: int
    sync_every: int
    fragments: int = 1
    delay: int = 0
    alpha: float = 0.0

    def diloco(self, model: nn.Module, optimizer: torch.optim.Optimizer, **more: Any) -> DiLoCo:
        return DiLoCo(
            model,
            optimizer,
            self.sync_every,
            fragments=self.fragments,
            fragment_sync_delay=self.delay,
            fragment_update_alpha=self.alpha,
            **more,
        )


class Definition:
    """DiLoCo as its papers write it down, on models that one process trains in turn."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.models = [gpt() for _ in range(case.world_size)]
        self.names = [[name for name, _ in part] for part in cut(self.models[0], case.fragments)]
        self.outer = {n: p.detach().clone() for n, p in self.models[0].named_parameters()}
        self.momentum: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}

    def parameters(self, name: str) -> list[Tensor]:
        return [model.get_parameter(name).data for model in self.models]

    def begin(self, names: Sequence[str]) -> None:
        for name in names:
            total = torch.zeros_like(self.outer[name])
            for parameter in self.parameters(name):
                total += self.outer[name] - parameter
            self.gradients[name] = total / self.case.world_size

    def end(self, names: Sequence[str], alpha: float) -> None:
        for name in names:
            gradient = self.gradients[name]
            if name in self.momentum:
                self.momentum[name].mul_(0.9).add_(gradient)
            else:
                self.momentum[name] = gradient.clone()
            self.outer[name].add_(gradient.add(self.momentum[name], alpha=0.9), alpha=-0.7)
            for parameter in self.parameters(name):
                parameter.copy_(torch.lerp(self.outer[name], parameter, alpha))

    def run(self) -> list[Tensor]:
        case, since, turn = self.case, 0, 0
        interval = case.sync_every // case.fragments
        optimizers = [adam(model.parameters()) for model in self.models]
        stale = [0] * case.fragments  # steps since the round of a fragment began
        for number in range(STEPS):
            for rank, model in enumerate(self.models):
                step(model, optimizers[rank], tokens_of(rank, STEPS)[number])
            since += 1
            stale = [count + 1 for count in stale]
            if since == interval - case.delay:
                self.begin(self.names[turn])
                stale[turn] = 0
            if since == interval:
                self.end(self.names[turn], case.alpha)
                since, turn = 0, (turn + 1) % case.fragments
        if since >= interval - case.delay:  # one is under way
            self.end(self.names[turn], case.alpha)
            turn = (turn + 1) % case.fragments
        for _ in range(case.fragments):
            if stale[turn]:
                self.begin(self.names[turn])
                self.end(self.names[turn], 0.0)
            turn = (turn + 1) % case.fragments
        return [self.outer[name] for name, _ in self.models[0].named_parameters()]


def train(me: Rank, case: Case, steps: int = STEPS, more: dict[str, Any] | None = None) -> Any:
    model = gpt()
    optimizer = adam(model.parameters())
    with case.diloco(model, optimizer, **(more or {})) as local:
        for tokens in tokens_of(me.rank, steps):
            step(model, optimizer, tokens)
    return values(model), local.rounds, local.bytes_sent


CASES = [
    Case(2, 5),
    Case(3, 4),
    Case(2, 6, fragments=3),
    Case(2, 4, delay=2, alpha=0.5),
    Case(3, 8, fragments=2, delay=3, alpha=0.25),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_diloco_is_what_its_papers_define(case: Case) -> None:
    expected = Definition(case).run()
    results = run_ranks(train, case.world_size, case, env=IN_RANK_ORDER)
    for state, _, _ in results:
        assert same(state, expected)


def beside_averaging(me: Rank) -> Any:
    models = gpt(), gpt()
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.3) for model in models]
    outer = DiLoCo(models[0], optimizers[0], 4, outer_lr=1.0, outer_momentum=0.0)
    with outer, LocalSGD(models[1], optimizers[1], 4):
        for tokens in tokens_of(me.rank, 10):
            for model, optimizer in zip(models, optimizers, strict=True):
                step(model, optimizer, tokens)
    return [values(model) for model in models]


def test_an_outer_step_of_one_without_momentum_is_averaging() -> None:
    for diloco, averaged in run_ranks(beside_averaging, 2):
        torch.testing.assert_close(diloco, averaged)


@pytest.mark.parametrize("delay", [0, 3])
@pytest.mark.parametrize("more", [{"should_quantize": True}, {"wire": "int4"}], ids=str)
def test_narrow_outer_gradients_leave_equal_models_near_the_exact_ones(
    delay: int, more: dict[str, Any]
) -> None:
    case = Case(3, 5, delay=delay)
    exact, _, exact_bytes = run_ranks(train, 3, case)[0]
    results = run_ranks(train, 3, case, STEPS, more)
    for state, _, sent in results:
        assert same(state, results[0][0])
        assert sent < 0.5 * exact_bytes
    start = values(gpt())
    moved = sum((a - b).square().sum() for a, b in zip(exact, start, strict=True)).sqrt()
    off = sum((a - b).square().sum() for a, b in zip(exact, results[0][0], strict=True)).sqrt()
    assert 0 < off < 0.3 * moved


def test_fifty_steps_send_a_fiftieth_of_one_round_a_step() -> None:
    (_, rounds, sent), *_ = run_ranks(train, 2, Case(2, 50), 100)
    assert rounds == 2
    model_bytes = sum(p.numel() * 4 for p in gpt().parameters())
    assert sent == 2 * model_bytes  # synchronous averaging: 100 times
    (_, rounds, streamed), *_ = run_ranks(train, 2, Case(2, 50, 2, 10, 0.5), 100)
    assert rounds == 6  # the last two at the end
    assert streamed == 3 * model_bytes


def resumed(me: Rank, case: Case, at: int) -> bool:
    batches = tokens_of(me.rank, STEPS)
    model = gpt()
    optimizer = adam(model.parameters())
    saved = None
    with case.diloco(model, optimizer) as local:
        for number, tokens in enumerate(batches, 1):
            step(model, optimizer, tokens)
            if number == at:
                parts = (model, optimizer, local)
                saved = copy.deepcopy([part.state_dict() for part in parts])
    whole = values(model)
    model = gpt()
    optimizer = adam(model.parameters())
    local = case.diloco(model, optimizer)
    for part, state in zip((model, optimizer, local), saved, strict=True):
        part.load_state_dict(state)
    with local:
        for tokens in batches[at:]:
            step(model, optimizer, tokens)
    return same(whole, values(model))


@pytest.mark.parametrize("at", [3, 8, 11])
def test_a_restored_run_goes_on_with_the_same_bits_also_in_mid_round(at: int) -> None:
    case = Case(2, 8, fragments=2, delay=2, alpha=0.25)  # rounds end at 4, 8, 12; begin 2 before
    assert all(run_ranks(resumed, 2, case, at, env=IN_RANK_ORDER))


def recut(me: Rank) -> bool:
    """A state of two fragments in a DiLoCo of one: outer parameters and momentum are the same."""
    model = gpt()
    optimizer = adam(model.parameters())
    first = DiLoCo(model, optimizer, 4, fragments=2)
    with first:
        for tokens in tokens_of(me.rank, 8):
            step(model, optimizer, tokens)
    second = DiLoCo(model, optimizer, 4)
    second.load_state_dict(first.state_dict())
    one, other = first.state_dict()["outer"], second.state_dict()["outer"]
    return one.keys() == other.keys() and all(
        torch.equal(one[name]["value"], other[name]["value"])
        and torch.equal(
            one[name]["optimizer"]["momentum_buffer"], other[name]["optimizer"]["momentum_buffer"]
        )
        for name in one
    )


def test_a_state_fits_other_fragments() -> None:
    assert all(run_ranks(recut, 2))


def dies(me: Rank) -> str:
    model = gpt()
    optimizer = adam(model.parameters())
    with pytest.raises(PeerFailure) as raised, Case(3, 4, delay=1).diloco(model, optimizer):
        for number, tokens in enumerate(tokens_of(me.rank, 40)):
            if me.rank == 1 and number == 6:
                import os
                import signal

                os.kill(os.getpid(), signal.SIGKILL)
            step(model, optimizer, tokens)
    return str(raised.value)


def test_the_death_of_a_rank_ends_the_next_round_with_its_name() -> None:
    first, second, third = run_ranks(dies, 3, init=True, dies=[1])
    assert isinstance(second, Died)
    assert "rank 1" in first and "rank 1" in third


def test_fragments_are_runs_of_like_size_or_the_modules_given() -> None:
    model = gpt()
    total = sum(p.numel() for p in model.parameters())
    largest = max(p.numel() for p in model.parameters())
    for count in (1, 2, 3, 5, len(list(model.parameters()))):
        parts = cut(model, count)
        assert [name for part in parts for name, _ in part] == [
            n for n, _ in model.named_parameters()
        ]
        assert len(parts) == count and all(parts)
        assert max(sum(p.numel() for _, p in part) for part in parts) <= total / count + largest
    rest = nn.ModuleList([model.token, model.position, model.norm])
    assert [len(part) for part in cut(model, [model.blocks, rest])] == [24, 4]
    with pytest.raises(UsageError, match="token.weight is in none of the 1 fragments"):
        cut(model, [model.blocks])


def test_wrong_arguments_say_what_is_expected() -> None:
    model = gpt()
    optimizer = adam(model.parameters())
    with pytest.raises(UsageError, match="sync_every=5 with 2 fragments.*that 2 divides"):
        DiLoCo(model, optimizer, 5, fragments=2)
    with pytest.raises(UsageError, match="fragment_sync_delay=3, expected 0 to 2"):
        DiLoCo(model, optimizer, 6, fragments=2, fragment_sync_delay=3)
    with pytest.raises(UsageError, match="fragment_update_alpha=2, expected 0 to 1"):
        DiLoCo(model, optimizer, 6, fragment_update_alpha=2)
    with pytest.raises(UsageError, match="fragments=99"):
        DiLoCo(model, optimizer, 99, fragments=99)
    with pytest.raises(UsageError, match="it is of another model"):
        other = nn.Linear(2, 2)
        state = DiLoCo(other, adam(other.parameters()), 2).state_dict()
        DiLoCo(model, optimizer, 2).load_state_dict(state)
