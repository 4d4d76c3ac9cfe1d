// SPDX-License-Identifier: MIT
// All_reduce between GPUs: one_shot and two_shot, one kernel each for an element type.
#include "kernels/all_reduce_launch.h"
#include "kernels/cuda_env.h"
#include "kernels/cuda_launch.h"

namespace pycomm::cuda {

int all_reduce_one_shot(const AllReduceTask& task, void* stream) {
  return launch_one_shot(task, CudaLaunch{}, stream);
}
int all_reduce_two_shot(const AllReduceTask& task, void* stream) {
  return launch_two_shot(task, CudaLaunch{}, stream);
}
int load_all_reduce() {
  for (int d = 0; d < kDTypeCount; ++d) {
    if (!travels_between_gpus(static_cast<DType>(d))) continue;
    const int error = with_peer_format(static_cast<DType>(d), [&]<class Format>() -> int {
      const int first = load<OneShotBody<Format>>();
      return first == kLaunched ? load<TwoShotBody<Format>>() : first;
    });
    if (error != kLaunched) return error;
  }
  return kLaunched;
}

}  // namespace pycomm::cuda
