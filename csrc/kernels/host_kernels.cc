// SPDX-License-Identifier: MIT
// The kernels for GPUs compiled for the CPU: a block is run after the other, where `enqueue` runs
// it.
// Flags: -ffp-contract=off, like every file that must round as the CPU kernels do.
#include "kernels/all_reduce_launch.h"
#include "kernels/codec_launch.h"
#include "kernels/device_kernels.h"
#include "kernels/host_env.h"
#include "kernels/pack_launch.h"
#include "kernels/plan_launch.h"
#include "kernels/reduce_launch.h"

namespace pycomm {
namespace {

// Few, as they run one after the other, but more than one: a kernel must not count on being alone.
constexpr int kHostThreads = 32;
constexpr size_t kHostBlocksMax = 3;

struct HostLaunch {
  const EnqueueHost& enqueue;
  template <class Body>
  int operator()(const Body& body, size_t items, void* stream) const {
    return exactly(body, std::clamp(items / kHostThreads, size_t{1}, kHostBlocksMax), stream);
  }
  template <class Body>
  int exactly(const Body& body, size_t blocks, void* stream) const {
    enqueue(stream, [body, blocks] {
      for (size_t block = 0; block < blocks; ++block) body(HostEnv(block, blocks, kHostThreads));
    });
    return kLaunched;
  }
};

class HostKernels final : public DeviceKernels {
 public:
  explicit HostKernels(EnqueueHost enqueue) : enqueue_(std::move(enqueue)) {}

  int reduce(const ReduceTask& task, void* stream) const override {
    return launch_reduce(task, HostLaunch{enqueue_}, stream);
  }
  int load_reduce() const override { return kLaunched; }
  int load_all_reduce() const override { return kLaunched; }
  int all_reduce_one_shot(const AllReduceTask& task, void* stream) const override {
    return launch_one_shot(task, HostLaunch{enqueue_}, stream);
  }
  int all_reduce_two_shot(const AllReduceTask& task, void* stream) const override {
    return launch_two_shot(task, HostLaunch{enqueue_}, stream);
  }
  int run_plan(const PlanTask& task, void* stream) const override {
    return launch_plan(task, HostLaunch{enqueue_}, stream);
  }
  int encode(const EncodeTask& task, void* stream) const override {
    return launch_encode(task, HostLaunch{enqueue_}, stream);
  }
  int sum_encoded(const SumEncodedTask& task, void* stream) const override {
    return launch_sum_encoded(task, HostLaunch{enqueue_}, stream);
  }
  int pack(const PackTask& task, void* stream) const override {
    return launch_pack(task, true, HostLaunch{enqueue_}, stream);
  }
  int unpack(const PackTask& task, void* stream) const override {
    return launch_pack(task, false, HostLaunch{enqueue_}, stream);
  }

 private:
  EnqueueHost enqueue_;
};

}  // namespace

std::unique_ptr<DeviceKernels> host_kernels(EnqueueHost enqueue) {
  return std::make_unique<HostKernels>(std::move(enqueue));
}

}  // namespace pycomm
