// SPDX-License-Identifier: MIT
// A stream of the fake GPU: one thread that runs tasks in order; and the events between streams.
//
// Stream: push() from any thread; the tasks run on the stream's own. Seeded delays between tasks
// make interleavings that a quick machine would hide. An event is shared between its device and the
// tasks that mention it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <thread>

namespace pycomm {

class FakeStream;
struct FakeCapture;

// Returns false when it gave up a wait because `stopping` was set.
using FakeTask = std::function<bool(const std::atomic<bool>& stopping)>;

// Polls: yields at first, then sleeps. False when `stopping` came first.
bool fake_await(const std::atomic<bool>& stopping, const std::function<bool()>& holds);

// One record() of an event: those who wait for it do not care that the event is recorded again.
struct FakeRecord {
  std::atomic<bool> done{false};
  std::atomic<int64_t> at_ns{0};  // when it was done
};

struct FakeEvent {
  std::shared_ptr<FakeRecord> latest;  // null: never recorded; under the device's mutex
  // Under the device's mutex: the capture in which it was last recorded, 0 outside of any, and what
  // of each stream came before it there.
  uint64_t capture = 0;
  std::map<const FakeStream*, size_t> seen;
};

class FakeStream {
 public:
  // `queue`: the stream whose thread runs the tasks, in order with its own; destroyed first.
  FakeStream(uint64_t seed, std::chrono::microseconds delay_max, FakeStream* queue = nullptr);
  // Runs what is left up to the first wait that does not end, and drops the rest.
  ~FakeStream();

  void push(FakeTask task);
  bool idle() const { return finished_.load() == pushed_.load(); }
  void wait_idle();
  // Lets unfinished waits give up, so that destructors of several streams do not wait in a circle.
  void stop();

  // Under the device's mutex.
  std::shared_ptr<FakeCapture> capture;

 private:
  void run();
  void push_to_queue(FakeTask task);

  std::atomic<uint64_t> pushed_{0}, finished_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<FakeTask> tasks_;
  std::atomic<bool> stopping_{false};
  std::mt19937_64 random_;
  const std::chrono::microseconds delay_max_;
  FakeStream* const queue_;
  std::thread thread_;  // starts with the first task
};

}  // namespace pycomm
