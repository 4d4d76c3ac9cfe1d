// SPDX-License-Identifier: MIT
// The narrow wire formats for GPUs: encoding, and sums out of encodings, two kernels a format.
#include "kernels/codec_launch.h"
#include "kernels/cuda_env.h"
#include "kernels/cuda_launch.h"

namespace pycomm::cuda {

int encode(const EncodeTask& task, void* stream) {
  return launch_encode(task, CudaLaunch{}, stream);
}
int sum_encoded(const SumEncodedTask& task, void* stream) {
  return launch_sum_encoded(task, CudaLaunch{}, stream);
}

}  // namespace pycomm::cuda
