// SPDX-License-Identifier: MIT
// Everything that runs on a device, as calls that launch it: one table for GPUs, and one that runs
// the same bodies on the host for tests and for devices made of threads.
//
// `stream` is a cudaStream_t as void*, or the fake's. A call checks its arguments, launches on the
// current device, and returns at once: 0, or a cudaError_t as int (kInvalidValue for what the
// kernel cannot do; nothing was launched then). Addresses are the device's; arrays of addresses are
// host memory and read before the return. Kernels keep no memory. Any thread.
#pragma once

#include <functional>
#include <memory>

#include "kernels/device_codec.h"
#include "kernels/device_pack.h"
#include "kernels/device_peers.h"
#include "kernels/device_plan.h"
#include "kernels/reduce.h"

namespace pycomm {

inline constexpr int kLaunched = 0;
inline constexpr int kInvalidValue = 1;  // cudaErrorInvalidValue

inline constexpr int kDeviceSourcesMax = 64;
inline constexpr int kDeviceTargetsMax = 8;  // written in one pass

class DeviceKernels {
 public:
  virtual ~DeviceKernels() = default;

  // reduce() of reduce.h, with its bits, for every dtype and operation that supports() allows but
  // premul_sum, and up to kDeviceSourcesMax sources. task.target and up to kDeviceTargetsMax - 1
  // copies are written in one pass, more copies in further passes, which read the target. Moves 16
  // bytes an access where all addresses are equally far from a multiple of 16.
  virtual int reduce(const ReduceTask& task, void* stream) const = 0;
  // Loads what reduce() launches, on the current device. A kernel that its first launch has to load
  // may wait for all streams of the process, and what they wait for may be this thread's to call.
  virtual int load_reduce() const = 0;
  virtual int load_all_reduce() const = 0;  // the same for both kinds of it, and for run_plan()

  // All tensors of a bucket into it, or from it, in one launch: converted, multiplied by task.scale
  // in float32 (float64 in itself), rounded once, added to what is there if task.accumulate. Any of
  // float32, float16 and bfloat16 to any of them, and float64 to itself; equal types at scale 1 are
  // copied as they are, otherwise NaN becomes the canonical one. Tensors must not overlap.
  virtual int pack(const PackTask& task, void* stream) const = 0;
  virtual int unpack(const PackTask& task, void* stream) const = 0;

  // The narrow wire formats of codec.h, byte for byte: bf16, fp16s, int8 and int4.
  virtual int encode(const EncodeTask& task, void* stream) const = 0;
  virtual int sum_encoded(const SumEncodedTask& task, void* stream) const = 0;

  // All_reduce between the ranks of task.group, whose kernels wait for one another: only where each
  // rank has a GPU of its own. float32, float64, float16, bfloat16, int32 and int64, all their
  // operations but premul_sum; at most kPeersMax ranks. One_shot: at most one_shot_count()
  // elements. Two_shot: the tensor fits group.buffers. A wait that ends early is told in
  // group.control->status, and the output is worth nothing then.
  virtual int all_reduce_one_shot(const AllReduceTask& task, void* stream) const = 0;
  virtual int all_reduce_two_shot(const AllReduceTask& task, void* stream) const = 0;

  // A plan of csrc/plan between the ranks of task.group, step by step; the same types, and the same
  // conditions on GPUs and waits.
  virtual int run_plan(const PlanTask& task, void* stream) const = 0;
};

// Puts work at the end of a stream; what it is given is run once, in the stream's order.
using EnqueueHost = std::function<void(void* stream, std::function<void()> work)>;

// The same bodies compiled for the host. Work runs where `enqueue` runs it, all blocks one after
// the other.
std::unique_ptr<DeviceKernels> host_kernels(EnqueueHost enqueue);

// What follows exists in builds with nvcc only (PYCOMM_WITH_CUDA). It loads and answers without a
// driver.
const DeviceKernels& cuda_kernels();
const char* cuda_error_text(int error);
// 0 and the reason in *error when there is no usable device: 35 means no driver, or one too old.
int cuda_device_count(int* error);

}  // namespace pycomm
