// SPDX-License-Identifier: MIT
#include "torch/tensor_pool.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <sys/mman.h>

#include <bit>
#include <cstring>
#include <map>
#include <mutex>

#include "base/error.h"
#include "base/limits.h"

namespace pycomm {
namespace {

// Eight sizes between two powers of two: at most an eighth is wasted, and similar sizes share.
size_t size_class(size_t bytes) {
  const size_t step = std::max(kPageBytes, std::bit_floor(bytes) / 8);
  return (bytes + step - 1) / step * step;
}

// In front of each block: its class. A page, so that the block itself is aligned to one.
struct Header {
  size_t block_bytes;
};

class TensorPool final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t bytes) override {
    const c10::Device cpu(c10::DeviceType::CPU);
    if (bytes == 0) return {nullptr, nullptr, &give_back, cpu};
    void* const block = take(size_class(bytes));
    return {block, block, &give_back, cpu};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t count) const override {
    std::memcpy(to, from, count);
  }

  static TensorPool& get() {
    static TensorPool* const pool = new TensorPool;
    return *pool;
  }

 private:
  void* take(size_t bytes) {
    // A thread that forked elsewhere may hold the lock for ever in the child: never wait for it.
    if (const std::unique_lock lock(mutex_, std::try_to_lock); lock) {
      const auto found = free_.find(bytes);
      if (found != free_.end()) {
        void* const block = found->second;
        free_.erase(found);
        free_bytes_ -= bytes;
        return block;
      }
    }
    void* const memory = mmap(nullptr, kPageBytes + bytes, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw_system(str("mmap of ", bytes, " bytes for a tensor"));
    static_cast<Header*>(memory)->block_bytes = bytes;
    return static_cast<std::byte*>(memory) + kPageBytes;
  }

  static void give_back(void* block) {
    if (!block) return;
    void* const memory = static_cast<std::byte*>(block) - kPageBytes;
    const size_t bytes = static_cast<Header*>(memory)->block_bytes;
    auto& pool = get();
    if (const std::unique_lock lock(pool.mutex_, std::try_to_lock); lock) {
      if (pool.free_bytes_ + bytes <= kPoolBytesMax) {
        pool.free_.emplace(bytes, block);
        pool.free_bytes_ += bytes;
        return;
      }
    }
    munmap(memory, kPageBytes + bytes);
  }

  std::mutex mutex_;
  std::multimap<size_t, void*> free_;
  size_t free_bytes_ = 0;
};

}  // namespace

std::shared_ptr<c10::Allocator> tensor_pool() {
  return {&TensorPool::get(), [](c10::Allocator*) {}};
}

at::Tensor pooled_tensor(int64_t count, const at::TensorOptions& options) {
  PYCOMM_USAGE(count >= 0, "allocate_tensor: got ", count, " elements, expected 0 or more");
  return at::detail::empty_generic({count}, &TensorPool::get(),
                                   c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(options.dtype()), std::nullopt);
}

}  // namespace pycomm
