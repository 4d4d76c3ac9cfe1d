// SPDX-License-Identifier: MIT
// From an EncodeTask or SumEncodedTask to a launch, the one code for GPU and host; see
// reduce_launch.h for what `launch` is. Pure but for what `launch` does; any thread.
#pragma once

#include <cmath>

#include "kernels/codec_body.h"
#include "kernels/device_kernels.h"

namespace pycomm {
namespace {

template <class Run>
int with_wire(Wire wire, const Run& run) {
  switch (wire) {
    case Wire::bf16:
      return run.template operator()<Bf16Unit>();
    case Wire::fp16s:
      return run.template operator()<Fp16sUnit>();
    case Wire::int8:
      return run.template operator()<Int8Unit>();
    case Wire::int4:
      return run.template operator()<Int4Unit>();
    case Wire::fp32:
      break;
  }
  return kInvalidValue;
}

constexpr size_t lanes_for(size_t count) {
  return (count + kUnitElements - 1) / kUnitElements * kUnitLanes;
}

template <class Launch>
int launch_encode(const EncodeTask& task, const Launch& launch, void* stream) {
  if (!std::isfinite(task.scale)) return kInvalidValue;
  return with_wire(task.wire, [&]<class Format>() {
    if (task.count == 0) return kLaunched;
    const EncodeBody<Format> body{task.in, static_cast<char*>(task.out), task.count, task.scale,
                                  task.decoded};
    return launch(body, lanes_for(task.count), stream);
  });
}

template <class Launch>
int launch_sum_encoded(const SumEncodedTask& task, const Launch& launch, void* stream) {
  if (task.source_count < 1 || task.source_count > kCodecSourcesMax || task.divisor < 1 ||
      !std::isfinite(task.factor) || (task.factor != 1 && task.divisor != 1)) {
    return kInvalidValue;
  }
  return with_wire(task.wire, [&]<class Format>() {
    if (task.count == 0) return kLaunched;
    SumEncodedBody<Format> body{};
    for (int s = 0; s < task.source_count; ++s) {
      body.encoded[s] = static_cast<const char*>(task.encoded[s]);
      body.plain[s] = task.plain ? task.plain[s] : nullptr;
    }
    body.target = task.target;
    body.source_count = task.source_count;
    body.count = task.count;
    body.factor = is_power_of_two(task.divisor) ? task.factor / static_cast<float>(task.divisor)
                                                : task.factor;
    body.divisor = is_power_of_two(task.divisor) ? 1.0f : static_cast<float>(task.divisor);
    return launch(body, lanes_for(task.count), stream);
  });
}

}  // namespace
}  // namespace pycomm
