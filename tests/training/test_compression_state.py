# SPDX-License-Identifier: MIT
"""What error feedback keeps: which steps count, checkpoints, failures, and what it refuses."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from feedback_reference import EXACT_BELOW, SIZES, Weighted, gradients_of
from ranks import Rank, run_ranks
from reference_run import gpt, next_byte_loss, tokens_of
from test_compression import digest, with_feedback
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import pycomm
from pycomm import compression

INF = float("inf")


def residuals(state: compression.ErrorFeedback) -> dict[str, Tensor]:
    (mine,) = state.state_dict().values()
    return mine["residual"]


# ---- GradScaler

OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
    "fused_adamw": lambda parameters: torch.optim.AdamW(parameters, lr=0.01, fused=True),
}


def scaled(me: Rank, name: str, overflow_at: int | None) -> tuple[str, int, bool]:
    """Trains with a GradScaler; one more pass, on one rank with Inf, where it is told."""
    torch.manual_seed(0)
    model = DistributedDataParallel(gpt())
    optimizer = OPTIMIZERS[name](model.parameters())
    # The overflow halves the scale, and it grows by another power of two now and then.
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    state = compression.ErrorFeedback("int4", model, optimizer, scaler=scaler, exact_below=64)
    model.register_comm_hook(state, compression.hook)
    skipped = 0
    for step, tokens in enumerate(tokens_of(me.rank, 6)):
        for factor in [INF, 1.0] if step == overflow_at else [1.0]:
            loss = next_byte_loss(model, tokens) * (factor if me.rank == 0 else 1.0)
            optimizer.zero_grad()  # between forward and backward, as many scripts do
            scaler.scale(loss).backward()
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < before
    finite = all(bool(one.isfinite().all()) for one in residuals(state).values())
    return digest(model.parameters()), skipped, finite


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_that_the_scaler_skips_leaves_no_trace(name: str) -> None:
    """Powers of two change no bit of what is encoded, so runs with other scales are equal."""
    plain = run_ranks(scaled, 2, name, None)
    skipping = run_ranks(scaled, 2, name, 2)
    assert {told[1] for told in plain} == {0}
    assert {told[1] for told in skipping} == {1}
    assert len({told[0] for told in plain + skipping}) == 1
    assert all(told[2] for told in plain + skipping)


def with_a_vanished_scale(me: Rank) -> tuple[str, bool]:
    """The scale falls to 0, the script makes no step with it, and sets it anew."""
    torch.manual_seed(0)
    model = DistributedDataParallel(gpt())
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    state = compression.ErrorFeedback("int4", model, optimizer, scaler=scaler, exact_below=64)
    model.register_comm_hook(state, compression.hook)
    for step, tokens in enumerate(tokens_of(me.rank, 4)):
        vanished = step == 2
        if step > 1:
            scaler.update(0.0 if vanished else 2.0**12)
        optimizer.zero_grad()
        scaler.scale(next_byte_loss(model, tokens)).backward()
        before = residuals(state)
        if vanished:
            continue
        scaler.step(optimizer)
        scaler.update()
        if step == 1:
            kept = residuals(state)
        elif step == 3:
            same = all(one.equal(4 * kept[name]) for name, one in before.items())
    finite = all(bool(one.isfinite().all()) for one in residuals(state).values())
    return digest(model.parameters()), finite and same


def test_a_scale_of_zero_neither_divides_nor_touches_residuals() -> None:
    told = run_ranks(with_a_vanished_scale, 2)
    assert told[0][0] == told[1][0]
    assert all(fine for _, fine in told)


def of_nothing(me: Rank, wire: str) -> list[bool]:
    """Gradients of zeros, then ones, then zeros: what was kept goes out with them."""
    module = nn.Linear(300, 1, bias=False)
    model = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    state = compression.ErrorFeedback(wire, model, optimizer, exact_below=0)
    model.register_comm_hook(state, compression.hook)
    generator, found = torch.Generator().manual_seed(me.rank), []
    for factor in (0.0, 1.0, 0.0):
        rows = torch.randn(1, 300, generator=generator) * factor
        optimizer.zero_grad()
        kept_before = any(bool(one.any()) for one in residuals(state).values())
        model(rows).sum().backward()
        optimizer.step()
        grad = module.weight.grad
        found.append(
            bool(grad.isfinite().all()) and bool(grad.any()) == (factor > 0 or kept_before)
        )
    return [*found, kept_before]


@pytest.mark.parametrize("wire", ["int8", "int4"])
def test_gradients_of_zeros_are_zeros_and_deliver_what_was_kept(wire: str) -> None:
    for found in run_ranks(of_nothing, 2, wire):
        assert all(found), found


def poisoned(me: Rank, bad: float) -> list[bool]:
    """A gradient that is not finite, and no scaler that would skip the step."""
    model, optimizer, state = with_feedback(Weighted(SIZES), "int4", exact_below=0)
    for number in range(3):
        factors = gradients_of(me.rank, number)
        if number == 1 and me.rank == 0:
            factors[2][100] = bad
        optimizer.zero_grad()
        model(factors).backward()
        seen = model.module.weights[2].grad.isfinite().all()
        optimizer.step()
        assert bool(seen) == (number != 1)  # all ranks see it
    return [bool(one.isfinite().all()) for one in residuals(state).values()]


@pytest.mark.parametrize("bad", [INF, -INF, float("nan")])
def test_what_is_not_finite_reaches_all_ranks_and_no_residual(bad: float) -> None:
    for told in run_ranks(poisoned, 2, bad):
        assert all(told)


# ---- several optimizers


def with_two_optimizers(me: Rank) -> list[list[bool]]:
    """Which parameters have a residual after each step."""
    model = DistributedDataParallel(Weighted(SIZES))
    weights = list(model.module.weights)
    first, second = (torch.optim.SGD(part, lr=1.0) for part in (weights[:2], weights[2:]))
    state = compression.ErrorFeedback("int4", model, [first, second], exact_below=0)
    model.register_comm_hook(state, compression.hook)
    told = []
    model(gradients_of(me.rank, 0)).backward()
    for optimizer in (first, second):
        optimizer.step()
        told.append([bool(one.any()) for one in residuals(state).values()])
    return told


def test_each_optimizer_commits_its_own_parameters() -> None:
    for told in run_ranks(with_two_optimizers, 2):
        assert [any(told[0][:2]), any(told[0][2:])] == [True, False]
        assert any(told[1][2:])


# ---- checkpoints


def steps(model: Any, optimizer: Any, batches: list[Tensor]) -> None:
    for tokens in batches:
        optimizer.zero_grad()
        next_byte_loss(model, tokens).backward()
        optimizer.step()


def through_a_file(saved: dict[str, Any], fresh: Any, folder: str) -> None:
    file = io.BytesIO()
    torch.save(saved["feedback"], file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))


def through_dcp(saved: dict[str, Any], fresh: Any, folder: str) -> None:
    dcp.save(saved, checkpoint_id=folder)
    loaded = {"feedback": fresh.state_dict()}
    dcp.load(loaded, checkpoint_id=folder)
    fresh.load_state_dict(loaded["feedback"])


def resumed(me: Rank, through: Any, folder: str) -> tuple[str, str, str]:
    """Digests: without a break, with one, with one in which residuals were lost."""
    batches = tokens_of(me.rank, 6)
    model, optimizer, state = with_feedback(gpt(), "int4", exact_below=64)
    steps(model, optimizer, batches[:3])
    kept = {name: one.clone() for name, one in model.module.state_dict().items()}
    of_optimizer = optimizer.state_dict()
    momentum = torch.load(save(of_optimizer), weights_only=True)
    saved = {"feedback": state.state_dict()}
    steps(model, optimizer, batches[3:])
    ends = [digest(model.parameters())]
    for keep in (True, False):
        module = gpt()
        module.load_state_dict(kept)
        # Other buckets than before, and not yet rebuilt.
        model, optimizer, state = with_feedback(
            module, "int4", {"bucket_cap_mb": 0.002}, exact_below=64
        )
        optimizer.load_state_dict(momentum)
        if keep:
            through(saved, state, folder)
        steps(model, optimizer, batches[3:])
        ends.append(digest(model.parameters()))
    return tuple(ends)


def save(value: Any) -> io.BytesIO:
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


@pytest.mark.parametrize("through", [through_a_file, through_dcp])
def test_a_restored_run_continues_with_the_same_bits(through: Any, tmp_path: Path) -> None:
    told = run_ranks(resumed, 2, through, str(tmp_path / "checkpoint"))
    for whole, continued, forgetful in told:
        assert whole == continued == told[0][0]
        assert forgetful != whole  # residuals matter


def saving(me: Rank) -> dict[str, Any]:
    model, optimizer, state = with_feedback(Weighted(SIZES), "int4", exact_below=EXACT_BELOW)
    model(gradients_of(me.rank, 0)).backward()
    optimizer.step()
    return state.state_dict()


def loading(me: Rank, saved: dict[str, Any], wire: str) -> tuple[list[str], dict[str, Tensor]]:
    _, _, state = with_feedback(Weighted(SIZES), wire, exact_below=EXACT_BELOW)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state.load_state_dict(saved)
    return [str(one.message) for one in caught], residuals(state)


def owned_of(rank: int, index: int, size: int) -> Tensor:
    """Which elements of a parameter the rank owned when there were two."""
    from feedback_reference import slices_of

    mask = torch.zeros(size, dtype=torch.bool)
    for owner, begin, end, _ in slices_of(index, size, 2, "int4"):
        mask[begin:end] = owner == rank
    return mask


@pytest.mark.parametrize(("world_size", "wire"), [(3, "int4"), (1, "int4"), (2, "int8")])
def test_with_other_owners_what_the_owners_kept_is_dropped(world_size: int, wire: str) -> None:
    merged = {key: value for one in run_ranks(saving, 2) for key, value in one.items()}
    for rank, (texts, found) in enumerate(run_ranks(loading, world_size, merged, wire)):
        (text,) = texts
        if rank == 2:
            assert "saved by 2 ranks, here are 3; rank 2 begins with none" in text
            assert not any(bool(one.any()) for one in found.values())
            continue
        assert "kept as an owner of sums is dropped" in text
        kept = merged[f"rank{rank}"]["residual"]
        for index, (name, size) in enumerate(zip(kept, SIZES, strict=True)):
            mask = owned_of(rank, index, size)
            assert not found[name][mask].any(), name
            assert found[name][~mask].equal(kept[name][~mask]), name
        assert any(bool(one.any()) for one in found.values())


def refused(me: Rank, saved: dict[str, Any]) -> list[str]:
    texts = []
    _, _, state = with_feedback(Weighted(SIZES), "int4")
    _, _, other = with_feedback(Weighted([3, 4]), "int4")
    for target, given in [(state, {"rank5": saved["rank0"]}), (other, saved), (state, {})]:
        with pytest.raises(pycomm.UsageError) as caught:
            target.load_state_dict(given)
        texts.append(str(caught.value))
    return texts


def test_the_state_of_another_rank_or_model_is_refused() -> None:
    merged = {key: value for one in run_ranks(saving, 2) for key, value in one.items()}
    for foreign, other, empty in run_ranks(refused, 2, merged):
        assert "given the state of rank5; give each rank what it saved itself" in foreign
        assert "fits another model: weights.0, weights.1" in other
        assert "given the state of no rank" in empty


# ---- failures and mistakes


def failing(me: Rank) -> tuple[str, bool]:
    """(error, whether what was committed is as it was, also after a step that should not be)."""
    me.init()
    model, optimizer, state = with_feedback(Weighted(SIZES), "int4", exact_below=0)
    for number in range(3):  # after DDP has rebuilt its buckets, which is a collective too
        model(gradients_of(me.rank, number)).backward()
        optimizer.step()
        optimizer.zero_grad()
    before = residuals(state)
    text = ""
    if me.rank == 1:
        dist.group.WORLD._get_backend(torch.device("cpu")).close("has had enough", False)
    else:
        try:
            model(gradients_of(me.rank, 3)).backward()
        except RuntimeError as error:
            text = str(error)
        optimizer.step()
    after = residuals(state)
    same = all(before[name].equal(after[name]) for name in before)
    dist.destroy_process_group()
    return text, same


def test_a_failed_exchange_raises_and_leaves_no_trace() -> None:
    (text, same), _ = run_ranks(failing, 2, init=False)
    assert "has had enough" in text
    assert same


def mistaken(me: Rank) -> dict[str, str]:
    module = Weighted(SIZES)
    model = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    some = torch.optim.SGD(list(model.parameters())[:1], lr=1.0)
    make = compression.ErrorFeedback
    calls = {
        "format": lambda: make("int3", model, optimizer),
        "model": lambda: make("int8", module, optimizer),
        "optimizer": lambda: make("int8", model, model),
        "some": lambda: make("int8", model, some),
        "exact": lambda: make("int8", model, optimizer, exact_below=-1),
    }
    texts = {}
    for name, call in calls.items():
        with pytest.raises(pycomm.UsageError) as caught:
            call()
        texts[name] = str(caught.value)
    return texts


def test_mistakes_are_named() -> None:
    (texts,) = run_ranks(mistaken, 1)
    assert "int3" in texts["format"]
    assert "expected a DistributedDataParallel; wrap the model first" in texts["model"]
    assert "expected a torch.optim.Optimizer" in texts["optimizer"]
    assert "no optimizer steps weights.1, weights.2" in texts["some"]
    assert "exact_below is -1" in texts["exact"]


def with_the_state_of_another_model(me: Rank) -> str:
    _, _, state = with_feedback(Weighted(SIZES), "int8")
    model = DistributedDataParallel(Weighted(SIZES))
    model.register_comm_hook(state, compression.hook)
    with pytest.raises(RuntimeError) as caught:
        model(gradients_of(me.rank, 0)).backward()
    return str(caught.value)


def test_the_state_of_another_model_is_refused() -> None:
    for text in run_ranks(with_the_state_of_another_model, 2):
        assert "make a new ErrorFeedback for this model" in text
