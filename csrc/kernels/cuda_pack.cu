// SPDX-License-Identifier: MIT
// Packing and unpacking of buckets for GPUs: one kernel for each pair of element types.
#include "kernels/cuda_env.h"
#include "kernels/cuda_launch.h"
#include "kernels/pack_launch.h"

namespace pycomm::cuda {

int pack(const PackTask& task, void* stream) {
  return launch_pack(task, true, CudaLaunch{}, stream);
}
int unpack(const PackTask& task, void* stream) {
  return launch_pack(task, false, CudaLaunch{}, stream);
}

}  // namespace pycomm::cuda
