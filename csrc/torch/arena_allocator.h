// SPDX-License-Identifier: MIT
// Tensors in the arena: a c10 allocator that asks the arena first and torch's own allocator where
// the arena has nothing.
//
// Backend::allocateTensor always uses it. install_arena() also puts it in the place of torch's
// allocator of CPU memory for everything of kArenaThresholdBytes and more, which brings DDP's
// buckets and everybody else's tensors there without their knowing. Memory is freed to where it
// came from, whichever allocator is installed by then, also at the end of the process. Any thread.
#pragma once

#include <ATen/core/Tensor.h>
#include <pybind11/pybind11.h>

#include <atomic>
#include <memory>

namespace pycomm {

// Allocates in the arena whatever the size.
std::shared_ptr<c10::Allocator> arena_allocator();
// An uninitialised tensor of `count` elements from it.
at::Tensor arena_tensor(int64_t count, const at::TensorOptions& options);
// Whether its memory came from there and still is.
bool in_arena(const at::Tensor& tensor);

// Counts its calls; the last uninstall puts back what the first install found, unless somebody has
// replaced it since. False when torch keeps another allocator, which was given a higher priority
// (c10::SetCPUAllocator): tensors stay in its memory then.
bool install_arena();
void uninstall_arena();

// The same for some threads and times only. Between these two, which count as well, a thread that
// follows a flag gets its large tensors from the arena while the flag is set; it follows the last
// one it was given.
void install_arena_for_followers();
void uninstall_arena_for_followers();
void follow_arena_flag(std::shared_ptr<const std::atomic<bool>> flag);

void bind_arena(pybind11::module_& m);

}  // namespace pycomm
