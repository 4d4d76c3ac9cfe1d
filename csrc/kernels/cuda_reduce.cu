// SPDX-License-Identifier: MIT
// The device instantiation of reduce_body.h, and its launcher.
// Flags (CMakeFlags.cmake): -std=c++20 -fmad=false -Xcompiler -fPIC,-ffp-contract=off, SASS for
// sm_80 and sm_90 and PTX for later ones; linked with cudart_static, so it loads without a driver.
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>

#include "kernels/cuda_reduce.h"
#include "kernels/reduce_body.h"

namespace pycomm {
namespace {

constexpr int kBlockThreads = 256;
constexpr int kBlocksPerProcessor =
    4;  // what fits: eight 16-byte vectors in flight take 64 registers

struct DeviceEnv {
  __device__ size_t thread() const { return size_t{blockIdx.x} * blockDim.x + threadIdx.x; }
  __device__ size_t threads() const { return size_t{gridDim.x} * blockDim.x; }
  __device__ Bytes16 load16(const char* from) const {
    const uint4 v = *reinterpret_cast<const uint4*>(from);
    return {{v.x, v.y, v.z, v.w}};
  }
  __device__ void store16(char* to, Bytes16 b) const {
    *reinterpret_cast<uint4*>(to) = make_uint4(b.words[0], b.words[1], b.words[2], b.words[3]);
  }
  template <class T>
  __device__ T load(const char* from) const {
    return *reinterpret_cast<const T*>(from);
  }
  template <class T>
  __device__ void store(char* to, T value) const {
    *reinterpret_cast<T*>(to) = value;
  }
  // One instruction instead of a dozen; equal to the portable ones but for NaN, which is handled
  // apart.
  __device__ float widen_half(uint16_t code) const { return __half2float(__ushort_as_half(code)); }
  __device__ uint16_t narrow_half(float value) const {
    return __half_as_ushort(__float2half_rn(value));
  }
};

template <class Format, class Op, class Finish>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerProcessor)
    reduce_kernel(const __grid_constant__ ReduceArguments arguments, Finish finish) {
  reduce_body<Format, Op>(DeviceEnv{}, arguments, finish);
}

// Enough blocks for the work, at most enough to fill the device.
unsigned block_count(const ReduceArguments& a) {
  int device = 0, processors = 1;
  if (cudaGetDevice(&device) == cudaSuccess) {
    cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  }
  const size_t items = std::max({a.vectors, a.head + a.tail, size_t{1}});
  const size_t wanted = (items + kBlockThreads - 1) / kBlockThreads;
  return static_cast<unsigned>(std::min(wanted, size_t{kBlocksPerProcessor} * processors));
}

}  // namespace

int cuda_reduce(const ReduceTask& task, void* stream) {
  if (task.count == 0) return cudaSuccess;
  return choose_kernel(task, cudaErrorInvalidValue, [&]<class Format, class Op>(auto finish) {
    const auto arguments = split_for_vectors(task, sizeof(typename Format::Code));
    reduce_kernel<Format, Op>
        <<<block_count(arguments), kBlockThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments,
                                                                                          finish);
    return static_cast<int>(cudaGetLastError());
  });
}

const char* cuda_error_text(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}

int cuda_device_count(int* error) {
  int count = 0;
  *error = cudaGetDeviceCount(&count);
  if (*error == cudaSuccess) return count;
  cudaGetLastError();  // a failed question must not be the next launch's error
  return 0;
}

}  // namespace pycomm
