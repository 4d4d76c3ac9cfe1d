// SPDX-License-Identifier: MIT
// Memory for tensors that collectives use again and again: what is freed is kept, touched pages and
// all, and given out again, since the first touch of a page costs more than a copy of it.
//
// FSDP2 takes its all_gather outputs from here each step (Backend::allocateTensor). One pool a
// process, never destroyed, because tensors may outlive everything else. Any thread; after a fork
// the child goes on with a private copy.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

namespace pycomm {

// CPU memory, aligned to a page. Keeps at most kPoolBytesMax of free blocks.
std::shared_ptr<c10::Allocator> tensor_pool();
// An uninitialised tensor of `count` elements from the pool.
at::Tensor pooled_tensor(int64_t count, const at::TensorOptions& options);

}  // namespace pycomm
