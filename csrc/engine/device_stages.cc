// SPDX-License-Identifier: MIT
#include "engine/device_stages.h"

#include <algorithm>

namespace pycomm {
namespace {

std::byte* at(const DeviceWork& work, int region, const DevicePiece& piece) {
  return work.regions[static_cast<size_t>(region)].data + piece.begin * size_of(work.dtype);
}

// Whether a slot holds a block for every rank.
bool puts_all_blocks(Collective collective) {
  return collective == Collective::reduce_scatter || collective == Collective::scatter;
}

}  // namespace

bool DeviceWork::led() const {
  return collective == Collective::all_reduce || collective == Collective::reduce ||
         collective == Collective::broadcast;
}

bool DeviceStages::serve(const Operation& wanted) {
  switch (wanted.collective) {
    case Collective::all_reduce:
    case Collective::reduce:
    case Collective::reduce_scatter:
      return wanted.op != ReduceOp::premul_sum && supports(wanted.op, wanted.dtype);
    case Collective::broadcast:
    case Collective::all_gather:
    case Collective::gather:
    case Collective::scatter:
      return true;
    default:
      return false;
  }
}

size_t DeviceStages::piece_count(const DeviceWork& work) const {
  size_t room = pool_.slot_bytes();
  if (puts_all_blocks(work.collective)) room /= static_cast<size_t>(world_size_);
  // Pieces begin where vector accesses do.
  return std::max<size_t>(room / kCacheLineBytes * kCacheLineBytes / size_of(work.dtype), 1);
}

Failure DeviceStages::copy(void* to, const void* from, size_t bytes, void* stream) const {
  if (to == from || bytes == 0) return {};
  return device_.copy(stream, to, from, bytes);
}

Failure DeviceStages::reduce(const DeviceWork& work, const std::vector<const void*>& sources,
                             void* target, void* copy, size_t count, void* stream) const {
  if (count == 0) return {};
  ReduceTask task;
  task.op = work.op;
  task.dtype = work.dtype;
  task.target = target;
  task.sources = sources.data();
  task.source_count = static_cast<int>(sources.size());
  task.count = count;
  task.divisor = work.op == ReduceOp::avg ? world_size_ : 1;
  task.copies = &copy;
  task.copy_count = copy ? 1 : 0;
  const int error = kernels_.reduce(task, stream);
  if (error == kLaunched) return {};
  return {FailureKind::system,
          str("the launch of a ", name_of(work.op), " of ", name_of(work.dtype), " on GPU ",
              device_.facts().index, " failed with CUDA error ", error),
          {}};
}

Failure DeviceStages::put(const DeviceWork& work, const DevicePiece& piece, void* stream) const {
  const size_t bytes = piece.count * size_of(work.dtype);
  std::byte* const slot = pool_.in(rank_, piece.slot);
  switch (work.collective) {
    case Collective::all_reduce:
    case Collective::reduce:
      return rank_ == work.leader ? Failure{} : copy(slot, at(work, 0, piece), bytes, stream);
    case Collective::all_gather:
      return copy(slot, at(work, world_size_, piece), bytes, stream);
    case Collective::gather:
      return rank_ == work.root ? Failure{}
                                : copy(slot, at(work, world_size_, piece), bytes, stream);
    case Collective::scatter:
      return rank_ == work.root ? put_blocks(work, piece, stream) : Failure{};
    case Collective::reduce_scatter:
      return put_blocks(work, piece, stream);
    default:
      return {};
  }
}

// A block for every other rank, one behind the other; in one copy where they lie so already.
Failure DeviceStages::put_blocks(const DeviceWork& work, const DevicePiece& piece,
                                 void* stream) const {
  const size_t bytes = piece.count * size_of(work.dtype);
  std::byte* const slot = pool_.in(rank_, piece.slot);
  bool together = true;
  for (int rank = 0; rank < world_size_; ++rank) {
    together &= at(work, rank, piece) == at(work, 0, piece) + static_cast<size_t>(rank) * bytes;
  }
  if (together) {
    return copy(slot, at(work, 0, piece), static_cast<size_t>(world_size_) * bytes, stream);
  }
  Failure failure;
  for (int rank = 0; rank < world_size_ && !failure; ++rank) {
    if (rank == rank_) continue;
    failure = copy(slot + static_cast<size_t>(rank) * bytes, at(work, rank, piece), bytes, stream);
  }
  return failure;
}

// The leader's part, when every rank has put.
Failure DeviceStages::lead(const DeviceWork& work, const DevicePiece& piece, void* stream) const {
  std::byte* const own = at(work, 0, piece);
  std::byte* const result = pool_.result(work.leader, piece.result_slot);
  if (work.collective == Collective::broadcast) {
    return copy(result, own, piece.count * size_of(work.dtype), stream);
  }
  std::vector<const void*> sources;
  for (int rank = 0; rank < world_size_; ++rank) {
    sources.push_back(rank == rank_ ? own : pool_.in(rank, piece.slot));
  }
  const bool all = work.collective == Collective::all_reduce;
  return reduce(work, sources, own, all ? result : nullptr, piece.count, stream);
}

Failure DeviceStages::take(const DeviceWork& work, const DevicePiece& piece, void* stream) const {
  const size_t bytes = piece.count * size_of(work.dtype);
  switch (work.collective) {
    case Collective::all_reduce:
    case Collective::broadcast:
      if (rank_ == work.leader) return {};
      return copy(at(work, 0, piece), pool_.result(work.leader, piece.result_slot), bytes, stream);
    case Collective::all_gather:
      return take_blocks(work, piece, stream);
    case Collective::gather:
      return rank_ == work.root ? take_blocks(work, piece, stream) : Failure{};
    case Collective::scatter: {
      const std::byte* const from =
          rank_ == work.root ? at(work, rank_, piece)
                             : pool_.in(work.root, piece.slot) + static_cast<size_t>(rank_) * bytes;
      return copy(at(work, world_size_, piece), from, bytes, stream);
    }
    case Collective::reduce_scatter:
      return take_sum(work, piece, stream);
    default:
      return {};
  }
}

Failure DeviceStages::take_blocks(const DeviceWork& work, const DevicePiece& piece,
                                  void* stream) const {
  const size_t bytes = piece.count * size_of(work.dtype);
  Failure failure;
  for (int rank = 0; rank < world_size_ && !failure; ++rank) {
    const std::byte* const from =
        rank == rank_ ? at(work, world_size_, piece) : pool_.in(rank, piece.slot);
    failure = copy(at(work, rank, piece), from, bytes, stream);
  }
  return failure;
}

// Every rank adds the block that is its own: no bytes beyond those that must move.
Failure DeviceStages::take_sum(const DeviceWork& work, const DevicePiece& piece,
                               void* stream) const {
  const size_t bytes = piece.count * size_of(work.dtype);
  std::vector<const void*> sources;
  for (int rank = 0; rank < world_size_; ++rank) {
    sources.push_back(rank == rank_
                          ? at(work, rank, piece)
                          : pool_.in(rank, piece.slot) + static_cast<size_t>(rank_) * bytes);
  }
  return reduce(work, sources, at(work, world_size_, piece), nullptr, piece.count, stream);
}

}  // namespace pycomm
