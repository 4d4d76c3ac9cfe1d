// SPDX-License-Identifier: MIT
#include "engine/operation.h"

#include <algorithm>

#include "transport/doorbell.h"

namespace pycomm {

bool has_even_blocks(const Operation& operation) {
  if (operation.collective != Collective::all_gather &&
      operation.collective != Collective::reduce_scatter) {
    return true;
  }
  return std::all_of(operation.work.begin(), operation.work.end(),
                     [&](const Region& one) { return one.count == operation.work[0].count; });
}

bool Operation::wait_finished(Deadline until) const {
  if (finished()) return true;
  waiters_.fetch_add(1, std::memory_order_seq_cst);
  while (!finished_.load(std::memory_order_seq_cst) && !until.expired()) {
    futex_wait(finished_, 0,
               std::min<std::chrono::nanoseconds>(until.remaining(), kSleepSlice * 50));
  }
  waiters_.fetch_sub(1, std::memory_order_seq_cst);
  return finished();
}

void Operation::finish(Failure why) {
  if (why) failure = std::move(why);
  const auto callback = std::move(on_finished);
  if (done_word) std::atomic_ref(*done_word).store(done_value, std::memory_order_release);
  finished_.store(1, std::memory_order_seq_cst);
  if (waiters_.load(std::memory_order_seq_cst) != 0) futex_wake_all(finished_);
  // Captures keep the operation alive where it matters; nothing of it is touched after this call.
  if (callback) callback(*this);
}

}  // namespace pycomm
