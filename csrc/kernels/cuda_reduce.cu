// SPDX-License-Identifier: MIT
// The k-way reduction for GPUs: one kernel an element type.
#include "kernels/cuda_env.h"
#include "kernels/cuda_launch.h"
#include "kernels/reduce_launch.h"

namespace pycomm::cuda {

int reduce(const ReduceTask& task, void* stream) {
  return launch_reduce(task, CudaLaunch{}, stream);
}

int load_reduce() {
  for (int d = 0; d < kDTypeCount; ++d) {
    for (const ReduceOp op : {ReduceOp::sum, ReduceOp::product}) {
      const int error = with_format(op, static_cast<DType>(d), [&]<class Format>() -> int {
        return load<ReduceBody<Format>>();
      });
      if (error != cudaSuccess) return error;
    }
  }
  return kLaunched;
}

}  // namespace pycomm::cuda
