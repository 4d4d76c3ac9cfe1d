// SPDX-License-Identifier: MIT
// Where a fold ends: the one place that knows which recv_reduce steps belong together.
// Pure; any thread.
#pragma once

#include <cstddef>
#include <vector>

#include "plan/plan.h"

namespace pycomm {

// The index behind the maximal run of recv_reduce steps into one chunk that starts at `first`.
// Every other step is a run of itself.
inline size_t fold_end(const std::vector<Step>& steps, size_t first) {
  size_t end = first + 1;
  if (steps[first].op != Opcode::recv_reduce) return end;
  while (end < steps.size() && steps[end].op == Opcode::recv_reduce &&
         steps[end].chunk == steps[first].chunk) {
    ++end;
  }
  return end;
}

}  // namespace pycomm
