# SPDX-License-Identifier: MIT
"""Makes the servers' optimizers from one that a program has for its whole model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pycomm.errors import UsageError
from pycomm.parameter_server.packing import trained
from pycomm.parameter_server.shard import MakeOptimizer


def same_as(optimizer: Optimizer, model: nn.Module) -> MakeOptimizer:
    """Returns what Server needs to make optimizers of the same class, groups and settings; local.

    Args:
        optimizer: One of torch's kind, over the model's parameters. Its state is not taken.
        model: The model; its names tell which group a piece belongs to.

    Raises:
        UsageError: a parameter that is trained is in no group.
    """
    group_of = {
        id(parameter): index
        for index, group in enumerate(optimizer.param_groups)
        for parameter in group["params"]
    }
    places = {name: group_of.get(id(parameter)) for name, parameter in trained(model).items()}
    missing = [name for name, place in places.items() if place is None]
    if missing:
        raise UsageError(f"same_as: the optimizer does not have {', '.join(missing[:5])}")
    settings = [
        {key: value for key, value in group.items() if key not in ("params", "param_names")}
        for group in optimizer.param_groups
    ]
    kind: Callable[[list[dict[str, Any]]], Optimizer] = type(optimizer)  # whose defaults differ

    def make(named: list[tuple[str, nn.Parameter]]) -> Optimizer:
        groups = [
            {**setting, "params": [pair for pair in named if places[pair[0]] == index]}
            for index, setting in enumerate(settings)
        ]
        return kind([group for group in groups if group["params"]])

    return make
