# SPDX-License-Identifier: MIT
"""Parameters by their names in one process, however the layout has cut the model up."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from pycomm.errors import UsageError


def outline(model: nn.Module) -> nn.Module:
    """Returns a copy of a model whose parameters have shapes and no memory; local."""
    memo = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad)
        for p in model.parameters()
    }
    return copy.deepcopy(model, memo)


def retarget(
    optimizer: torch.optim.Optimizer,
    names: Mapping[int, str],
    parameters: Mapping[str, nn.Parameter],
) -> None:
    """Makes an optimizer of the whole model one of this rank's part of it, in place; local.

    Args:
        optimizer: Made with parameters of the whole model, and not used yet.
        names: Name by id() of these parameters.
        parameters: This rank's, by name; groups keep those that are there.

    Raises:
        UsageError: it has been used, or has parameters of something else.
    """
    if optimizer.state:
        raise UsageError(
            "wrap: the optimizer has taken steps already; wrap it when it is new, and resume with "
            "ctx.checkpoint"
        )
    for group in optimizer.param_groups:
        kept = []
        for parameter in group["params"]:
            if id(parameter) not in names:
                raise UsageError(
                    f"wrap: the optimizer has a parameter of shape {tuple(parameter.shape)} that "
                    "the model does not have; make it with parameters of the model given to wrap"
                )
            if names[id(parameter)] in parameters:
                kept.append(parameters[names[id(parameter)]])
        group["params"] = kept


class Directory:
    """Which rank of a pipeline has which entry of the model's state_dict.

    Args:
        part: This rank's part of the model, with the whole model's names.
        whole: An outline of the whole model.
        group: The pipeline's ranks; None where each has the whole model.

    Attributes:
        parameters: Elements of all parameters of the whole model.
    """

    def __init__(self, part: nn.Module, whole: nn.Module, group: dist.ProcessGroup | None) -> None:
        self._part, self._whole, self._group = part, whole, group
        self.parameters = sum(p.numel() for p in whole.parameters())
        owned: list[list[str]] = [list(part.state_dict())]
        if group is not None and group.size() > 1:
            found: list[list[str]] = [[] for _ in range(group.size())]
            dist.all_gather_object(found, owned[0], group=group)
            owned = found
        self._owner = {name: rank for rank, names in enumerate(owned) for name in names}

    def gather(self) -> dict[str, Tensor]:
        """Returns the whole model's state_dict on every rank; collective."""
        mine = self._part.state_dict()
        found: dict[str, Tensor] = {}
        for name, shape in self._whole.state_dict().items():
            value = mine.get(name)
            if isinstance(value, DTensor):
                value = value.full_tensor()
            if self._group is not None and self._group.size() > 1:
                value = torch.empty_like(shape, device="cpu") if value is None else value
                value = value.detach().contiguous()
                dist.broadcast(value, group=self._group, group_src=self._owner[name])
            assert value is not None
            found[name] = value.detach().clone()
        return found

    def restored(self) -> nn.Module:
        """Returns a plain model of one process with the weights as they are; collective."""
        model = copy.deepcopy(self._whole)
        for _, module in model.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.is_meta:
                    module._parameters[name] = None
        weights = self.gather()
        _give_back(model, self._whole, weights)
        return model


def _give_back(model: nn.Module, whole: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Fills in parameters, one for all of its names where several modules share it."""
    made: dict[int, nn.Parameter] = {}
    for name, outlined in whole.named_parameters(remove_duplicate=False):
        if id(outlined) not in made:
            made[id(outlined)] = nn.Parameter(weights[name], outlined.requires_grad)
        owner, _, last = name.rpartition(".")
        model.get_submodule(owner)._parameters[last] = made[id(outlined)]
    for name, value in weights.items():
        owner, _, last = name.rpartition(".")
        buffers = model.get_submodule(owner)._buffers
        if last in buffers:
            buffers[last] = value
