# SPDX-License-Identifier: MIT
"""The exchange of encoded gradient buckets: what DDP calls instead of its all-reduce.

The direct algorithm on encoded bytes. Each rank owns some slices of every parameter. It encodes the
others' slices for their owners (all_to_all), adds what it got for its own in rank order in float32,
divides by the world size, encodes the mean once and sends the same bytes to all (all_gather). The
owner decodes its own bytes too, so all ranks hold the same bits.
"""

# DDP refuses hooks whose annotations are text, so they are evaluated here.
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from pycomm.errors import UsageError
from pycomm.native import load

if TYPE_CHECKING:
    from pycomm._C import EncodedBucket

# Elements. Biases and the gains of norms are few bytes, and losses feel their errors most.
EXACT_BELOW = 1024


def hook(state: "Encoded", bucket: GradBucket) -> Future[Tensor]:
    """Reduces one gradient bucket to its mean over ranks; for DDP's register_comm_hook.

    Collective, not blocking. A bucket of float32 gradients travels encoded; any other dtype, and
    sparse gradients, are reduced as they are.

    Args:
        state: An Encoded or ErrorFeedback made for this model.
        bucket: The gradients: float32[n] on cpu.

    Returns:
        A Future of the bucket's tensor, which holds the mean. It fails with what the group failed
        with.

    Raises:
        UsageError: the gradients are on another device, or not those of the state's model.
    """
    return state.reduce(bucket)


@dataclass
class Memories:
    """Where the residuals of one bucket are read and written; see EncodedBucket."""

    memories: list[Tensor]
    read: list[int]
    write: list[int]


def _check_on_cpu(devices: set[torch.device]) -> None:
    for device in devices:
        if device.type != "cpu":
            raise UsageError(
                f"gradients are on {device}, expected cpu: pycomm.compression encodes CPU tensors; "
                "use pycomm.DataParallel(wire=...), Options(wire=...) or torch's bf16_compress_hook"
            )


class Exchange:
    """One bucket as DDP lays it out: its cut, and the buffers that its bytes need."""

    def __init__(self, cut: "EncodedBucket", rank: int, world_size: int) -> None:
        """Makes buffers, which are kept: new pages in every step are dear. Local."""
        self.cut = cut
        sizes = [cut.bytes_for(owner) for owner in range(world_size)]
        self.sent = [0 if owner == rank else sizes[owner] for owner in range(world_size)]
        self.received = [0 if source == rank else sizes[rank] for source in range(world_size)]
        self.out = torch.empty(sum(self.sent), dtype=torch.uint8)
        self.inbox = torch.empty(sum(self.received), dtype=torch.uint8)
        self.mean = torch.empty(sizes[rank], dtype=torch.uint8)
        self.means = [torch.empty(size, dtype=torch.uint8) for size in sizes]

    def begin(self, buffer: Tensor, kept: Memories, group: dist.ProcessGroup) -> dist.Work:
        """Encodes for the owners and sends. Collective, not blocking."""
        self.cut.encode(buffer, self.out, kept.memories, kept.read, kept.write)
        work = dist.all_to_all_single(
            self.inbox, self.out, self.received, self.sent, group=group, async_op=True
        )
        return cast(dist.Work, work)

    def finish(self, buffer: Tensor, kept: Memories, group: dist.ProcessGroup) -> None:
        """Reduces what this rank owns and fetches the rest. Collective, blocking."""
        self.cut.reduce(buffer, self.inbox, self.mean, kept.memories, kept.read, kept.write)
        dist.all_gather(self.means, self.mean, group=group)
        self.cut.decode(self.means, buffer)


class Encoded:
    """Sends gradients encoded, and forgets what that loses; `hook`'s state."""

    def __init__(
        self, wire: str, model: DistributedDataParallel, *, exact_below: int = EXACT_BELOW
    ) -> None:
        """Takes the model's parameters and group. Local.

        Args:
            wire: "int8" (blocks of 256 elements), "int4" (64), "bf16" or "fp16s".
            model: The DDP module that the hook is registered with.
            exact_below: Parameters of fewer elements travel as float32.

        Raises:
            UsageError: an argument is not one of these, or the model is not on cpu.
        """
        if not isinstance(model, DistributedDataParallel):
            raise UsageError(
                f"{type(self).__name__}: model is a {type(model).__name__}, expected a "
                "DistributedDataParallel; wrap the model first"
            )
        if exact_below < 0:
            raise UsageError(f"exact_below is {exact_below}, expected 0 or more elements")
        load().wire_bytes(wire, 0)  # refuses what is no format
        self.wire, self.exact_below = wire, exact_below
        self.process_group = model.process_group
        named = [pair for pair in model.module.named_parameters() if pair[1].requires_grad]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        _check_on_cpu({one.device for one in self.parameters})
        self._index = {id(one): index for index, one in enumerate(self.parameters)}
        self._exchanges: dict[int, tuple[Sequence[object], Exchange]] = {}

    @property
    def rank(self) -> int:
        """This rank in the model's group."""
        return dist.get_rank(self.process_group)

    @property
    def world_size(self) -> int:
        """How many ranks the model's group has."""
        return dist.get_world_size(self.process_group)

    def reduce(self, bucket: GradBucket) -> Future[Tensor]:
        """What `hook` does. Collective, not blocking."""
        buffer, group = bucket.buffer(), self.process_group
        _check_on_cpu({buffer.device})
        if buffer.dtype != torch.float32 or buffer.is_sparse:
            return allreduce_hook(group, bucket)
        if self.world_size == 1:
            alone: Future[Tensor] = Future()
            alone.set_result(buffer)
            return alone
        indices = self._indices_of(bucket)
        exchange = self._exchange_of(bucket, indices)
        kept = self._stage(indices)

        def finish(sent: Future[Any]) -> Tensor:
            try:
                sent.value()
                exchange.finish(buffer, kept, group)
            except BaseException:
                self._abort()
                raise
            return buffer

        try:
            sent = exchange.begin(buffer, kept, group).get_future()
            return cast(Future[Tensor], sent.then(finish))
        except BaseException:
            self._abort()
            raise

    def _indices_of(self, bucket: GradBucket) -> list[int]:
        """The bucket's parameters by their place in the model."""
        try:
            return [self._index[id(one)] for one in bucket.parameters()]
        except KeyError:
            raise UsageError(
                "a bucket holds a parameter that the hook's state does not know; make a new "
                f"{type(self).__name__} for this model after its parameters have changed"
            ) from None

    def _exchange_of(self, bucket: GradBucket, indices: Sequence[int]) -> Exchange:
        """The bucket's exchange; a new one when DDP has laid its buckets out again."""
        begin = bucket.buffer().storage_offset()
        parts = [
            (
                index,
                gradient.storage_offset() - begin,
                self._residual_offset(index),
                gradient.numel(),
            )
            for index, gradient in zip(indices, bucket.gradients(), strict=True)
        ]
        known = self._exchanges.get(bucket.index())
        if known is None or known[0] != parts:
            cut = load().EncodedBucket(
                self.wire, self.rank, self.world_size, parts, self.exact_below
            )
            known = parts, Exchange(cut, self.rank, self.world_size)
            self._exchanges[bucket.index()] = known
        return known[1]

    def _residual_offset(self, index: int) -> int:
        return 0

    def _stage(self, indices: Sequence[int]) -> Memories:
        return Memories([], [], [])

    def _abort(self) -> None:
        """An exchange has failed."""
