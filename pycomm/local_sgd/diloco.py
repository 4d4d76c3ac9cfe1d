# SPDX-License-Identifier: MIT
"""DiLoCo: many local steps, then one outer step on the mean of what they changed.

References: Douillard et al. 2023, "DiLoCo: distributed low-communication training of language
models"; Douillard et al. 2025, "Streaming DiLoCo with overlapping communication" (fragments, delay,
alpha). Names of options are torchft's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from pycomm.errors import UsageError
from pycomm.local_sgd.mean import Attendance
from pycomm.local_sgd.periodic import Fragment, Named, Periodic

OuterOptimizer = Callable[[list[nn.Parameter]], Optimizer]


class DiLoCo(Periodic):
    """Lets every rank train alone, and every `sync_every` steps makes one outer step together.

        with DiLoCo(model, optimizer, sync_every=50):
            ...                                # a loop that knows of no other rank

    All ranks hold the same outer parameters. A round takes the mean over ranks of outer parameters
    minus the model's, the outer gradient, gives it to the outer optimizer, and puts the new outer
    parameters into the model. Making one is collective and blocking: parameters and buffers of rank
    0 go to all ranks. After a round, with fragment_update_alpha=0, and after the with block always,
    what took part has the same bits on all ranks. Outer parameters, outer gradient and momentum
    take three float32 in host memory for each element.

    Args:
        model: The plain module; it keeps its names and its tensors.
        optimizer: The inner optimizer, which trains it. Its state stays each rank's.
        sync_every: Steps from one round of a parameter to its next.
        outer_optimizer: Makes the outer optimizer of some parameters, for each fragment one.
            Default: SGD with outer_lr and Nesterov momentum outer_momentum.
        outer_lr: Of the default outer optimizer.
        outer_momentum: Likewise; 0: plain SGD. The defaults are the paper's, for runs of a hundred
            rounds and more; with some tens of rounds 1.0 and 0.5 ended much nearer to training in
            step, see docs/local_sgd.md.
        fragments: In how many parts of like size the parameters are cut, or the modules whose
            parameters are the parts. They take turns, every sync_every / fragments steps one.
        fragment_sync_delay: Steps that go on while a fragment is under way: its outer gradient is
            taken that long before its outer parameters arrive.
        fragment_update_alpha: How much of the local parameters stays, 0 to 1: the model becomes
            alpha * local + (1 - alpha) * outer.
        should_quantize: Outer gradients travel as int8.
        wire: The format, if not that: "bf16", "fp16s", "int8" or "int4". Default: float32.
        process_group: Whose ranks train together; a new group over them is made. Default: the
            default group, or this process alone if there is none.

    Attributes:
        rounds: How many there have been, of any fragment.

    Raises:
        UsageError: an argument is not understood, or the model differs between ranks.
        CommError: a rank failed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sync_every: int,
        *,
        outer_optimizer: OuterOptimizer | None = None,
        outer_lr: float = 0.7,
        outer_momentum: float = 0.9,
        fragments: int | Sequence[nn.Module] = 1,
        fragment_sync_delay: int = 0,
        fragment_update_alpha: float = 0.0,
        should_quantize: bool = False,
        wire: str | None = None,
        process_group: dist.ProcessGroup | None = None,
    ) -> None:
        if not 0 <= fragment_update_alpha <= 1:
            raise UsageError(
                f"DiLoCo: got fragment_update_alpha={fragment_update_alpha!r}, expected 0 to 1"
            )

        def nesterov(parameters: list[nn.Parameter]) -> Optimizer:
            return torch.optim.SGD(
                parameters, lr=outer_lr, momentum=outer_momentum, nesterov=outer_momentum > 0
            )

        self._make_outer = outer_optimizer or nesterov
        super().__init__(
            model,
            optimizer,
            sync_every,
            cut(model, fragments),
            delay=fragment_sync_delay,
            keep=fragment_update_alpha,
            process_group=process_group,
            wire=wire or ("int8" if should_quantize else None),
        )

    def _fragment(self, named: Named, wire: str | None) -> Fragment:
        return _Outer(named, self._group, wire, self._make_outer)

    @property
    def outer_optimizers(self) -> list[Optimizer]:
        """The outer optimizer of each fragment, for example to change its lr on all ranks alike."""
        return [one.optimizer for one in self._outer()]

    def _outer(self) -> list[_Outer]:
        return [one for one in self._fragments if isinstance(one, _Outer)]

    def state_dict(self) -> dict[str, Any]:
        """Returns outer parameters and momentum by parameter name, and where it stands. Local.

        Blocks until a round that is under way has ended; its result is in the state and counts at
        its time. The state is the same on all ranks, but models and inner optimizers differ between
        rounds, so each rank saves its own. It fits a model cut into other fragments if saved when
        no round was under way.
        """
        outer: dict[str, Any] = {}
        for one in self._outer():
            outer |= one.state()
        state = {
            "steps_since_round": self._step,
            "rounds": self.rounds,
            "next": self._next,
            "steps": [one.steps for one in self._fragments],
            "outer": outer,
            "under_way": None,
        }
        if self._under_way:
            fragment = self._fragments[self._next]
            there = fragment.mean.wait()
            mean = fragment.by_name(fragment.mean.vector)
            state["under_way"] = {"active": there.active, "adding": there.adding, "mean": mean}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a state_dict(); local. The model and its optimizer are the caller's to load.

        Raises:
            UsageError: it is of another model, or of other fragments with a round under way.
        """
        same_cut = len(state["steps"]) == len(self._fragments)
        if state["under_way"] is not None and not same_cut:
            raise UsageError(
                f"DiLoCo: the state was saved with {len(state['steps'])} fragments and a round "
                f"under way, here are {len(self._fragments)} fragments; use the same number"
            )
        for index, one in enumerate(self._outer()):
            one.load(state["outer"])
            one.steps = int(state["steps"][index]) if same_cut else max(state["steps"])
        self.rounds = int(state["rounds"])
        self._step = int(state["steps_since_round"]) if same_cut else 0
        self._next = int(state["next"]) if same_cut else 0
        self._under_way = state["under_way"] is not None
        if self._under_way:
            fragment, saved = self._fragments[self._next], state["under_way"]
            vector = fragment.flat.empty()
            fragment.take(vector, saved["mean"])
            fragment.mean.restore(vector, Attendance(saved["active"], saved["adding"]))


class _Outer(Fragment):
    """A fragment's outer parameters, and the optimizer that steps them."""

    def __init__(
        self, named: Named, group: dist.ProcessGroup | None, wire: str | None, make: OuterOptimizer
    ) -> None:
        super().__init__(named, group, wire)
        self.values = self.flat.empty()
        self.flat.read(self.values)
        self.parameters = [nn.Parameter(view) for view in self.flat.views(self.values)]
        for parameter, gradient in zip(
            self.parameters, self.flat.views(self.mean.vector), strict=True
        ):
            parameter.grad = gradient
        self.optimizer = make(self.parameters)

    def fill(self) -> None:
        super().fill()
        torch.sub(self.values, self.mean.vector, out=self.mean.vector)

    def apply(self, keep: float) -> None:
        self.optimizer.step()
        self.flat.blend(self.values, keep)

    def settle(self) -> None:
        self.flat.write(self.values)

    def state(self) -> dict[str, Any]:
        """By parameter: its outer value, and what the optimizer keeps of it; copies."""
        values = self.by_name(self.values)
        return {
            name: {
                "value": values[name],
                "optimizer": {
                    key: one.clone() if isinstance(one, Tensor) else one
                    for key, one in self.optimizer.state[parameter].items()
                },
            }
            for name, parameter in zip(self.names, self.parameters, strict=True)
        }

    def load(self, saved: dict[str, Any]) -> None:
        """Takes its parameters' share of several fragments' `state`."""
        self.take(self.values, {name: one["value"] for name, one in saved.items()})
        for name, parameter in zip(self.names, self.parameters, strict=True):
            self.optimizer.state[parameter] = {
                key: one.clone() if isinstance(one, Tensor) else one
                for key, one in saved[name]["optimizer"].items()
            }


def cut(model: nn.Module, fragments: int | Sequence[nn.Module]) -> list[Named]:
    """The parameters that are trained, in parts: as many, or those of the modules; local.

    Raises:
        UsageError: there are fewer parameters than parts, or the modules do not have each once.
    """
    named = [pair for pair in model.named_parameters() if pair[1].requires_grad]
    if isinstance(fragments, int):
        return _runs(named, fragments)
    place = {id(p): index for index, module in enumerate(fragments) for p in module.parameters()}
    parts: list[list[tuple[str, nn.Parameter]]] = [[] for _ in fragments]
    for name, parameter in named:
        if id(parameter) not in place:
            raise UsageError(f"DiLoCo: {name} is in none of the {len(parts)} fragments given")
        parts[place[id(parameter)]].append((name, parameter))
    if not parts or not all(parts):
        raise UsageError("DiLoCo: a fragment has no parameter of the model that is trained")
    return list(parts)


def _runs(named: Named, count: int) -> list[Named]:
    """Consecutive parameters, in `count` runs of about the same number of elements."""
    if not 1 <= count <= len(named):
        raise UsageError(
            f"DiLoCo: got fragments={count} for {len(named)} parameters that are trained, expected "
            f"1 to {len(named)}"
        )
    total = sum(parameter.numel() for _, parameter in named)
    parts: list[list[tuple[str, nn.Parameter]]] = [[]]
    done = 0
    for index, pair in enumerate(named):
        left = len(named) - index
        full = done * count >= len(parts) * total
        if parts[-1] and len(parts) < count and (full or left <= count - len(parts)):
            parts.append([])
        parts[-1].append(pair)
        done += pair[1].numel()
    return list(parts)
