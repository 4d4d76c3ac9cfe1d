// SPDX-License-Identifier: MIT
// The table of kernels for GPUs, and what is asked before one is used. Linked with cudart_static,
// so it loads without a driver.
#include <cuda_runtime.h>

#include "kernels/cuda_launch.h"

namespace pycomm {
namespace {

class CudaKernels final : public DeviceKernels {
 public:
  int reduce(const ReduceTask& task, void* stream) const override {
    return cuda::reduce(task, stream);
  }
  int load_reduce() const override { return cuda::load_reduce(); }
  int load_all_reduce() const override {
    const int error = cuda::load_all_reduce();
    return error == kLaunched ? cuda::load_plan() : error;
  }
  int all_reduce_one_shot(const AllReduceTask& task, void* stream) const override {
    return cuda::all_reduce_one_shot(task, stream);
  }
  int all_reduce_two_shot(const AllReduceTask& task, void* stream) const override {
    return cuda::all_reduce_two_shot(task, stream);
  }
  int run_plan(const PlanTask& task, void* stream) const override {
    return cuda::run_plan(task, stream);
  }
  int encode(const EncodeTask& task, void* stream) const override {
    return cuda::encode(task, stream);
  }
  int sum_encoded(const SumEncodedTask& task, void* stream) const override {
    return cuda::sum_encoded(task, stream);
  }
  int pack(const PackTask& task, void* stream) const override { return cuda::pack(task, stream); }
  int unpack(const PackTask& task, void* stream) const override {
    return cuda::unpack(task, stream);
  }
};

}  // namespace

const DeviceKernels& cuda_kernels() {
  static const CudaKernels kernels;
  return kernels;
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
