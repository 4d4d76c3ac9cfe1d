// SPDX-License-Identifier: MIT
// What a kernel body may ask of where it runs: the contract between *_body.h and its two
// environments, DeviceEnv (cuda_env.h, a GPU's block) and HostEnv (host_env.h, a thread).
//
// A body is `template <class Env> void operator()(const Env&) const` of a struct that holds its
// arguments by value. It is run once for each block, and says what the block's threads do by
// env.each_thread([&](int thread) {...}): on a GPU the calling thread does its own share, on the
// host a loop does all. Between two each_thread() stands env.barrier(); what one hands to the next
// goes through memory, the block's env.shared<T>() for one, never through a thread's variables.
// Where 32 threads compute together, env.each_warp([&](size_t warp, size_t warps) {...}) runs for
// each of the whole grid's groups of 32, and env.each_lane([&](int lane) {...}) inside; PerLane<T>
// keeps a value of each lane, and max_over<N>() gives N neighbours their largest.
// env.block(), env.blocks(), env.threads() say how many there are. load16() and store16() need
// aligned addresses. Bodies are pure functions of memory and of that; any thread of a host may run
// one.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/small_floats.h"

#ifdef __CUDACC__
#define PYCOMM_UNROLL _Pragma("unroll")
#else
#define PYCOMM_UNROLL _Pragma("GCC unroll 8")
#endif

namespace pycomm {
namespace {

struct alignas(16) Bytes16 {
  uint32_t words[4];
};

// The codes of one 16-byte access.
template <class Code>
struct Lanes {
  Code lane[16 / sizeof(Code)];
};

// A thread's place in the whole grid, and the grid's size.
struct GridPlace {
  size_t first, step;
};
template <class Env>
PYCOMM_KERNEL_INLINE GridPlace place_in_grid(const Env& env, int thread) {
  const auto threads = static_cast<size_t>(env.threads());
  return {env.block() * threads + static_cast<size_t>(thread), env.blocks() * threads};
}

}  // namespace
}  // namespace pycomm
