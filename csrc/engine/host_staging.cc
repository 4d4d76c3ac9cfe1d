// SPDX-License-Identifier: MIT
#include "engine/host_staging.h"

#include <algorithm>
#include <bit>
#include <thread>

#include "base/limits.h"
#include "engine/signature.h"
#include "kernels/reduce.h"
#include "transport/arena.h"

namespace pycomm {

// In the arena where there is one: peers of this host then read what was staged in place.
class StagingBlock {
 public:
  struct Words {
    alignas(kCacheLineBytes) uint64_t ready = 0;
    alignas(kCacheLineBytes) uint64_t done = 0;
    alignas(kCacheLineBytes) uint64_t consumed = 0;
  };
  static_assert(sizeof(Words) <= kPageBytes);

  StagingBlock(Device& device, size_t bytes) : device_(device), bytes_(bytes) {
    const size_t all = kPageBytes + bytes;
    arena_ = Arena::of_process().allocate(all);
    if (arena_ && reinterpret_cast<uintptr_t>(arena_) % kPageBytes) give_back_arena();
    if (arena_ && device.register_host(arena_, all, &memory_)) give_back_arena();
    if (!arena_) {
      if (Failure failure = device.allocate_pinned(all, &memory_)) throw CommError(failure);
    }
    new (memory_.host) Words;
  }
  ~StagingBlock() {
    if (!arena_) {
      (void)device_.release_pinned(memory_);
    } else if (!device_.unregister_host(memory_)) {
      give_back_arena();
    }
  }
  StagingBlock(const StagingBlock&) = delete;
  StagingBlock& operator=(const StagingBlock&) = delete;

  size_t bytes() const { return bytes_; }
  std::byte* data() const { return static_cast<std::byte*>(memory_.host) + kPageBytes; }
  Words& words() const { return *static_cast<Words*>(memory_.host); }
  // As streams know it.
  uint64_t* on_device(const uint64_t& word) const {
    const auto offset =
        reinterpret_cast<const std::byte*>(&word) - static_cast<const std::byte*>(memory_.host);
    return reinterpret_cast<uint64_t*>(static_cast<std::byte*>(memory_.device) + offset);
  }
  uint64_t uses = 0;

 private:
  void give_back_arena() { Arena::of_process().free(std::exchange(arena_, nullptr)); }

  Device& device_;
  const size_t bytes_;
  std::byte* arena_ = nullptr;
  HostAllocation memory_;
};

namespace {

bool reached(const uint64_t& word, uint64_t value) {
  const uint64_t now = std::atomic_ref(const_cast<uint64_t&>(word)).load(std::memory_order_acquire);
  return static_cast<int64_t>(now - value) >= 0;
}

size_t padded(size_t bytes) {
  return (bytes + kCacheLineBytes - 1) / kCacheLineBytes * kCacheLineBytes;
}

size_t staged_bytes(const DeviceOperation& wanted, size_t count_max) {
  size_t bytes = 0;
  for (const Region& region : wanted.work) {
    bytes += padded(std::min(region.count, count_max) * size_of(wanted.dtype));
  }
  return bytes;
}

// Alike on all ranks. Where ranks hold blocks the root, too, counts as everybody; the blocks of an
// all_to_all may all differ, so it goes in one piece, and so do messages.
size_t count_of_pieces(const DeviceOperation& wanted, int world_size) {
  if (is_message(wanted) || wanted.collective == Collective::all_to_all) return 1;
  size_t count = 0;
  for (const Region& region : wanted.work) count = std::max(count, region.count);
  size_t bytes = count * size_of(wanted.dtype);
  if (moves_blocks(wanted.collective)) bytes *= static_cast<size_t>(world_size) + 1;
  return std::max<size_t>(1, (bytes + kStagedPieceBytes - 1) / kStagedPieceBytes);
}

}  // namespace

bool StagingUse::over() const {
  const auto& words = block_->words();
  if (copies_back_) return reached(words.consumed, number_);
  return reached(words.ready, number_) && reached(words.done, number_);
}

HostStaging::~HostStaging() {
  const auto patience = Deadline::after(kStreamPatience);
  for (StagingUse& use : last_) {
    while (!use.over() && !patience.expired()) std::this_thread::sleep_for(kReadyNap);
    if (!use.over()) (void)new std::shared_ptr<StagingBlock>(use.block_);
  }
}

size_t HostStaging::bytes() const {
  size_t sum = 0;
  for (const StagingUse& use : last_) sum += kPageBytes + use.block_->bytes();
  return sum;
}

// Collectives take turns with two blocks, which the stream has done with when it comes to them
// again. Messages end in any order, so each has one for itself.
std::shared_ptr<StagingBlock> HostStaging::block_for(bool message, size_t bytes) {
  if (!message) {
    auto& block = turns_[turn_++ % 2];
    if (block && block->bytes() >= bytes) return block;
    block = std::make_shared<StagingBlock>(device_, std::bit_ceil(std::max(bytes, kPageBytes)));
    last_.push_back({block, 0, true});
    return block;
  }
  for (const StagingUse& use : last_) {
    const bool free = use.block_ != turns_[0] && use.block_ != turns_[1] && use.over();
    if (free && use.block_->bytes() >= bytes) return use.block_;
  }
  auto block = std::make_shared<StagingBlock>(device_, std::bit_ceil(std::max(bytes, kPageBytes)));
  last_.push_back({block, 0, true});
  return block;
}

HostStaging::Pieces HostStaging::prepare(const DeviceOperation& wanted) {
  const size_t pieces = count_of_pieces(wanted, world_size_);
  const bool message = is_message(wanted);
  const bool copies_back = wanted.collective != Collective::send;
  size_t count = 0;
  for (const Region& region : wanted.work) count = std::max(count, region.count);
  const size_t step = (count + pieces - 1) / pieces;
  const size_t size = size_of(wanted.dtype);
  Pieces made;
  for (size_t i = 0; i < pieces; ++i) {
    auto block = block_for(message, staged_bytes(wanted, pieces == 1 ? count : step));
    auto operation = std::make_shared<Operation>();
    operation->collective = wanted.collective;
    operation->op = wanted.op;
    operation->dtype = wanted.dtype;
    operation->root = wanted.root;
    operation->peer = wanted.peer;
    operation->wire = wanted.wire;
    operation->timeout = wanted.timeout;
    const uint64_t number = ++block->uses;
    if (wanted.collective != Collective::recv) {
      operation->ready_word = &block->words().ready;
      operation->ready_value = number;
    }
    operation->done_word = &block->words().done;
    operation->done_value = number;
    Piece piece{std::move(operation), {}, {block, number, copies_back}};
    std::vector<Region> scaled;
    std::byte* host = block->data();
    for (size_t r = 0; r < wanted.work.size(); ++r) {
      const Region& region = wanted.work[r];
      const size_t begin = std::min(region.count, i * step);
      const size_t length = std::min(region.count - begin, pieces == 1 ? region.count : step);
      piece.operation->work.push_back({host, length});
      const auto use = wanted.uses[r];
      if (length) piece.copies.push_back({region.data + begin * size, host, length * size, use});
      if (wanted.factor && use.reads) scaled.push_back({host, length});
      host += padded(length * size);
    }
    if (!scaled.empty()) {
      piece.operation->before = [scaled, dtype = wanted.dtype, factor = *wanted.factor] {
        for (const Region& one : scaled) scale(dtype, one.data, one.data, one.count, factor);
      };
    }
    const auto last = std::find_if(last_.begin(), last_.end(),
                                   [&](const StagingUse& one) { return one.block_ == block; });
    *last = piece.use;
    made.push_back(std::move(piece));
  }
  return made;
}

void HostStaging::abandon(const Pieces& pieces, size_t first) {
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto& use = pieces[i].use;
    auto& words = use.block_->words();
    std::atomic_ref(words.ready).store(use.number_);
    if (i >= first) std::atomic_ref(words.done).store(use.number_);
    std::atomic_ref(words.consumed).store(use.number_);
  }
}

Failure HostStaging::copy_in(const Piece& piece, void* stream) {
  if (piece.operation->collective == Collective::recv) return {};
  for (const Copy& one : piece.copies) {
    if (!one.use.reads) continue;
    if (Failure failure = device_.copy(stream, one.host, one.device, one.bytes)) return failure;
  }
  const StagingBlock& block = *piece.use.block_;
  return device_.write_value(stream, block.on_device(block.words().ready), piece.use.number_);
}

Failure HostStaging::copy_back(const Piece& piece, void* stream) {
  if (!piece.use.copies_back_) return {};
  const StagingBlock& block = *piece.use.block_;
  if (Failure failure =
          device_.wait_value(stream, block.on_device(block.words().done), piece.use.number_)) {
    return failure;
  }
  for (const Copy& one : piece.copies) {
    if (!one.use.writes) continue;
    if (Failure failure = device_.copy(stream, one.device, one.host, one.bytes)) return failure;
  }
  return device_.write_value(stream, block.on_device(block.words().consumed), piece.use.number_);
}

// Piece i + 1 is copied in while piece i is exchanged.
Failure HostStaging::enqueue(const Pieces& pieces, void* stream) {
  const DeviceScope scope(device_);
  for (size_t i = 0; i <= pieces.size(); ++i) {
    Failure failure;
    if (i < pieces.size()) failure = copy_in(pieces[i], stream);
    if (!failure && i > 0) failure = copy_back(pieces[i - 1], stream);
    if (failure) return failure;
  }
  return {};
}

}  // namespace pycomm
