// SPDX-License-Identifier: MIT
// From a PackTask to a launch of PackBody, the one code for GPU and host; see reduce_launch.h for
// what `launch` is. Pure but for what `launch` does; any thread.
#pragma once

#include <cmath>

#include "kernels/device_kernels.h"
#include "kernels/pack_body.h"

namespace pycomm {
namespace {

template <class From, class To, class Launch>
int launch_conversion(const PackTask& task, bool to_bucket, const Launch& launch, void* stream) {
  using Value = typename To::Value;
  const bool raw = std::is_same_v<From, To> && task.scale == 1 && !task.accumulate;
  PackBody<From, To> body{
      task.tiles,   task.tile_count,
      task.tensors, static_cast<char*>(task.bucket),
      task.flags,   {static_cast<Value>(task.scale), raw, task.accumulate, task.flags != nullptr},
      to_bucket};
  return launch(body, task.tile_count * body.kThreads, stream);
}

template <class From, class Launch>
int launch_from(DType to, const PackTask& task, bool to_bucket, const Launch& launch,
                void* stream) {
  if constexpr (std::is_same_v<From, Whole<double>>) {
    if (to != DType::float64) return kInvalidValue;
    return launch_conversion<From, From>(task, to_bucket, launch, stream);
  } else {
    switch (to) {
      case DType::float32:
        return launch_conversion<From, Whole<float>>(task, to_bucket, launch, stream);
      case DType::float16:
        return launch_conversion<From, HalfElement>(task, to_bucket, launch, stream);
      case DType::bfloat16:
        return launch_conversion<From, Bfloat16Element>(task, to_bucket, launch, stream);
      default:
        return kInvalidValue;
    }
  }
}

template <class Launch>
int launch_pack(const PackTask& task, bool to_bucket, const Launch& launch, void* stream) {
  if (!std::isfinite(task.scale)) return kInvalidValue;
  if (task.tile_count == 0) return kLaunched;
  const DType from = to_bucket ? task.tensor_dtype : task.bucket_dtype;
  const DType to = to_bucket ? task.bucket_dtype : task.tensor_dtype;
  switch (from) {
    case DType::float32:
      return launch_from<Whole<float>>(to, task, to_bucket, launch, stream);
    case DType::float16:
      return launch_from<HalfElement>(to, task, to_bucket, launch, stream);
    case DType::bfloat16:
      return launch_from<Bfloat16Element>(to, task, to_bucket, launch, stream);
    case DType::float64:
      return launch_from<Whole<double>>(to, task, to_bucket, launch, stream);
    default:
      return kInvalidValue;
  }
}

}  // namespace
}  // namespace pycomm
