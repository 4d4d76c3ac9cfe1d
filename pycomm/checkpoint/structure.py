# SPDX-License-Identifier: MIT
"""Nested Python objects as tensors, by path, and what is left when they are taken out.

torch.distributed.checkpoint keeps dicts and lists with string keys; a state_dict() may have more:
tuples, numbers as keys, objects. So the tensors of an object are saved one by one, which lets ranks
of another layout load them, and the rest of it as it is.
"""

from __future__ import annotations

import copy
import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

STRUCTURE = "structure"
TENSORS = "tensors"


@dataclass(frozen=True)
class _Place:
    """Where a tensor was."""

    path: str


def take_apart(value: Any) -> tuple[bytes, dict[str, Tensor]]:
    """Return an object without its tensors, pickled, and the tensors by path."""
    tensors: dict[str, Tensor] = {}

    def take(path: Any, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        key = pytree.keystr(path)
        tensors[key] = leaf
        return _Place(key)

    structure = pytree.tree_map_with_path(take, value)
    stream = io.BytesIO()
    pickle.dump(structure, stream)
    return stream.getvalue(), tensors


def tensors_of(value: Any) -> dict[str, Tensor]:
    """Return an object's tensors by path."""
    leaves = pytree.tree_flatten_with_path(value)[0]
    return {pytree.keystr(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


def put_together(structure: bytes, tensors: dict[str, Tensor]) -> Any:
    """Return the object that take_apart was given, with these tensors."""
    return pytree.tree_map(
        lambda leaf: tensors[leaf.path] if isinstance(leaf, _Place) else leaf,
        pickle.loads(structure),
    )


@torch.no_grad()
def staged(state: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a flat state in CPU memory, in the memory of the copy before if it fits.

    Sharded tensors stay sharded: what is copied is this rank's part.
    """
    copies: dict[str, Any] = {}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            copies[key] = value if isinstance(value, bytes) else copy.deepcopy(value)
            continue
        old = before.get(key)
        if isinstance(old, Tensor) and _alike(old, value):
            copies[key] = old.copy_(value.detach())
        else:
            copies[key] = value.detach().to("cpu", copy=True)
    return copies


def _alike(old: Tensor, new: Tensor) -> bool:
    return (
        type(old) is type(new.detach())
        and old.shape == new.shape
        and old.dtype == new.dtype
        and getattr(old, "placements", None) == getattr(new, "placements", None)
        and getattr(old, "device_mesh", None) == getattr(new, "device_mesh", None)
    )
