# SPDX-License-Identifier: MIT
"""Models and optimizers by the names of their parameters, as one process would have them.

So a checkpoint of DDP, of FSDP2, of tensor parallel shards and of pipeline stages has the same
entries, and each can load what another has saved. The names and the sharding are the work of
torch.distributed.checkpoint.state_dict.
"""

from __future__ import annotations

import contextlib
import pickle
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pycomm.errors import UsageError

# One entry for each parameter, so that a stage of a pipeline finds its own.
_BY_PARAMETER = StateDictOptions(flatten_optimizer_state_dict=True)
# Hyperparameters are many and small: those of one stage's parameters are one entry.
VALUES = "values@"
# What torch puts into names, and takes out of those it saves by.
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def modules_of(value: Any) -> list[nn.Module]:
    """Return the model that a value is, or the stages of one that it lists, or nothing."""
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return [_inner(one) for one in listed] if _all(listed, nn.Module) else []


def optimizers_of(value: Any) -> list[Optimizer]:
    """Return the optimizer that a value is, or those that it lists, or nothing."""
    listed = list(value) if isinstance(value, (list, tuple)) else [value]
    return listed if _all(listed, Optimizer) else []


def _all(listed: Sequence[Any], kind: type) -> bool:
    return bool(listed) and all(isinstance(one, kind) for one in listed)


def _inner(module: nn.Module) -> nn.Module:
    """A model without DataParallel's or DistributedDataParallel's wrapper."""
    ours = sys.modules.get("pycomm.data_parallel")
    wrappers = (DistributedDataParallel, *((ours.DataParallel,) if ours is not None else ()))
    return _inner(module.module) if isinstance(module, wrappers) else module


def _parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    """A model's parameters by the names that get_model_state_dict gives them."""
    return {_plain(name): parameter for name, parameter in module.named_parameters()}


def _plain(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


# ---- models


def model_entries(modules: Sequence[nn.Module]) -> dict[str, Any]:
    """Return the parameters and buffers by name: the live tensors, sharded as they are."""
    entries: dict[str, Any] = {}
    for module in modules:
        for name, value in get_model_state_dict(module).items():
            if name in entries:
                raise UsageError(
                    f"Checkpointer: two stages of a model have a parameter {name!r}; their "
                    "parameters need the names that the whole model gives them"
                )
            entries[name] = value
    return entries


def buffer_names(modules: Sequence[nn.Module]) -> set[str]:
    """Return the names under which model_entries has buffers, and some that it leaves out."""
    return {_plain(name) for module in modules for name, _ in module.named_buffers()}


def set_model(modules: Sequence[nn.Module], entries: dict[str, Any]) -> None:
    """Give models what model_entries returned, with other values."""
    for module in modules:
        names = get_model_state_dict(module)
        set_model_state_dict(module, {name: entries[name] for name in names})


# ---- optimizers


def owner(name: str, optimizer: Optimizer, modules: Sequence[nn.Module]) -> nn.Module:
    """Return the model that an optimizer's parameters are of.

    Raises:
        UsageError: none of the models has all of them.
    """
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        raise UsageError(
            f"Checkpointer: {name!r} is a ZeroRedundancyOptimizer, whose parts cannot be loaded at "
            "another world size; shard with FSDP2 (fully_shard), or give "
            "PerRank(optimizer.optim), which is loaded at the same world size only"
        )
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for module in modules:
        if wanted <= {id(parameter) for parameter in module.parameters()}:
            return module
    raise UsageError(
        f"Checkpointer: no model in the state has all parameters of the optimizer {name!r}; put "
        "the model that it steps into the same state, from which its parameters have their names"
    )


@contextlib.contextmanager
def _without_empty_groups(optimizer: Optimizer) -> Iterator[None]:
    """For torch, which finds a group by its first parameter: a stage may have none of it."""
    groups = list(optimizer.param_groups)
    optimizer.param_groups[:] = [group for group in groups if group["params"]]
    try:
        yield
    finally:
        loaded = iter(optimizer.param_groups)
        optimizer.param_groups[:] = [next(loaded) if group["params"] else group for group in groups]


def optimizer_entries(module: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's tensors by parameter name, and all else in one entry."""
    fresh = not optimizer.state
    flat = get_optimizer_state_dict(module, optimizer, options=_BY_PARAMETER)
    if fresh:  # torch has made a step of nothing to see what its state will be
        optimizer.state.clear()
        flat = {key: value for key, value in flat.items() if not key.startswith("state.")}
    entries: dict[str, Any] = {k: v for k, v in flat.items() if isinstance(v, Tensor)}
    values = {key: value for key, value in flat.items() if key not in entries}
    first = min((key for key in values), default="")
    entries[VALUES + first] = pickle.dumps(values)
    return entries


def optimizer_target(module: nn.Module, optimizer: Optimizer, saved: set[str]) -> dict[str, Tensor]:
    """Return tensors to load an optimizer into, by parameter name: its own.

    Args:
        module: The model that it steps.
        optimizer: It gets a state if it has none; parameters of which none was saved lose theirs.
        saved: The names of what was saved.
    """
    if not any(key.startswith("state.") for key in saved):
        optimizer.state.clear()
        return {}
    get_optimizer_state_dict(module, optimizer, options=_BY_PARAMETER)
    for name, parameter in _parameters(module).items():
        if not any(key.startswith(f"state.{name}.") for key in saved):
            optimizer.state.pop(parameter, None)
    flat: dict[str, Any] = get_optimizer_state_dict(module, optimizer, options=_BY_PARAMETER)
    return {key: value for key, value in flat.items() if isinstance(value, Tensor)}


def set_optimizer(module: nn.Module, optimizer: Optimizer, flat: dict[str, Any]) -> None:
    """Give an optimizer what was loaded, by parameter name."""
    with _without_empty_groups(optimizer):
        if optimizer.state:
            set_optimizer_state_dict(module, optimizer, flat, options=_BY_PARAMETER)
            return
        # Nothing but hyperparameters; torch would make a step to see what state there should be.
        names = {parameter: name for name, parameter in _parameters(module).items()}
        for group in optimizer.param_groups:
            first = names[group["params"][0]]
            for key in group.keys() - {"params"}:
                group[key] = flat[f"param_groups.{first}.{key}"]
