// SPDX-License-Identifier: MIT
// From an AllReduceTask to a launch of OneShotBody or TwoShotBody, the one code for GPU and host;
// see reduce_launch.h for what `launch` is. launch.exactly(body, blocks, stream) runs so many
// blocks. Pure but for what `launch` does; any thread.
#pragma once

#include <algorithm>

#include "kernels/all_reduce_body.h"
#include "kernels/device_kernels.h"

namespace pycomm {
namespace {

// A block's threads move 8 KiB at a time; with less than two such rounds for each, another block is
// a longer wait for nothing. Of the tensor, so that all ranks launch as many.
constexpr size_t kBytesPerPeerBlock = 16 * 1024;
constexpr size_t peer_blocks(size_t bytes) {
  const size_t wanted = (bytes + kBytesPerPeerBlock - 1) / kBytesPerPeerBlock;
  return wanted < 1 ? 1 : wanted < kPeerBlocksMax ? wanted : kPeerBlocksMax;
}

inline bool is_possible(const PeerGroup& group) {
  if (group.world_size < 1 || group.world_size > kPeersMax) return false;
  if (group.rank < 0 || group.rank >= group.world_size) return false;
  return std::none_of(group.flags, group.flags + group.world_size,
                      [](const PeerFlags* flags) { return flags == nullptr; }) &&
         group.control != nullptr && group.timeout_ns != 0;
}

inline bool is_possible(const AllReduceTask& task) {
  const bool divides = task.op == ReduceOp::sum || task.op == ReduceOp::avg;
  return is_possible(task.group) && task.op != ReduceOp::premul_sum &&
         supports(task.op, task.dtype) && task.divisor >= 1 && (task.divisor == 1 || divides);
}

// Calls run.template operator()<Format>() for the types that GPUs exchange among themselves.
template <class Run>
int with_peer_format(DType dtype, const Run& run) {
  switch (dtype) {
    case DType::float32:
      return run.template operator()<Whole<float>>();
    case DType::float64:
      return run.template operator()<Whole<double>>();
    case DType::float16:
      return run.template operator()<HalfElement>();
    case DType::bfloat16:
      return run.template operator()<Bfloat16Element>();
    case DType::int32:
      return run.template operator()<Whole<int32_t>>();
    case DType::int64:
      return run.template operator()<Whole<int64_t>>();
    default:
      return kInvalidValue;
  }
}

// For all of them, until one returns an error.
template <class Run>
int for_each_peer_format(const Run& run) {
  for (int d = 0; d < kDTypeCount; ++d) {
    if (!travels_between_gpus(static_cast<DType>(d))) continue;
    if (const int error = with_peer_format(static_cast<DType>(d), run)) return error;
  }
  return kLaunched;
}

inline AllReduceArguments arguments_of(const AllReduceTask& task) {
  AllReduceArguments a{};
  a.group = task.group;
  a.input = static_cast<const char*>(task.input);
  a.output = static_cast<char*>(task.output);
  a.count = task.count;
  a.divisor = task.divisor;
  a.op = task.op;
  a.signature = task.signature;
  return a;
}

template <class Launch>
int launch_one_shot(const AllReduceTask& task, const Launch& launch, void* stream) {
  if (!is_possible(task) || task.count > one_shot_count(task.group, task.dtype)) {
    return kInvalidValue;
  }
  return with_peer_format(task.dtype, [&]<class Format>() {
    const size_t bytes = task.count * sizeof(typename Format::Code);
    return launch.exactly(OneShotBody<Format>{arguments_of(task)}, peer_blocks(bytes), stream);
  });
}

template <class Launch>
int launch_two_shot(const AllReduceTask& task, const Launch& launch, void* stream) {
  if (!is_possible(task)) return kInvalidValue;
  AllReduceArguments a = arguments_of(task);
  // Nothing is copied where the tensor is part of the buffer already.
  a.work = task.group.buffers[task.group.rank];
  const bool inside =
      a.input == a.output && a.input >= a.work && a.input < a.work + task.group.buffer_bytes;
  if (inside) a.work = a.output;
  const size_t before = static_cast<size_t>(a.work - task.group.buffers[task.group.rank]);
  const size_t bytes = task.count * size_of(task.dtype);
  if (before + bytes > task.group.buffer_bytes) return kInvalidValue;
  return with_peer_format(task.dtype, [&]<class Format>() {
    return launch.exactly(TwoShotBody<Format>{a}, peer_blocks(bytes), stream);
  });
}

}  // namespace
}  // namespace pycomm
