# SPDX-License-Identifier: MIT
"""Error feedback for DDP: what a coarse encoding loses in one step is sent with the next.

Every rank keeps one number for each element of the model: of an element that it owns, what the
encoding of the mean lost; of any other, what the encoding of its own gradient lost. They belong to
the parameter, not to a bucket, and change only when a step counts.

References: Seide et al. 2014, "1-bit stochastic gradient descent"; Karimireddy et al. 2019, "Error
feedback fixes SignSGD"; Tang et al. 2019, "DoubleSqueeze", which feeds back at the owner too.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from pycomm.compression.hook import EXACT_BELOW, Encoded, Memories
from pycomm.compression.residuals import Residuals
from pycomm.errors import UsageError
from pycomm.native import load


class ErrorFeedback(Encoded):
    """Sends gradients encoded, and adds to each step what encoding lost in the one before.

    A residual that a backward pass makes is staged. It counts from the moment the optimizer has
    stepped. It is dropped when the step is left out: a GradScaler that found Inf or NaN, a backward
    pass whose gradients were zeroed before any step, an exchange that failed. Several backward
    passes before one step add up as their gradients do.
    """

    def __init__(
        self,
        wire: str,
        model: DistributedDataParallel,
        optimizer: Optimizer | Iterable[Optimizer],
        *,
        scaler: torch.amp.GradScaler | None = None,
        exact_below: int = EXACT_BELOW,
    ) -> None:
        """Begins with residuals of zero. Local. Memory: two float32 for each element.

        Args:
            wire: As for Encoded.
            model: The DDP module that the hook is registered with.
            optimizer: What steps its parameters; all optimizers if there are several. A step of
                one commits the residuals of its parameters.
            scaler: The GradScaler, if losses are scaled: residuals follow its scale.
            exact_below: As for Encoded.

        Raises:
            UsageError: an argument is not one of these, or a parameter is in no optimizer.
        """
        super().__init__(wire, model, exact_below=exact_below)
        self._scaler = scaler
        self._scale = self._scale_now()
        self._residuals = Residuals([one.numel() for one in self.parameters])
        self._backward = -1  # the last one that was looked at
        self._failed = False  # an exchange, since the last step
        optimizers = list(optimizer) if isinstance(optimizer, Iterable) else [optimizer]
        self._check_optimizers(optimizers)
        self._attach(optimizers)

    def _check_optimizers(self, optimizers: Sequence[Any]) -> None:
        for one in optimizers:
            if not isinstance(one, Optimizer):
                raise UsageError(
                    f"ErrorFeedback: optimizer is a {type(one).__name__}, expected a "
                    "torch.optim.Optimizer or several"
                )
        stepped = {index for one in optimizers for index in self._indices_in(one)}
        missing = [name for index, name in enumerate(self.names) if index not in stepped]
        if missing:
            raise UsageError(
                f"ErrorFeedback: no optimizer steps {_some(missing)}, so their residuals would "
                "never count; give all optimizers, or set requires_grad=False before DDP"
            )

    def _attach(self, optimizers: Sequence[Optimizer]) -> None:
        """Listens to steps and to the beginning of backward passes, as long as this lives."""
        mine = weakref.ref(self)

        def on_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            if state := mine():
                state._on_step(optimizer)

        def on_gradient(gradient: Tensor) -> None:
            if (state := mine()) and (state._residuals.staged or state._failed):
                state._on_backward()

        handles = [one.register_step_post_hook(on_step) for one in optimizers]
        handles += [one.register_hook(on_gradient) for one in self.parameters]
        weakref.finalize(self, _remove_all, [handle.remove for handle in handles])

    # ---- what counts

    def _indices_in(self, optimizer: Optimizer) -> set[int]:
        groups = optimizer.param_groups
        stepped = (self._index.get(id(one)) for group in groups for one in group["params"])
        return {index for index in stepped if index is not None}

    def _on_step(self, optimizer: Optimizer) -> None:
        """After step(), which fused optimizers leave out themselves if a GradScaler found Inf."""
        found_inf = getattr(optimizer, "found_inf", None)
        if self._failed:
            self.discard()
        elif found_inf is not None and bool(found_inf):
            self._residuals.discard(self._indices_in(optimizer))
        else:
            self._residuals.commit(self._indices_in(optimizer))

    def _on_backward(self) -> None:
        """Before the first gradient of a backward pass is accumulated, while something is staged.

        Either its gradients are added to those of the pass that staged it, or that pass was for
        nothing: no step was made, and its gradients are gone.
        """
        now = torch._C._current_graph_task_id()
        if now == self._backward:
            return
        self._backward = now
        staged = (self.parameters[index].grad for index in self._residuals.staged)
        if self._failed or not any(one is not None and bool(one.any()) for one in staged):
            self.discard()

    def discard(self) -> None:
        """Forgets what was staged since the last step. Local.

        Only needed where gradients that were reduced are neither used nor zeroed.
        """
        self._residuals.discard()
        self._failed = False

    def _abort(self) -> None:
        """The pass has failed: what its other buckets stage, now or later, is for nothing too."""
        self._failed = True

    # ---- what the hook asks for

    def _scale_now(self) -> float:
        return float(self._scaler.get_scale()) if self._scaler is not None else 1.0

    def _residual_offset(self, index: int) -> int:
        return self._residuals.offsets[index]

    def _stage(self, indices: Sequence[int]) -> Memories:
        scale = self._scale_now()
        # Gradients of a scale that has vanished have no unit: residuals keep theirs.
        if scale != self._scale and scale > 0:
            if self._scale > 0:
                self._residuals.rescale(scale / self._scale)
            self._scale = scale
        read, write = self._residuals.stage(indices)
        return Memories(self._residuals.memories, read, write)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Returns what this rank needs to continue exactly: copies, by parameter name. Local.

        Each rank has its own, under the key "rank<r>", so that all may go into one
        torch.distributed.checkpoint, or into one dict, or each into a file of its own. What is
        staged is not in it: call it after a step.
        """
        residual = {
            name: self._residuals.committed(index).clone() for index, name in enumerate(self.names)
        }
        mine = {
            "wire": self.wire,
            "world_size": self.world_size,
            "exact_below": self.exact_below,
            "scale": self._scale,
            "residual": residual,
        }
        return {f"rank{self.rank}": mine}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state_dict() of this rank. Local.

        With another world size, wire format or exact_below elements have other owners: what was
        kept as their owner is dropped, with a warning. A rank that did not exist begins with zeros.

        Raises:
            UsageError: it is another rank's, or of a model with other parameters.
        """
        mine = state.get(f"rank{self.rank}")
        if mine is None:
            self._load_nothing(state)
            return
        self._check_names(mine["residual"])
        fresh = Residuals(self._residuals.sizes)
        for index, name in enumerate(self.names):
            fresh.committed(index).copy_(mine["residual"][name])
        saved = (mine["wire"], mine["world_size"], mine["exact_below"])
        if saved != (self.wire, self.world_size, self.exact_below):
            _drop_owned(fresh, self.rank, *saved)
            warnings.warn(
                "ErrorFeedback: residuals were saved with wire {!r}, world size {} and exact_below "
                "{}, here they are {!r}, {} and {}; what this rank kept as an owner of sums is "
                "dropped".format(*saved, self.wire, self.world_size, self.exact_below),
                stacklevel=2,
            )
        # self._exchanges and their offsets stay valid: sizes are the same.
        self._residuals, self._scale = fresh, float(mine["scale"])

    def _load_nothing(self, state: dict[str, Any]) -> None:
        sizes = {one["world_size"] for one in state.values()}
        if not sizes or sizes == {self.world_size}:
            raise UsageError(
                f"ErrorFeedback: rank {self.rank} of {self.world_size} was given the state of "
                f"{_some(sorted(state)) or 'no rank'}; give each rank what it saved itself"
            )
        self._residuals = Residuals(self._residuals.sizes)
        warnings.warn(
            f"ErrorFeedback: residuals were saved by {max(sizes)} ranks, here are "
            f"{self.world_size}; rank {self.rank} begins with none",
            stacklevel=3,
        )

    def _check_names(self, residual: dict[str, Tensor]) -> None:
        mine = dict(zip(self.names, self._residuals.sizes, strict=True))
        given = {name: tensor.numel() for name, tensor in residual.items()}
        wrong = [name for name in {**mine, **given} if mine.get(name) != given.get(name)]
        if wrong:
            raise UsageError(
                f"ErrorFeedback: the state fits another model: {_some(wrong)} are missing on one "
                "side or differ in size"
            )


def _drop_owned(
    residuals: Residuals, rank: int, wire: str, world_size: int, exact_below: int
) -> None:
    """Zeroes what `rank` owned when residuals were made with these settings."""
    parts = [
        (index, begin, begin, size)
        for index, (begin, size) in enumerate(zip(residuals.offsets, residuals.sizes, strict=True))
    ]
    cut = load().EncodedBucket(wire, rank, world_size, parts, exact_below)
    for begin, count in cut.owned():
        residuals.memories[0][begin : begin + count].zero_()


def _some(names: Sequence[str]) -> str:
    """Names for a message: the first few."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _remove_all(removals: Sequence[Callable[[], None]]) -> None:
    for remove in removals:
        remove()
