// SPDX-License-Identifier: MIT
#include "device/fake_stream.h"

namespace pycomm {

bool fake_await(const std::atomic<bool>& stopping, const std::function<bool()>& holds) {
  constexpr int kYields = 64;
  for (int tries = 0; !holds(); ++tries) {
    if (stopping.load()) return false;
    if (tries < kYields) {
      std::this_thread::yield();
    } else {
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  }
  return true;
}

FakeStream::FakeStream(uint64_t seed, std::chrono::microseconds delay_max, FakeStream* queue)
    : random_(seed), delay_max_(delay_max), queue_(queue) {}

FakeStream::~FakeStream() {
  stop();
  if (thread_.joinable()) thread_.join();
}

void FakeStream::stop() {
  const std::lock_guard lock(mutex_);
  stopping_ = true;
  changed_.notify_all();
}

void FakeStream::push(FakeTask task) {
  const std::lock_guard lock(mutex_);
  if (stopping_) return;
  if (queue_) return push_to_queue(std::move(task));
  tasks_.push_back(std::move(task));
  ++pushed_;
  if (!thread_.joinable()) thread_ = std::thread([this] { run(); });
  changed_.notify_all();
}

// Under mutex_.
void FakeStream::push_to_queue(FakeTask task) {
  ++pushed_;
  queue_->push([this, task = std::move(task)](const std::atomic<bool>& stopping) {
    const bool ran = task(stopping);
    const std::lock_guard lock(mutex_);
    ++finished_;
    changed_.notify_all();
    return ran;
  });
}

void FakeStream::wait_idle() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [&] { return stopping_ || idle(); });
}

void FakeStream::run() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || !tasks_.empty(); });
    if (tasks_.empty()) return;
    FakeTask task = std::move(tasks_.front());
    tasks_.pop_front();
    lock.unlock();
    if (delay_max_.count() > 0 && random_() % 4 == 0) {
      std::this_thread::sleep_for(delay_max_ * (random_() % 1000) / 1000);
    }
    const bool ran = task(stopping_);
    task = nullptr;  // what it holds may take a lock to go
    lock.lock();
    ++finished_;
    if (!ran) tasks_.clear();
    changed_.notify_all();
  }
}

}  // namespace pycomm
