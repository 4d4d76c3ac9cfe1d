// SPDX-License-Identifier: MIT
// The interpreter of plans for GPUs, one kernel an element type.
#include "kernels/cuda_env.h"
#include "kernels/cuda_launch.h"
#include "kernels/plan_launch.h"

namespace pycomm::cuda {

int run_plan(const PlanTask& task, void* stream) { return launch_plan(task, CudaLaunch{}, stream); }
int load_plan() {
  return for_each_peer_format([&]<class Format>() -> int { return load<PlanBody<Format>>(); });
}

}  // namespace pycomm::cuda
