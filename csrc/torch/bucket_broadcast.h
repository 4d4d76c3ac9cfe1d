// SPDX-License-Identifier: MIT
// Gives every rank the tensors of one: small ones of any dtype in one message, large ones as they
// are. Collective, blocking; without the GIL. Tensors are dense and on cpu, alike on all ranks.
#pragma once

#include <ATen/core/Tensor.h>

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <vector>

namespace pycomm {

void broadcast_tensors(const c10::intrusive_ptr<c10d::Backend>& backend,
                       const std::vector<at::Tensor>& tensors, int root);

}  // namespace pycomm
