# SPDX-License-Identifier: MIT
"""What is in a checkpoint: a mapping of names to models, optimizers and other things with a state.

Everything becomes one flat dict, name by name, as torch.distributed.checkpoint saves it:

    model.<parameter>                               a model's, by the names of one process
    optimizer.state.<parameter>.exp_avg             an optimizer's, by its parameter's name
    scheduler.structure, scheduler.tensors.<path>   of whatever has state_dict(); the same on all
    ranks.<rank>.data.structure, ...                of what each rank has its own of
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pycomm.checkpoint import named
from pycomm.checkpoint.random_state import RandomState
from pycomm.checkpoint.structure import (
    STRUCTURE,
    TENSORS,
    put_together,
    take_apart,
    tensors_of,
)
from pycomm.errors import UsageError

RANKS = "ranks"
RANDOM_STATE = "random_state"


class PerRank:
    """Marks an entry of which each rank has its own: `state = {"queue": PerRank(queue)}`.

    It is loaded by the rank of the same number, or with `cyclic` by each rank from the one of its
    number modulo the number of ranks that saved. Things with load_rank_states(), as ShardedSampler
    has, are per rank without this, and get the states of all ranks, at any world size; so is
    pycomm.compression.ErrorFeedback.

    Attributes:
        value: What is saved and loaded.
        cyclic: Whether a rank that was not there takes another's.
    """

    def __init__(self, value: Any, cyclic: bool = False) -> None:
        self.value, self.cyclic = value, cyclic


class Entries:
    """The entries of a state, sorted by kind.

    Attributes:
        models: Name to stages of a model.
        optimizers: Name to optimizers with the model of each.
        shared: Name to what is the same on all ranks.
        per_rank: Name to what is each rank's own.
    """

    def __init__(self, state: Mapping[str, Any], random_state: bool) -> None:
        """Sort a state's entries.

        Raises:
            UsageError: a name is not one, or an optimizer's model is missing.
        """
        self.state = state
        self.models = {k: found for k, v in state.items() if (found := named.modules_of(v))}
        every = [module for modules in self.models.values() for module in modules]
        self.optimizers = {
            name: [(named.owner(name, one, every), one) for one in named.optimizers_of(value)]
            for name, value in state.items()
            if named.optimizers_of(value)
        }
        rest = {k: v for k, v in state.items() if k not in self.models and k not in self.optimizers}
        self.per_rank = {k: v for k, v in rest.items() if _is_per_rank(v)}
        self.shared = {k: v for k, v in rest.items() if k not in self.per_rank}
        for name in state:
            if not isinstance(name, str) or not name or "." in name or name in _RESERVED:
                raise UsageError(
                    f"Checkpointer: got an entry named {name!r}, expected a string without a dot "
                    f"that is none of {', '.join(_RESERVED)}"
                )
        if random_state:
            self.per_rank[RANDOM_STATE] = RandomState()

    def kinds(self) -> dict[str, str]:
        """Return what kind of thing each name is."""
        return {
            **dict.fromkeys(self.models, "model"),
            **dict.fromkeys(self.optimizers, "optimizer"),
            **dict.fromkeys(self.shared, "shared"),
            **dict.fromkeys(self.per_rank, "per rank"),
        }

    def flat(self, rank: int) -> dict[str, Any]:
        """Return everything under its full name: live tensors, and bytes."""
        flat: dict[str, Any] = {}
        for name, modules in self.models.items():
            flat |= _under(name, named.model_entries(modules))
        for name, pairs in self.optimizers.items():
            for module, optimizer in pairs:
                flat |= _under(name, named.optimizer_entries(module, optimizer))
        for name, value in self.shared.items():
            entries = _taken_apart(_state_of(value))
            if rank != 0:  # where ranks differ all the same, rank 0's is kept; but not of shards
                entries = {k: v for k, v in entries.items() if type(v) not in _WHOLE}
            flat |= _under(name, entries)
        for name, value in self.per_rank.items():
            flat |= _under(f"{RANKS}.{rank}.{name}", _taken_apart(_state_of(value)))
        return flat

    def of_first_rank(self) -> set[str]:
        """Return the full names of what is saved by the lowest rank that has it: buffers.

        Replicas have different ones between two forwards, and go on with those of the first.
        """
        return {
            f"{name}.{buffer}"
            for name, modules in self.models.items()
            for buffer in named.buffer_names(modules)
        }


_RESERVED = (RANKS, RANDOM_STATE)
_WHOLE = (bytes, Tensor, nn.Parameter)


def _is_per_rank(value: Any) -> bool:
    return (
        isinstance(value, PerRank)
        or hasattr(value, "load_rank_states")
        or type(value).__qualname__ == "ErrorFeedback"
    )


def _state_of(value: Any) -> Any:
    value = value.value if isinstance(value, PerRank) else value
    return value.state_dict() if hasattr(value, "state_dict") else value


def _taken_apart(value: Any) -> dict[str, Any]:
    structure, tensors = take_apart(value)
    return {STRUCTURE: structure, **_under(TENSORS, tensors)}


def _under(name: str, entries: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in entries.items()}


class Saved:
    """A checkpoint that can be read, as far as one rank needs it.

    Args:
        kinds: Its manifest's kind of each name.
        world_size: Of the ranks that saved it.
        sizes: Each full name to the size and dtype of its tensor, or to None.
        read: Fills a flat dict: tensors in place, other values as they were saved.
    """

    def __init__(self, kinds: dict[str, str], world_size: int, sizes: Any, read: Any) -> None:
        self.kinds, self.world_size = kinds, world_size
        self._sizes: dict[str, tuple[torch.Size, torch.dtype] | None] = sizes
        self._read = read

    def load(self, entries: Entries, rank: int) -> dict[str, Any]:
        """Give everything in a state what was saved; return plain values, by name.

        Raises:
            UsageError: it asks for what was not saved, or for another shape.
        """
        self._check_names(entries)
        target: dict[str, Any] = {}
        for name, modules in entries.models.items():
            target |= _under(name, named.model_entries(modules))
        stepped = {}
        for name, pairs in entries.optimizers.items():
            saved = self._below(name)
            for module, optimizer in pairs:
                tensors = named.optimizer_target(module, optimizer, saved)
                stepped[name, id(optimizer)] = tensors
                target |= _under(name, tensors)
        self._check_shapes(target)
        self._read(target)
        for name, modules in entries.models.items():
            loaded = {k: target[f"{name}.{k}"] for k in named.model_entries(modules)}
            named.set_model(modules, loaded)
        for name, pairs in entries.optimizers.items():
            values = self._values(name)
            for module, optimizer in pairs:
                tensors = stepped[name, id(optimizer)]
                loaded = {key: target[f"{name}.{key}"] for key in tensors}
                named.set_optimizer(module, optimizer, values | loaded)
        plain = {}
        for name, value in entries.shared.items():
            state = self._object(name, value)
            if hasattr(value, "load_state_dict"):
                value.load_state_dict(state)
            else:
                plain[name] = state
        for name, value in entries.per_rank.items():
            self._load_per_rank(name, value, rank, plain)
        return plain

    def _load_per_rank(self, name: str, value: Any, rank: int, plain: dict[str, Any]) -> None:
        inner = value.value if isinstance(value, PerRank) else value
        if hasattr(inner, "load_rank_states"):
            ranks = range(self.world_size)
            inner.load_rank_states([self._object(f"{RANKS}.{r}.{name}", None) for r in ranks])
            return
        if isinstance(value, PerRank) and value.cyclic:
            rank %= self.world_size
        if rank >= self.world_size:
            return  # there was no such rank: it begins as it is
        state = self._object(f"{RANKS}.{rank}.{name}", inner)
        if hasattr(inner, "load_state_dict"):
            inner.load_state_dict(state)
        else:
            plain[name] = PerRank(state)

    def _below(self, name: str) -> set[str]:
        return {k.removeprefix(f"{name}.") for k in self._sizes if k.startswith(f"{name}.")}

    def _values(self, name: str) -> dict[str, Any]:
        """The hyperparameters of all parameters of an optimizer."""
        target = {
            f"{name}.{key}": None for key in self._below(name) if key.startswith(named.VALUES)
        }
        self._read(target)
        values: dict[str, Any] = {}
        for pickled in target.values():
            values |= pickle.loads(pickled)  # type: ignore[arg-type]
        return values

    def _object(self, name: str, value: Any) -> Any:
        """What was saved of one object; sharded tensors as the object has them now."""
        structure: dict[str, Any] = {f"{name}.{STRUCTURE}": None}
        self._read(structure)
        now = {} if value is None else tensors_of(_state_of(value))
        sharded = {key: one for key, one in now.items() if type(one) is not Tensor}
        tensors: dict[str, Any] = {}
        for key in self._below(f"{name}.{TENSORS}"):
            size = self._sizes[f"{name}.{TENSORS}.{key}"]
            assert size is not None
            tensors[key] = sharded[key] if key in sharded else torch.empty(size[0], dtype=size[1])
        target = _under(f"{name}.{TENSORS}", tensors)
        self._read(target)
        loaded = {key: target[f"{name}.{TENSORS}.{key}"] for key in tensors}
        return put_together(structure[f"{name}.{STRUCTURE}"], loaded)

    # ---- what does not fit

    def _check_names(self, entries: Entries) -> None:
        for name, kind in entries.kinds().items():
            if name == RANDOM_STATE and name not in self.kinds:
                del entries.per_rank[RANDOM_STATE]
            elif self.kinds.get(name) != kind:
                was = self.kinds.get(name)
                raise UsageError(
                    f"Checkpointer.load: {name!r} is "
                    + (f"there as {was}, not as {kind}" if was else "not in the checkpoint")
                    + f"; it has {', '.join(f'{k} ({v})' for k, v in self.kinds.items())}"
                )

    def _check_shapes(self, target: dict[str, Any]) -> None:
        missing = [key for key in target if key not in self._sizes]
        if missing:
            raise UsageError(
                f"Checkpointer.load: {len(missing)} entries of {len(target)} were not saved, among "
                f"them {missing[0]!r}; the model or optimizer is another than the one saved"
            )
        for key, value in target.items():
            size = self._sizes[key]
            if isinstance(value, Tensor) and size is not None and size[0] != value.shape:
                raise UsageError(
                    f"Checkpointer.load: {key!r} was saved with shape {tuple(size[0])}, here it "
                    f"has {tuple(value.shape)}"
                )
