# SPDX-License-Identifier: MIT
"""Finds out how the matrices of a transformer can be shared by several ranks, and does it.

The rules. A *pair* is one or more linear layers of which each rank takes some outputs (by columns),
and one that takes them as inputs (by rows), so that one sum over the ranks ends it:

1. By name, in a module whose direct children are linear layers: q, k, v, query, key, value, gate,
   up, fc1, c_fc, w1, w3, wi, lin1, linear1, each also with _proj or _layer behind it, go by
   columns; o, out, down, fc2, c_proj, w2, wo, lin2, linear2, dense, likewise, by rows.
2. By structure: in an nn.Sequential, a linear layer, anything without parameters, and a linear
   layer that takes as many features as the first one gives, and nothing after it but such.
3. nn.Embedding by rows of its vocabulary, and a linear layer that gives one output for each entry
   of that vocabulary by columns, unless they share their weights.

Everything else stays whole on every rank, which costs memory and time but is right: layer norms,
position embeddings, fused projections of query, key and value, shared parameters, and modules with
a pair by name that have other parameters besides, such as norms of queries and keys. An attention's
number of heads (heads, num_heads, n_head, n_heads, num_attention_heads, num_key_value_heads,
n_kv_heads) becomes that of its rank. Each module with a pair is run once before and after, where it
takes one tensor, and must give the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from pycomm.errors import CommError, UsageError

_SUFFIX = r"(_?proj|_?layer|_lin)?"
_COLUMNS = re.compile(
    rf"(q|k|v|query|key|value|gate|up|fc1|c_fc|w1|w3|wi|wi_0|wi_1|lin1|linear1|intermediate){_SUFFIX}"
)
_ROWS = re.compile(
    rf"(o|out|output|down|fc2|c_proj|w2|wo|lin2|linear2|dense|attention_out){_SUFFIX}"
)
HEAD_COUNTS = (
    "heads", "num_heads", "n_head", "n_heads", "num_attention_heads", "num_key_value_heads",
    "n_kv_heads",
)  # fmt: skip
_NORMS = ("LayerNorm", "RMSNorm")


@dataclass
class Plan:
    """What each module does, for torch's parallelize_module, and what was found on the way.

    Attributes:
        styles: By name of the module.
        pairs: Names of the modules that hold a pair.
        attentions: Names of those that hold attention heads, with their counts.
        whole: Names of linear layers that stay whole on every rank.
    """

    styles: dict[str, ParallelStyle] = field(default_factory=dict)
    pairs: list[str] = field(default_factory=list)
    attentions: dict[str, dict[str, int]] = field(default_factory=dict)
    whole: list[str] = field(default_factory=list)

    @property
    def heads(self) -> list[int]:
        """All counts of heads."""
        return [count for counts in self.attentions.values() for count in counts.values()]


def find_plan(model: nn.Module, sequence: bool = False) -> Plan:
    """Returns how a model can be shared, by the rules above; local.

    Args:
        model: With the parameters of one process.
        sequence: Activations between pairs are split by position (dimension 1 of batch, position,
            channel): needs blocks that hold layer norms and modules with pairs, and nothing else.

    Raises:
        UsageError: no pair is found, or `sequence` is asked for and there are no such blocks.
    """
    plan = Plan()
    shared = _shared(model)
    for name, module in model.named_modules():
        columns, rows = _pair_in(module)
        if not columns or any(id(p) in shared for p in module.parameters()):
            continue
        layers = [module.get_submodule(child) for child in (*columns, rows)]
        if _count(module) > sum(_count(layer) for layer in layers):
            continue  # a rank would find gradients of the rest for its own heads only
        plan.pairs.append(name)
        for child in columns:
            plan.styles[_join(name, child)] = ColwiseParallel()
        plan.styles[_join(name, rows)] = RowwiseParallel(
            output_layouts=Shard(1) if sequence else Replicate()
        )
        counts = {n: v for n in HEAD_COUNTS if type(v := getattr(module, n, None)) is int}
        if counts:
            plan.attentions[name] = counts
    if not plan.pairs:
        raise UsageError(
            "tensor parallel: no pair of linear layers is found in the model by the rules of "
            "pycomm.tensor_parallel; give wrap a plan= for torch's parallelize_module"
        )
    _add_vocabulary(model, plan, shared)
    if sequence:
        _add_sequence(model, plan)
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    plan.whole = [name for name in linear if name not in plan.styles]
    return plan


def apply_plan(
    model: nn.Module, plan: Plan | Mapping[str, ParallelStyle], mesh: DeviceMesh
) -> None:
    """Shares a model's matrices among the ranks of a one-dimensional mesh, in place; collective.

    Raises:
        UsageError: a matrix cannot be divided, or a module computes something else afterwards.
    """
    if not isinstance(plan, Plan):
        parallelize_module(model, mesh, dict(plan))
        return
    ranks = mesh.size()
    for name in plan.pairs:
        _check_sizes(model, name, plan, ranks)
    before = {name: _probe(model.get_submodule(name)) for name in plan.pairs}
    for name, counts in plan.attentions.items():
        for attribute, count in counts.items():
            setattr(model.get_submodule(name), attribute, count // ranks)
    inner = {n: s for n, s in plan.styles.items() if _parent(n) in plan.pairs}
    inputs_split = any(isinstance(s, PrepareModuleInput) for s in plan.styles.values())
    parallelize_module(model, mesh, inner)
    for name, given in before.items():
        _compare(name, model.get_submodule(name), given, mesh, inputs_split)
    rest = {n: s for n, s in plan.styles.items() if n not in inner}
    if rest:
        parallelize_module(model, mesh, rest)


def blocks_of(model: nn.Module) -> list[str]:
    """Returns names of a model's blocks: siblings of one class that hold the most parameters."""
    best, found = (False, 0), []
    for name, module in model.named_modules():
        kinds: dict[type, list[str]] = {}
        for child, part in module.named_children():
            if any(True for _ in part.children()):
                kinds.setdefault(type(part), []).append(_join(name, child))
        for names in kinds.values():
            size = sum(p.numel() for n in names for p in model.get_submodule(n).parameters())
            # Several rather than what holds them all; among equals the outermost.
            if (len(names) > 1, size) > best:
                best, found = (len(names) > 1, size), names
    return found


def _shared(model: nn.Module) -> set[int]:
    counts = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    return {one for one, count in counts.items() if count > 1}


def _count(module: nn.Module) -> int:
    return sum(1 for _ in module.parameters())


def _join(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _pair_in(module: nn.Module) -> tuple[list[str], str]:
    """The layers by columns and the one by rows among a module's children; none, "" if not both."""
    children = dict(module.named_children())
    linear = {name: one for name, one in children.items() if isinstance(one, nn.Linear)}
    if isinstance(module, nn.Sequential):
        kinds = [name for name, one in children.items() if any(True for _ in one.parameters())]
        if len(kinds) == 2 and list(linear) == kinds:
            first, second = linear.values()
            if first.out_features == second.in_features:
                return [kinds[0]], kinds[1]
        return [], ""
    columns = [name for name in linear if _COLUMNS.fullmatch(name)]
    rows = [name for name in linear if _ROWS.fullmatch(name)]
    if columns and len(rows) == 1 and len(columns) + 1 == len(linear):
        return columns, rows[0]
    return [], ""


def _add_vocabulary(model: nn.Module, plan: Plan, shared: set[int]) -> None:
    embeddings = [
        (name, one)
        for name, one in model.named_modules()
        if isinstance(one, nn.Embedding) and id(one.weight) not in shared
    ]
    for name, linear in model.named_modules():
        if not isinstance(linear, nn.Linear) or name in plan.styles or id(linear.weight) in shared:
            continue
        for token, embedding in embeddings:
            if linear.out_features == embedding.num_embeddings and token not in plan.styles:
                plan.styles[token] = RowwiseParallel(input_layouts=Replicate())
                plan.styles[name] = ColwiseParallel(output_layouts=Replicate())
                break


def _add_sequence(model: nn.Module, plan: Plan) -> None:
    """Between the first block's input and the last block's output each rank has some positions."""
    blocks = blocks_of(model)
    for name in blocks:
        block = model.get_submodule(name)
        for child, part in block.named_children():
            whole = _join(name, child)
            if type(part).__name__ in _NORMS:
                plan.styles[whole] = SequenceParallel(use_local_output=True)
            elif whole in plan.pairs:
                plan.styles[whole] = PrepareModuleInput(
                    input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),),
                    use_local_output=True,
                )  # fmt: skip
            elif any(True for _ in part.parameters()):
                raise UsageError(
                    f"sequence parallel: {whole} is neither a layer norm nor a module with a pair "
                    "of linear layers; give wrap a plan=, or use sequence=False"
                )
    if not blocks or not all(
        any(pair.startswith(f"{name}.") for pair in plan.pairs) for name in blocks
    ):
        raise UsageError("sequence parallel: the model has no blocks that hold pairs of layers")
    plan.styles[blocks[0]] = PrepareModuleInput(
        input_layouts=(Replicate(),), desired_input_layouts=(Shard(1),), use_local_output=True
    )
    last = PrepareModuleOutput(
        output_layouts=(Shard(1),), desired_output_layouts=(Replicate(),), use_local_output=True
    )
    if len(blocks) == 1:
        raise UsageError("sequence parallel: expected a model of two blocks or more, found one")
    plan.styles[blocks[-1]] = last


def _check_sizes(model: nn.Module, name: str, plan: Plan, ranks: int) -> None:
    module = model.get_submodule(name)
    for child, part in module.named_children():
        style = plan.styles.get(_join(name, child))
        if not isinstance(part, nn.Linear) or style is None:
            continue
        size = part.in_features if isinstance(style, RowwiseParallel) else part.out_features
        if size % ranks:
            raise UsageError(
                f"tensor parallel: {_join(name, child)} has {size} features that tp={ranks} ranks "
                "cannot share evenly; choose a tp that divides them"
            )


def _width(module: nn.Module) -> int:
    return next(m.in_features for m in module.modules() if isinstance(m, nn.Linear))


def _probe(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """One input and its output; None where the module wants something else than one tensor."""
    generator = torch.Generator().manual_seed(0)
    dtype = next(module.parameters()).dtype
    x = torch.randn(1, 4, _width(module), generator=generator).to(dtype)
    try:
        y = _run(module, x)
    except Exception:  # noqa: BLE001 - it takes other arguments, and is not checked
        return None
    return (x, y) if isinstance(y, Tensor) else None


def _run(module: nn.Module, x: Tensor) -> Any:
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return module(x)
    finally:
        module.train(training)


def _compare(
    name: str, module: nn.Module, given: tuple[Tensor, Tensor] | None, mesh: DeviceMesh, split: bool
) -> None:
    if given is None:
        return
    wrong = UsageError(
        f"tensor parallel: {name} computes something else when its layers are shared by "
        f"{mesh.size()} ranks, so its forward depends on more than the number of heads; give wrap "
        "a plan= that leaves it whole"
    )
    try:
        y = _run(module, given[0])
    except CommError:
        raise
    except Exception as error:
        raise wrong from error
    if split:  # a row layer then leaves each rank some positions
        y = DTensor.from_local(y, mesh, [Shard(1)], run_check=False).full_tensor()
    if y.shape != given[1].shape or not torch.allclose(y, given[1], 1e-3, 1e-3):
        raise wrong


def describe(model: nn.Module, plan: Plan) -> Iterator[str]:
    """Yields a line for each module that is shared or stays whole, for people; local."""
    for name, style in plan.styles.items():
        yield f"{name}: {type(style).__name__.removesuffix('Parallel').lower()}"
    for name in plan.whole:
        yield f"{name}: whole on every rank"
