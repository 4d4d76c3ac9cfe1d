// SPDX-License-Identifier: MIT
// A kernel's block on a GPU, see device_env.h, and the one __global__ function that runs any body.
//
// Included by the .cu files of this folder only.
#pragma once

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/device_env.h"

namespace pycomm {
namespace {

class DeviceEnv {
 public:
  __device__ size_t block() const { return blockIdx.x; }
  __device__ size_t blocks() const { return gridDim.x; }
  __device__ int threads() const { return static_cast<int>(blockDim.x); }
  template <class Share>
  __device__ void each_thread(const Share& share) const {
    share(static_cast<int>(threadIdx.x));
  }
  __device__ void barrier() const { __syncthreads(); }

  template <class Work>
  __device__ void each_warp(const Work& work) const {
    const size_t warps = blockDim.x / 32;
    work(block() * warps + threadIdx.x / 32, blocks() * warps);
  }
  template <class Share>
  __device__ void each_lane(const Share& share) const {
    share(static_cast<int>(threadIdx.x % 32));
  }
  template <class T>
  struct PerLane {
    T value;
    __device__ T& operator[](int) { return value; }
  };
  template <int kLanes>
  __device__ void max_over(PerLane<uint32_t>& values) const {
    if constexpr (kLanes == 32) {
      values.value = __reduce_max_sync(~0u, values.value);
    } else {
      for (int step = kLanes / 2; step > 0; step /= 2) {
        values.value = max(values.value, __shfl_xor_sync(~0u, values.value, step));
      }
    }
  }

  // Everything bodies work on is global memory, also where its address was itself read from memory.
  __device__ Bytes16 load16(const char* from) const {
    __builtin_assume(__isGlobal(from));
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    return {{v.x, v.y, v.z, v.w}};
  }
  __device__ void store16(char* to, Bytes16 b) const {
    __builtin_assume(__isGlobal(to));
    *reinterpret_cast<uint4*>(to) = make_uint4(b.words[0], b.words[1], b.words[2], b.words[3]);
  }
  template <class T>
  __device__ T load(const char* from) const {
    __builtin_assume(__isGlobal(from));
    return *reinterpret_cast<const T*>(from);
  }
  template <class T>
  __device__ void store(char* to, T value) const {
    __builtin_assume(__isGlobal(to));
    *reinterpret_cast<T*>(to) = value;
  }
  // Of the block; called once, by all its threads.
  template <class T>
  __device__ T& shared() const {
    __shared__ T memory;
    return memory;
  }

  // Flags lie in this GPU's memory, a peer's, or the host's: hence the scope of the whole system.
  __device__ uint64_t load_acquire(const uint64_t* from) const {
    uint64_t value;
    asm volatile("ld.acquire.sys.global.u64 %0, [%1];" : "=l"(value) : "l"(from) : "memory");
    return value;
  }
  __device__ void store_release(uint64_t* to, uint64_t value) const {
    asm volatile("st.release.sys.global.u64 [%0], %1;" ::"l"(to), "l"(value) : "memory");
  }
  // Words that only blocks of this grid share.
  __device__ uint32_t load_relaxed(const uint32_t* from) const {
    uint32_t value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(from) : "memory");
    return value;
  }
  __device__ void store_relaxed(uint32_t* to, uint32_t value) const {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(value) : "memory");
  }
  __device__ uint32_t fetch_add(uint32_t* to, uint32_t value) const {
    uint32_t before;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;"
                 : "=r"(before)
                 : "l"(to), "r"(value)
                 : "memory");
    return before;
  }
  __device__ void replace_zero(uint64_t* to, uint64_t value) const {
    atomicCAS_system(reinterpret_cast<unsigned long long*>(to), 0ull, value);
  }
  __device__ uint64_t now_ns() const {
    uint64_t ns;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(ns));
    return ns;
  }
  __device__ void pause() const {}

  __device__ void raise(uint32_t* flags, uint32_t bits) const { atomicOr_system(flags, bits); }
  // One instruction instead of a dozen; equal to the portable ones but for NaN, which is handled
  // apart.
  __device__ float widen_half(uint16_t code) const { return __half2float(__ushort_as_half(code)); }
  __device__ uint16_t narrow_half(float value) const {
    return __half_as_ushort(__float2half_rn(value));
  }
};

template <class Body>
__global__ void __launch_bounds__(Body::kThreads, Body::kBlocksPerProcessor)
    run_body(const __grid_constant__ Body body) {
  body(DeviceEnv{});
}

// Makes the driver load the kernel now, on the current device.
template <class Body>
int load() {
  cudaFuncAttributes attributes{};  // to ask for them is to load it
  const cudaError_t error =
      cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(run_body<Body>));
  if (error != cudaSuccess) cudaGetLastError();  // must not be the next call's error
  return error;
}

// Enough blocks for the work, at most enough to fill the device.
struct CudaLaunch {
  template <class Body>
  int exactly(const Body& body, size_t blocks, void* stream) const {
    // Its own result: the error that the runtime keeps may be somebody else's.
    void* arguments[] = {const_cast<Body*>(&body)};
    const cudaError_t error = cudaLaunchKernel(
        reinterpret_cast<const void*>(run_body<Body>), dim3(static_cast<unsigned>(blocks)),
        dim3(Body::kThreads), arguments, 0, static_cast<cudaStream_t>(stream));
    if (error != cudaSuccess) cudaGetLastError();  // must not be the next call's error
    return error;
  }
  template <class Body>
  int operator()(const Body& body, size_t items, void* stream) const {
    int device = 0, processors = 1;
    if (cudaGetDevice(&device) == cudaSuccess) {
      cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
    }
    const size_t wanted = (std::max(items, size_t{1}) + Body::kThreads - 1) / Body::kThreads;
    const size_t room = size_t{Body::kBlocksPerProcessor} * static_cast<size_t>(processors);
    return exactly(body, std::min(wanted, room), stream);
  }
};

}  // namespace
}  // namespace pycomm
