// SPDX-License-Identifier: MIT
// The k-way reduction for GPUs: one kernel an element type.
#include "kernels/cuda_env.h"
#include "kernels/cuda_launch.h"
#include "kernels/reduce_launch.h"

namespace pycomm::cuda {

int reduce(const ReduceTask& task, void* stream) {
  return launch_reduce(task, CudaLaunch{}, stream);
}

}  // namespace pycomm::cuda
