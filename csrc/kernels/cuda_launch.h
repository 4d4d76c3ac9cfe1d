// SPDX-License-Identifier: MIT
// The calls of DeviceKernels as each .cu file implements them; cuda_kernels.cu makes them a table.
//
// One file for each kind of kernel, so that they compile beside one another. Any thread.
#pragma once

#include "kernels/device_kernels.h"

namespace pycomm::cuda {

int reduce(const ReduceTask& task, void* stream);
int load_reduce();
int load_all_reduce();
int load_plan();
int all_reduce_one_shot(const AllReduceTask& task, void* stream);
int all_reduce_two_shot(const AllReduceTask& task, void* stream);
int run_plan(const PlanTask& task, void* stream);
int encode(const EncodeTask& task, void* stream);
int sum_encoded(const SumEncodedTask& task, void* stream);
int pack(const PackTask& task, void* stream);
int unpack(const PackTask& task, void* stream);

}  // namespace pycomm::cuda
