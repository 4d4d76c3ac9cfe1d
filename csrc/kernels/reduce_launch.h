// SPDX-License-Identifier: MIT
// From a ReduceTask to launches of ReduceBody: checks, the passes, the size of the grid. The one
// code for GPU and host; `launch(body, items, stream)` runs a body over enough blocks for `items`
// threads' worth of work and returns an error code.
//
// Included by cuda_reduce.cu and host_kernels.cc. Pure but for what `launch` does; any thread.
#pragma once

#include <algorithm>

#include "kernels/device_kernels.h"
#include "kernels/reduce_body.h"

namespace pycomm {
namespace {

static_assert(kSourcesMax == kDeviceSourcesMax && kTargetsMax == kDeviceTargetsMax);

inline bool is_possible(const ReduceTask& task) {
  const bool divides = task.op == ReduceOp::sum || task.op == ReduceOp::avg;
  return task.op != ReduceOp::premul_sum && supports(task.op, task.dtype) &&
         task.source_count >= 1 && task.source_count <= kSourcesMax && task.copy_count >= 0 &&
         task.divisor >= 1 && (task.divisor == 1 || divides);
}

template <class Format, class Launch>
int launch_pass(const ReduceArguments& given, const Launch& launch, void* stream) {
  ReduceBody<Format> body{given};
  split_for_vectors(body.arguments, sizeof(typename Format::Code));
  const auto& a = body.arguments;
  return launch(body, std::max(a.vectors, a.head + a.tail), stream);
}

// What does not fit the first pass is copied from the first target in further ones.
template <class Launch>
int launch_reduce(const ReduceTask& task, const Launch& launch, void* stream) {
  if (!is_possible(task)) return kInvalidValue;
  if (task.count == 0) return kLaunched;
  ReduceArguments a{};
  a.op = task.op;
  a.divisor = task.divisor;
  a.count = is_complex(task.dtype) && task.op != ReduceOp::product ? 2 * task.count : task.count;
  a.source_count = task.source_count;
  for (int s = 0; s < task.source_count; ++s) {
    a.sources[s] = static_cast<const char*>(task.sources[s]);
  }
  a.targets[0] = static_cast<char*>(task.target);
  for (int done = 0, first = 1;; first = 0) {
    a.target_count = first + std::min(task.copy_count - done, kTargetsMax - first);
    for (int t = first; t < a.target_count; ++t) {
      a.targets[t] = static_cast<char*>(task.copies[done++]);
    }
    const int error = with_format(task.op, task.dtype, [&]<class Format>() {
      return launch_pass<Format>(a, launch, stream);
    });
    if (error != kLaunched || done == task.copy_count) return error;
    a.sources[0] = static_cast<const char*>(task.target);
    a.source_count = a.divisor = 1;
  }
}

}  // namespace
}  // namespace pycomm
