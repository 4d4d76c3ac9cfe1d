// SPDX-License-Identifier: MIT
// The docstrings of pycomm.Communicator's methods, which Python's help() shows: the signature, a
// line "--", the text. Kept apart from communicator.cc for length only.
#pragma once

namespace pycomm {

inline constexpr const char* kAllReduceDoc =
    R"(all_reduce($self, /, array, out=None, op='sum', async_op=False)
--

Combines the arrays of all ranks, element by element; collective, blocking.

Args:
    array: This rank's values; the same number of elements and dtype on all ranks.
    out: Where the result goes; None: into array. As many elements, any shape.
    op: "sum", "avg", "product", "min", "max", "band", "bor" or "bxor".
    async_op: Return a handle at once; array and out are in use until its wait() returns.

Returns:
    out, or array without it, with the same bits on all ranks; with async_op an ArrayWork.

Raises:
    UsageError: the call cannot work; nothing was sent.
    CommError: the group has failed: PeerFailure, Mismatch, Timeout or Aborted.
)";

inline constexpr const char* kBroadcastDoc =
    R"(broadcast($self, /, array, root=0, async_op=False)
--

Copies root's array into everybody's; collective, blocking.

Args:
    array: Read on root, written on the others; the same number of elements and dtype everywhere.
    root: The rank whose values all get.
    async_op: As in all_reduce.

Returns:
    array; with async_op an ArrayWork.

Raises:
    UsageError, CommError: as in all_reduce.
)";

inline constexpr const char* kReduceDoc =
    R"(reduce($self, /, array, out=None, op='sum', root=0, async_op=False)
--

Combines the arrays of all ranks on root; collective, blocking.

Args:
    array: This rank's values; only read, but on root without out.
    out: Where root's result goes; None: into its array. Only root may give it.
    op: As in all_reduce.
    root: The rank that gets the result.
    async_op: As in all_reduce.

Returns:
    On root the result, elsewhere None; with async_op an ArrayWork.

Raises:
    UsageError, CommError: as in all_reduce.
)";

inline constexpr const char* kAllGatherDoc =
    R"(all_gather($self, /, array, out, async_op=False)
--

Puts the arrays of all ranks one after the other, on every rank; collective, blocking.

Args:
    array: This rank's block; the same number of elements and dtype on all ranks. It may be this
        rank's block of out: out[rank].
    out: world_size times as many elements, any shape; block r comes from rank r.
    async_op: As in all_reduce.

Returns:
    out; with async_op an ArrayWork.

Raises:
    UsageError, CommError: as in all_reduce.
)";

inline constexpr const char* kGatherDoc =
    R"(gather($self, /, array, out=None, root=0, async_op=False)
--

Puts the arrays of all ranks one after the other, on root; collective, blocking.

Args:
    array: This rank's block, as in all_gather.
    out: On root world_size times as many elements, any shape; elsewhere None.
    root: The rank that gets the blocks.
    async_op: As in all_reduce.

Returns:
    On root out, elsewhere None; with async_op an ArrayWork.

Raises:
    UsageError, CommError: as in all_reduce.
)";

inline constexpr const char* kScatterDoc =
    R"(scatter($self, /, array, out, root=0, async_op=False)
--

Hands each rank its block of root's array; collective, blocking.

Args:
    array: On root world_size blocks, block r for rank r; elsewhere None.
    out: This rank's block; the same number of elements and dtype on all ranks.
    root: The rank that has the blocks.
    async_op: As in all_reduce.

Returns:
    out; with async_op an ArrayWork.

Raises:
    UsageError, CommError: as in all_reduce.
)";

inline constexpr const char* kReduceScatterDoc =
    R"(reduce_scatter($self, /, array, out, op='sum', async_op=False)
--

Combines the arrays of all ranks and hands each rank its block; collective, blocking.

Args:
    array: This rank's values, world_size blocks; block r of the result goes to rank r.
    out: This rank's block of the result; the same number of elements and dtype on all ranks.
    op: As in all_reduce.
    async_op: As in all_reduce.

Returns:
    out; with async_op an ArrayWork.

Raises:
    UsageError, CommError: as in all_reduce.
)";

inline constexpr const char* kAllToAllDoc =
    R"(all_to_all($self, /, array, out, async_op=False)
--

Sends block r of every rank's array to rank r; collective, blocking.

Args:
    array: world_size blocks of the same size.
    out: As many elements, any shape; block r comes from rank r. It may be array itself, at the
        price of a copy.
    async_op: As in all_reduce.

Returns:
    out; with async_op an ArrayWork.

Raises:
    UsageError, CommError: as in all_reduce.
)";

inline constexpr const char* kBarrierDoc = R"(barrier($self, /, async_op=False)
--

Returns when all ranks have called it; collective, blocking.

Raises:
    CommError: as in all_reduce.
)";

inline constexpr const char* kSendDoc = R"(send($self, /, array, peer, tag=0, async_op=False)
--

Sends an array to one rank; returns when it has left, which may be before peer calls recv.

Args:
    array: What to send.
    peer: The rank that receives it.
    tag: 0 or more; a recv with the same tag takes it.
    async_op: Return an ArrayWork at once; array is in use until its wait() returns.

Raises:
    UsageError, CommError: as in all_reduce.
)";

inline constexpr const char* kRecvDoc = R"(recv($self, /, array, peer=None, tag=0, async_op=False)
--

Receives an array from one rank; blocks until it is there.

Args:
    array: Where it goes; as many elements, of the dtype, as were sent.
    peer: The rank that sends; None: whoever sends first with this tag.
    tag: As in send.
    async_op: Return an ArrayWork at once; array is in use until its wait() returns.

Returns:
    The rank that sent; with async_op an ArrayWork, whose wait() returns it.

Raises:
    UsageError, CommError: as in all_reduce.
)";

inline constexpr const char* kCloseDoc =
    R"(close($self, /, reason='close() was called', drain=True)
--

Leaves the group; local. Ranks that still need this one are told why they wait in vain.

Args:
    reason: What they are told.
    drain: Grant operations under way a moment to finish. Later calls raise Aborted.
)";

}  // namespace pycomm
