// SPDX-License-Identifier: MIT
#include "torch/completions.h"

#include <vector>

#include "base/error.h"
#include "base/log.h"

namespace pycomm {

void Completions::end(Completion completion) {
  {
    const std::lock_guard lock(mutex_);
    if (!hooks_.empty()) {
      ended_.push_back(std::move(completion));
      if (telling_) return;
      telling_ = true;
      pool_->run([self = shared_from_this()] { self->tell(); });
      return;
    }
  }
  finish_one();
}

void Completions::tell() {
  std::unique_lock lock(mutex_);
  while (!ended_.empty()) {
    const Completion completion = std::move(ended_.front());
    ended_.pop_front();
    std::vector<std::shared_ptr<const Hook>> hooks;
    for (const auto& [id, hook] : hooks_) hooks.push_back(hook);
    lock.unlock();
    for (const auto& hook : hooks) {
      try {
        (*hook)(completion);
      } catch (const std::exception& error) {
        log(LogLevel::error, rank_, str("a completion hook failed: ", error.what()));
      }
    }
    finish_one();
    lock.lock();
  }
  telling_ = false;
}

void Completions::finish_one() {
  if (under_way_.fetch_sub(1) == 1) under_way_.notify_all();
}

void Completions::wait() {
  for (auto left = under_way_.load(); left != 0; left = under_way_.load()) under_way_.wait(left);
}

void Completions::add_hook(int64_t id, Hook hook) {
  const std::lock_guard lock(mutex_);
  hooks_[id] = std::make_shared<const Hook>(std::move(hook));
  wanted_ = true;
}

void Completions::remove_hook(int64_t id) {
  const std::lock_guard lock(mutex_);
  hooks_.erase(id);
  wanted_ = !hooks_.empty();
}

}  // namespace pycomm
