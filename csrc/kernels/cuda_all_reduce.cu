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
  return for_each_peer_format([&]<class Format>() -> int {
    const int error = load<OneShotBody<Format>>();
    return error == kLaunched ? load<TwoShotBody<Format>>() : error;
  });
}

}  // namespace pycomm::cuda
