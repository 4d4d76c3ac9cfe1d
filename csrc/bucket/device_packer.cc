// SPDX-License-Identifier: MIT
#include "bucket/device_packer.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <thread>

#include "base/deadline.h"
#include "base/limits.h"

namespace pycomm {
namespace {

uint64_t& word_of(const HostAllocation& memory) { return *static_cast<uint64_t*>(memory.host); }

}  // namespace

DevicePacker::DevicePacker(Device& device, const DeviceKernels& kernels,
                           std::span<const size_t> begins, std::span<const size_t> counts)
    : device_(device),
      kernels_(kernels),
      tiles_(pack_tiles(begins, counts)),
      tensors_(counts.size()) {}

DevicePacker::~DevicePacker() {
  const auto patience = Deadline::after(kStreamPatience);
  for (const Staged& one : staged_) {
    while (!one.sent() && !patience.expired()) std::this_thread::sleep_for(kReadyNap);
    if (one.sent()) (void)device_.release_pinned(one.memory);
  }
}

bool DevicePacker::Staged::sent() const {
  return std::atomic_ref(word_of(memory)).load(std::memory_order_acquire) >= uses;
}

size_t DevicePacker::pinned_bytes() const {
  size_t sum = 0;
  for (const Staged& one : staged_) sum += one.memory.bytes;
  return sum;
}

// More where the stream has not come to the earlier uploads yet, as the host never waits for it.
Failure DevicePacker::free_staged(Staged** out) {
  auto free =
      std::find_if(staged_.begin(), staged_.end(), [](const Staged& one) { return one.sent(); });
  if (free == staged_.end()) {
    Staged made;
    const size_t bytes = kCacheLineBytes + table_bytes();
    if (Failure failure = device_.allocate_pinned(bytes, &made.memory)) return failure;
    new (made.memory.host) uint64_t(0);
    free = staged_.insert(staged_.end(), made);
  }
  *out = &*free;
  return {};
}

// The tiles go with the first addresses.
Failure DevicePacker::upload(std::span<void* const> tensors, void* stream) {
  Staged* staged = nullptr;
  if (Failure failure = free_staged(&staged)) return failure;
  std::byte* const data = static_cast<std::byte*>(staged->memory.host) + kCacheLineBytes;
  const size_t begin = addresses_.empty() ? 0 : tiles_bytes();
  if (begin == 0 && !tiles_.empty()) std::memcpy(data, tiles_.data(), tiles_bytes());
  std::memcpy(data + tiles_bytes(), tensors.data(), tensors.size_bytes());
  addresses_.clear();  // until the copy is on the stream
  if (Failure failure = device_.copy(stream, table_ + begin, data + begin, table_bytes() - begin)) {
    return failure;
  }
  ++staged->uses;
  addresses_.assign(tensors.begin(), tensors.end());
  ++uploads_;
  return device_.write_value(stream, static_cast<uint64_t*>(staged->memory.device), staged->uses);
}

Failure DevicePacker::launch(bool to_bucket, const Sides& sides, std::span<void* const> tensors,
                             void* stream) {
  PYCOMM_ASSERT(tensors.size() == tensors_ && table_, tensors.size(), " of ", tensors_);
  if (tiles_.empty()) return {};
  if (!std::equal(tensors.begin(), tensors.end(), addresses_.begin(), addresses_.end())) {
    if (Failure failure = upload(tensors, stream)) return failure;
  }
  PackTask task;
  task.tiles = reinterpret_cast<const PackTile*>(table_);
  task.tile_count = tiles_.size();
  task.tensors = reinterpret_cast<void* const*>(table_ + tiles_bytes());
  task.tensor_dtype = sides.tensors;
  task.bucket = sides.bucket;
  task.bucket_dtype = sides.in_bucket;
  task.scale = sides.scale;
  const int error = to_bucket ? kernels_.pack(task, stream) : kernels_.unpack(task, stream);
  if (error == kLaunched) return {};
  return {FailureKind::system,
          str("the launch that ", to_bucket ? "packs" : "unpacks", " a bucket of ",
              name_of(sides.in_bucket), " on GPU ", device_.facts().index,
              " failed with CUDA error ", error),
          {}};
}

Failure DevicePacker::pack(const Sides& sides, std::span<void* const> tensors, void* stream) {
  return launch(true, sides, tensors, stream);
}

Failure DevicePacker::unpack(const Sides& sides, std::span<void* const> tensors, void* stream) {
  return launch(false, sides, tensors, stream);
}

}  // namespace pycomm
