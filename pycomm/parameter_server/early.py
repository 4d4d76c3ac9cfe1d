# SPDX-License-Identifier: MIT
"""Sends each server its gradients while backward still computes the others'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from pycomm.errors import UsageError
from pycomm.parameter_server.link import Link


class EarlyPush:
    """One backward. A server's gradients leave when the last of them is there."""

    def __init__(self, links: Sequence[Link], named: Mapping[str, nn.Parameter]) -> None:
        """Local."""
        self.bytes_sent = 0
        self._named = named
        self._links = list(links)
        self._awaited = [set(link.names) for link in links]
        self._pushed: set[int] = set()

    def run(self, loss: Tensor) -> None:
        """Runs backward; blocks while it computes, not while anything is sent.

        Raises:
            UsageError: a gradient came in several parts, as from reentrant checkpoints.
            CommError: a server died.
        """
        hooks: list[RemovableHandle] = []
        for name, parameter in self._named.items():
            register: Callable[..., RemovableHandle] = parameter.register_post_accumulate_grad_hook
            hooks.append(register(lambda _, name=name: self._arrived(name)))
        try:
            torch.autograd.backward(loss)
        finally:
            for hook in hooks:
                hook.remove()
        for index in range(len(self._links)):  # whose parameters were not all used
            self._push(index)

    def _arrived(self, name: str) -> None:
        for index, awaited in enumerate(self._awaited):
            if name in awaited:
                awaited.discard(name)
                if not awaited:
                    self._push(index)
            elif name in self._links[index].names:
                raise UsageError(
                    f"step(loss): the gradient of {name} came in several parts, one of them after "
                    "the others had been sent; call loss.backward() and then step()"
                )

    def _push(self, index: int) -> None:
        if index not in self._pushed:
            self._pushed.add(index)
            gradients = {name: parameter.grad for name, parameter in self._named.items()}
            self.bytes_sent += self._links[index].push(gradients)
