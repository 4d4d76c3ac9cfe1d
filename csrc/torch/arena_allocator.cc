// SPDX-License-Identifier: MIT
#include "torch/arena_allocator.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/CPUAllocator.h>
#include <pybind11/stl.h>

#include <map>
#include <mutex>
#include <string>

#include "base/error.h"
#include "base/limits.h"
#include "transport/arena.h"

namespace py = pybind11;

namespace pycomm {
namespace {

// The allocator that serves what the arena does not. Chosen once: memory from it may be freed at
// any time later.
c10::Allocator& ordinary() {
  static c10::Allocator* const chosen = [] {
    auto* const current = c10::GetCPUAllocator();
    return current->raw_deleter() ? current : c10::GetDefaultCPUAllocator();
  }();
  return *chosen;
}

// For either kind of memory: torch wants one deleter of an allocator.
void release(void* data) {
  Arena* const arena = Arena::owner_of(data);
  if (!arena) return ordinary().raw_deleter()(data);
  c10::profiledCPUMemoryReporter().Delete(data);
  arena->free(static_cast<std::byte*>(data));
}

std::shared_ptr<const std::atomic<bool>>& followed_flag() {
  thread_local std::shared_ptr<const std::atomic<bool>> flag;
  return flag;
}

bool wanted_here() {
  const auto& flag = followed_flag();
  return flag && flag->load(std::memory_order_relaxed);
}

class ArenaAllocator final : public c10::Allocator {
 public:
  ArenaAllocator(size_t bytes_min, bool always) : bytes_min_(bytes_min), always_(always) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (bytes >= bytes_min_ && (always_ || wanted_here())) {
      if (auto* const block = Arena::of_process().allocate(bytes)) {
        c10::profiledCPUMemoryReporter().New(block, bytes);
        return {block, block, &release, c10::Device(c10::DeviceType::CPU)};
      }
    }
    auto memory = ordinary().allocate(bytes);
    const bool simple = memory.compare_exchange_deleter(ordinary().raw_deleter(), &release);
    PYCOMM_ASSERT(simple, "the allocator of CPU memory does not keep to its raw_deleter()");
    return memory;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t count) const override {
    default_copy_data(to, from, count);
  }

 private:
  const size_t bytes_min_;
  const bool always_;
};

// Storages point to their allocator for life, so these are never destroyed.
ArenaAllocator& for_every_size() {
  static auto* const allocator = new ArenaAllocator(1, true);
  return *allocator;
}

ArenaAllocator& for_large_sizes() {
  static auto* const allocator = new ArenaAllocator(kArenaThresholdBytes, true);
  return *allocator;
}

ArenaAllocator& for_followers() {
  static auto* const allocator = new ArenaAllocator(kArenaThresholdBytes, false);
  return *allocator;
}

struct Installation {
  std::mutex mutex;
  int everybody = 0, followers = 0;  // how often it was asked for
  c10::Allocator* before = nullptr;  // while one of ours is in place
  c10::Allocator* ours = nullptr;

  static Installation& get() {
    static auto* const one = new Installation;
    return *one;
  }
  void count(int& which, int change) {
    const std::lock_guard lock(mutex);
    which += change;
    PYCOMM_ASSERT(which >= 0, "more ends than beginnings");
    ArenaAllocator* const wanted = everybody   ? &for_large_sizes()
                                   : followers ? &for_followers()
                                               : nullptr;
    if (wanted == ours) return;
    if (!ours) {
      ordinary();
      before = c10::GetCPUAllocator();
    }
    // One that somebody else has put in our place stays.
    if (!ours || c10::GetCPUAllocator() == ours) c10::SetCPUAllocator(wanted ? wanted : before);
    ours = wanted;
  }
};

std::map<std::string, uint64_t> arena_statistics() {
  const auto all = Arena::of_process().statistics();
  return {{"capacity_bytes", all.capacity_bytes},
          {"used_bytes", all.used_bytes},
          {"used_peak_bytes", all.used_peak_bytes},
          {"touched_bytes", all.touched_bytes},
          {"quarantined_bytes", all.quarantined_bytes},
          {"blocks", all.blocks},
          {"fallbacks", all.fallbacks}};
}

}  // namespace

std::shared_ptr<c10::Allocator> arena_allocator() {
  return {&for_every_size(), [](c10::Allocator*) {}};
}

at::Tensor arena_tensor(int64_t count, const at::TensorOptions& options) {
  PYCOMM_USAGE(count >= 0, "allocate_tensor: got ", count, " elements, expected 0 or more");
  return at::detail::empty_generic({count}, &for_every_size(),
                                   c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(options.dtype()), std::nullopt);
}

bool in_arena(const at::Tensor& tensor) {
  const auto& memory = tensor.storage().data_ptr();
  return memory.get_deleter() == &release && Arena::of_process().holds(memory.get(), 1);
}

bool install_arena() {
  auto& installation = Installation::get();
  installation.count(installation.everybody, 1);
  return c10::GetCPUAllocator() == &for_large_sizes();
}

void uninstall_arena() {
  auto& installation = Installation::get();
  installation.count(installation.everybody, -1);
}

void install_arena_for_followers() {
  auto& installation = Installation::get();
  installation.count(installation.followers, 1);
}

void uninstall_arena_for_followers() {
  auto& installation = Installation::get();
  installation.count(installation.followers, -1);
}

void follow_arena_flag(std::shared_ptr<const std::atomic<bool>> flag) {
  followed_flag() = std::move(flag);
}

void bind_arena(py::module_& m) {
  m.def("arena_install", &install_arena);
  m.def("arena_uninstall", &uninstall_arena);
  m.def("arena_statistics", &arena_statistics);
  m.def(
      "arena_holds",
      [](uintptr_t address, size_t bytes) {
        return Arena::of_process().holds(reinterpret_cast<const void*>(address), bytes);
      },
      py::arg("address"), py::arg("bytes"));
  m.def(
      "arena_trim", [] { return Arena::of_process().trim(); },
      py::call_guard<py::gil_scoped_release>());
}

}  // namespace pycomm
