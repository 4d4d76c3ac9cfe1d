// SPDX-License-Identifier: MIT
// Runs what users attach to finished operations, off the progress thread.
//
// A callback may wait for another operation of the same group (PyTorch's PowerSGD hook does), take
// the GIL, or drop the last reference to the group; on the progress thread each of these would lock
// up. A callback that waits occupies its worker, so the pool starts another when none is free, and
// workers go when they have had nothing to do for a while. Callbacks may run at the same time and
// in any order. run() may be called from any thread. Destroying the pool lets waiting callbacks run
// and joins nobody.
#pragma once

#include <functional>
#include <memory>

#include "base/deadline.h"

namespace pycomm {

class CallbackPool {
 public:
  CallbackPool();
  ~CallbackPool();
  CallbackPool(const CallbackPool&) = delete;
  CallbackPool& operator=(const CallbackPool&) = delete;

  // `callback` must not throw.
  void run(std::function<void()> callback);
  // Waits until no callback waits or runs; false when the deadline passed first.
  bool wait_idle(Deadline deadline);

 private:
  struct State;
  std::shared_ptr<State> state_;  // workers hold it too
};

}  // namespace pycomm
