// SPDX-License-Identifier: MIT
#include "transport/asymmetric_fence.h"

#include <linux/membarrier.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace pycomm {
namespace {

bool membarrier(int command) { return ::syscall(SYS_membarrier, command, 0u, 0) == 0; }

}  // namespace

std::atomic<bool> AsymmetricFence::joined_{false};

bool AsymmetricFence::join() {
  static const bool done = membarrier(MEMBARRIER_CMD_REGISTER_GLOBAL_EXPEDITED);
  if (done) joined_.store(true, std::memory_order_relaxed);
  return done;
}

bool AsymmetricFence::heavy() { return membarrier(MEMBARRIER_CMD_GLOBAL_EXPEDITED); }

}  // namespace pycomm
