// SPDX-License-Identifier: MIT
// Gives every rank the tensors of one: small ones of any dtype in one message, large ones as they
// are. Collective, blocking, but on a device on the current stream only; without the GIL. Tensors
// are dense, on cpu and on one device, alike on all ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

namespace pycomm {

void broadcast_tensors(const c10::intrusive_ptr<c10d::Backend>& backend,
                       const std::vector<at::Tensor>& tensors, int root);

}  // namespace pycomm
