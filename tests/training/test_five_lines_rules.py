# SPDX-License-Identifier: MIT
"""What the five lines refuse, how they round, how they find a model's matrices and layers."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from gpt import Gpt
from layout_runs import LENGTH, ROWS, VOCABULARY, model_of, optimizer_of, rows_of
from ranks import Rank, run_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformer import Attention, Transformer, token_loss

import pycomm
from pycomm.pipeline_parallel import balanced, costs_of, layers_of
from pycomm.tensor_parallel import blocks_of, describe, find_plan

# ---- precision


def rounded_losses(me: Rank | None, fields: Mapping[str, Any], steps: int = 4) -> list[float]:
    ctx = pycomm.init(pycomm.Layout(**fields), seed=7)
    model = model_of(torch.float32)
    model, _ = ctx.wrap(model, optimizer_of(model), loss=token_loss)
    losses = []
    for inputs, targets in ctx.shard(rows_of(), ROWS):
        loss = model(inputs, targets)
        ctx.step(loss)
        total = ctx.over_replicas(loss.detach().double()) / (ctx.layout.dp or 1)
        losses.append(total.item())
        if ctx.steps == steps:
            break
    return losses


def each(me: Rank, layouts: list[Mapping[str, Any]]) -> list[list[float]]:
    return [rounded_losses(me, fields) for fields in layouts]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_is_that_of_one_process_to_its_rounding(precision: str) -> None:
    grids: list[dict[str, Any]] = [{"dp": 2}, {"tp": 2}, {"pp": 2}, {"shard": True}]
    layouts = [{**grid, "precision": precision, "clip": 0.5} for grid in grids]
    (expected,) = run_ranks(each, 1, [{"precision": precision, "clip": 0.5}])
    for of_rank in run_ranks(each, 2, layouts):
        for fields, found in zip(layouts, of_rank, strict=True):
            torch.testing.assert_close(found, expected[0], rtol=2e-2, atol=2e-2, msg=str(fields))


def losses_of_the_model_that_was_wrapped(me: Rank) -> tuple[str, bool]:
    """As if wrap changed the model in place: what is said, and whether anything was trained."""
    ctx = pycomm.init(pycomm.Layout(dp=me.world_size), seed=7)
    model = model_of(torch.float32)
    wrapped, _ = ctx.wrap(model, optimizer_of(model))
    ((inputs, targets), *_) = ctx.shard(rows_of(), ROWS)
    with pytest.raises(pycomm.UsageError) as refused:
        ctx.step(token_loss(model(inputs), targets))
    untouched = all(parameter.grad is None for parameter in model.parameters())
    ctx.step(token_loss(wrapped(inputs), targets))
    return str(refused.value), untouched


def test_a_loss_of_the_model_that_was_given_to_wrap_is_refused() -> None:
    for text, untouched in run_ranks(losses_of_the_model_that_was_wrapped, 2):
        assert "model, optimizer = ctx.wrap(model, optimizer)" in text
        assert untouched


def after_an_overflow(me: Rank, fields: Mapping[str, Any]) -> tuple[bool, float, bool]:
    """One step whose loss scale overflows; then one that does not."""
    ctx = pycomm.init(pycomm.Layout(precision="fp16", **fields), seed=7)
    model = model_of(torch.float32)
    model, _ = ctx.wrap(model, optimizer_of(model), loss=token_loss)
    scaler = ctx.stepper.scaler
    assert scaler is not None
    scaler._init_scale = 2.0**40
    before = ctx.state_dict()
    for inputs, targets in ctx.shard(rows_of(), ROWS):
        ctx.step(model(inputs, targets))
        if ctx.steps == 1:
            after, scale = ctx.state_dict(), scaler.get_scale()
            scaler.update(2.0**10)
        if ctx.steps == 2:
            break
    trained = any(not torch.equal(v, after[k]) for k, v in ctx.state_dict().items())
    return all(torch.equal(v, after[k]) for k, v in before.items()), scale, trained


def test_an_overflow_anywhere_skips_the_step_everywhere() -> None:
    for fields in ({"dp": 2}, {"tp": 2}, {"pp": 2}, {"shard": True}):
        for found in run_ranks(after_an_overflow, 2, fields):
            assert found == (True, 2.0**39, True), (fields, found)


# ---- groups


def beside_gloo(me: Rank) -> set[str]:
    me.init(name="gloo")
    ctx = pycomm.init(pycomm.Layout(clip=0.5), seed=7)
    model = model_of(torch.float32)
    model, _ = ctx.wrap(model, optimizer_of(model), loss=token_loss)
    for inputs, targets in ctx.shard(rows_of(), ROWS):
        ctx.step(model(inputs, targets))
        break
    groups = [ctx._groups.all, *(ctx.mesh.get_group(name) for name in ("pp", "dp", "tp"))]
    names = {group._get_backend(torch.device("cpu")).name() for group in groups}
    torch.distributed.destroy_process_group()
    return names


def test_a_default_group_of_another_backend_is_left_alone() -> None:
    """As Ray Train makes one where it is told of no backend."""
    assert run_ranks(beside_gloo, 2, init=False) == [{"pycomm"}] * 2


# ---- what is refused


def refused(model: nn.Module, text: str, loss: Any = token_loss, **fields: Any) -> None:
    ctx = pycomm.init(pycomm.Layout(**fields))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(pycomm.UsageError) as caught:
        ctx.wrap(model, optimizer, loss=loss)
    assert text in str(caught.value), str(caught.value)


class Stubborn(Attention):
    """Its forward knows the number of heads by heart."""

    def forward(self, x: Tensor) -> Tensor:
        heads = [part(x).unflatten(-1, (4, -1)) for part in (self.query, self.key, self.value)]
        query, key, value = (one.transpose(1, 2) for one in heads)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


def refusals(me: Rank) -> None:
    gpt = functools.partial(Transformer, VOCABULARY, LENGTH, layers=2, width=12)
    refused(gpt(heads=3), "3 attention heads cannot be divided among tp=2; for 2 ranks", tp=2)
    refused(gpt(heads=3), "fits dp=2 tp=1 pp=1, dp=1 tp=1 pp=2", tp=2)
    refused(gpt(heads=4), "needs the loss", loss=None, pp=2)
    refused(Gpt(LENGTH, 2, 2, 12, 0.0), "has no method pipeline_layers()", pp=2)
    few = nn.Sequential(nn.Linear(4, 4))
    refused(few, "1 layers cannot make 2 stages", pp=2)
    tied = gpt(heads=4)
    tied.output.weight = tied.embedding.token.weight
    refused(tied, "layers embedding and output share a parameter", pp=2)
    refused(few, "no pair of linear layers is found", tp=2)
    stubborn = gpt(heads=4)
    stubborn.blocks[1].attention = Stubborn(12, 4, 0.0)
    refused(stubborn, "blocks.1.attention computes something else", tp=2)


def test_a_model_that_does_not_fit_is_refused_before_it_is_changed() -> None:
    run_ranks(refusals, 2)


def test_misuse_is_told_what_to_do() -> None:
    with pycomm.init() as ctx:
        with pytest.raises(pycomm.UsageError, match="call model, optimizer = ctx.wrap"):
            ctx.step(torch.zeros((), requires_grad=True))
        model, other = nn.Linear(2, 2), nn.Linear(2, 2)
        with pytest.raises(pycomm.UsageError, match="that the model does not have"):
            ctx.wrap(model, torch.optim.SGD(other.parameters()))
        used = torch.optim.Adam(model.parameters())
        model(torch.ones(2)).sum().backward()
        used.step()
    with pycomm.init() as ctx, pytest.raises(pycomm.UsageError, match="has taken steps already"):
        ctx.wrap(model, used)
    with pycomm.init() as ctx:
        wrapped, _ = ctx.wrap(model, torch.optim.SGD(model.parameters()))
        assert ctx.unwrap(wrapped) is model
        with pytest.raises(pycomm.UsageError, match="has a model already"):
            ctx.wrap(other)
        with pytest.raises(pycomm.UsageError, match="a dataset needs batch_size="):
            ctx.shard(rows_of())


# ---- plans and stages


def test_pairs_are_found_by_name_and_by_structure() -> None:
    plan = find_plan(model_of())
    assert plan.pairs == [f"blocks.{i}.{part}" for i in range(2) for part in ("attention", "mlp")]
    assert plan.heads == [8, 8] and plan.whole == []
    lines = list(describe(model_of(), plan))
    assert "blocks.0.attention.query: colwise" in lines and "blocks.0.mlp.2: rowwise" in lines
    assert "embedding.token: rowwise" in lines and "output: colwise" in lines


def test_what_is_fused_or_shared_stays_whole() -> None:
    """The other example's GPT: one projection for all three, output weights tied to the input's."""
    model = Gpt(LENGTH, 2, 2, 16, 0.0)
    plan = find_plan(model)
    assert plan.pairs == ["blocks.0.mlp", "blocks.1.mlp"]
    assert plan.whole == [
        f"blocks.{i}.{name}" for i in range(2) for name in ("query_key_value", "attention_out")
    ]
    assert blocks_of(model) == ["blocks.0", "blocks.1"]


def spread_gpt(me: Rank) -> tuple[Tensor, Tensor, bool]:
    torch.manual_seed(1)
    whole = Gpt(LENGTH, 2, 2, 16, 0.0)
    tokens = rows_of()[:4][0]
    expected = whole(tokens).detach()
    ctx = pycomm.init(pycomm.Layout(tp=2))
    model, _ = ctx.wrap(whole)
    is_shared = isinstance(whole.blocks[0].mlp[0].weight, DTensor)
    again = ctx.unwrap(model)
    assert type(again) is Gpt and again(tokens).allclose(expected, atol=1e-5)
    return model(tokens).detach(), expected, is_shared


def test_a_plan_that_is_found_changes_no_output() -> None:
    for found, expected, is_shared in run_ranks(spread_gpt, 2):
        assert is_shared
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_stages_are_as_equal_as_can_be() -> None:
    assert balanced([1, 1, 1, 1], 2) == [0, 2, 4]
    assert balanced([8, 1, 1, 1, 1], 2) == [0, 1, 5]
    assert balanced([1, 2, 3, 4, 5], 3) == [0, 3, 4, 5]
    assert balanced([0, 0, 5], 3) == [0, 1, 2, 3]
    model = model_of(torch.float32)
    names = layers_of(model)
    assert names == ["embedding", "blocks.0", "blocks.1", "norm", "output"]
    by_size = costs_of(model, names)
    assert by_size[3] == 2 * 16 and by_size[1] == by_size[2] > by_size[0]
    by_time = costs_of(model, names, rows_of()[:4][0])
    assert len(by_time) == 5 and min(by_time) > 0
    assert all(p.grad is None for p in model.parameters())


class _Raising(torch.autograd.Function):
    """Its backward raises, when those of the layers behind it have run."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        raise ArithmeticError("as a hook of the program's own might")


def after_a_backward_that_raised(me: Rank, fields: Mapping[str, Any]) -> list[Tensor]:
    ctx = pycomm.init(pycomm.Layout(**fields), seed=7)
    model = model_of()
    model, optimizer = ctx.wrap(model, optimizer_of(model), loss=token_loss)
    for inputs, targets in ctx.shard(rows_of(), ROWS):
        if ctx.steps == 0:
            block = model.module.blocks[1]
            hook = block.register_forward_pre_hook(lambda _, given: _Raising.apply(*given))
            with pytest.raises(ArithmeticError):
                model(inputs, targets).backward()
            hook.remove()
            optimizer.zero_grad()
        ctx.step(model(inputs, targets))
        if ctx.steps == 2:
            break
    return list(ctx.state_dict().values())


def test_gradients_are_averaged_again_after_a_backward_that_raised() -> None:
    outcomes = run_ranks(after_a_backward_that_raised, 4, {"tp": 2})
    for found in outcomes[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found, outcomes[0], strict=True))
