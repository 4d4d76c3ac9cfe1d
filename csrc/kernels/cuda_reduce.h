// SPDX-License-Identifier: MIT
// k-way reduction on a CUDA device, and the two questions asked before one is used.
//
// No CUDA header is needed to include this: streams are void*, errors are cudaError_t as int, 0 is
// success. The same contract as reduce() in reduce.h and the same bits, for the dtypes and
// operations of cuda_reduce_supports() and at most kCudaSourcesMax sources. The library loads and
// answers without a driver. Callable from any thread; keeps no memory.
#pragma once

#include "kernels/reduce.h"

namespace pycomm {

inline constexpr int kCudaSourcesMax = 8;

// float32, float64, float16, bfloat16, int32, int64, uint8; sum, avg, product, min, max.
bool cuda_reduce_supports(ReduceOp op, DType dtype);

// Launches on `stream` (a cudaStream_t) of the current device and returns at once. target and
// sources are addresses the device can reach; the array `sources` itself is host memory, read
// before the return. cudaErrorInvalidValue (1) for what is not supported.
int cuda_reduce(const ReduceTask& task, void* stream);

// The same kernel body run by the CPU over host memory, as `threads` threads one after the other.
int cuda_reduce_on_host(const ReduceTask& task, int threads);

const char* cuda_error_text(int error);

// 0 and the reason in *error when there is no usable device: 35 means no driver, or one too old.
int cuda_device_count(int* error);

}  // namespace pycomm
