// SPDX-License-Identifier: MIT
// Which asynchronous works of one backend are under way, and who wants to be told when one ends.
//
// Every Work calls begin() when it is made and end() once, when its last operation has finished;
// wait() returns when all that had begun are over and their hooks have run. Hooks run on a thread
// of the callback pool, one at a time, in the order in which the works ended; they may take the GIL
// and may call collectives. Any thread. Shared by the backend and its works, which may outlive it.
#pragma once

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <torch/csrc/distributed/c10d/Work.hpp>

#include "engine/callback_pool.h"

namespace pycomm {

// What the newest hooks report, see c10d's Hooks.hpp.
struct Completion {
  c10d::WorkInfo info;
  uint64_t key = 0;  // of the Work, never used again
  bool succeeded = false;
};

class Completions : public std::enable_shared_from_this<Completions> {
 public:
  using Hook = std::function<void(const Completion&)>;

  Completions(std::shared_ptr<CallbackPool> pool, int rank) : pool_(std::move(pool)), rank_(rank) {}
  CallbackPool& pool() { return *pool_; }
  const std::shared_ptr<CallbackPool>& shared_pool() const { return pool_; }

  void begin() { under_way_.fetch_add(1); }
  void end(Completion completion);
  // For one that begun and was refused, or that no hook wants to hear of.
  void abandon() { finish_one(); }
  void wait();

  // Replaces the hook of this id, if there is one.
  void add_hook(int64_t id, Hook hook);
  void remove_hook(int64_t id);
  // Somebody wants to hear of every operation, synchronous ones too.
  bool wanted() const { return wanted_.load(std::memory_order_acquire); }

 private:
  void tell();
  void finish_one();

  const std::shared_ptr<CallbackPool> pool_;
  const int rank_;
  std::atomic<int64_t> under_way_{0};
  std::atomic<bool> wanted_{false};
  std::mutex mutex_;
  std::map<int64_t, std::shared_ptr<const Hook>> hooks_;
  std::deque<Completion> ended_;
  bool telling_ = false;
};

}  // namespace pycomm
