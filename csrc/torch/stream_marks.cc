// SPDX-License-Identifier: MIT
#include "torch/stream_marks.h"

#include <algorithm>
#include <atomic>
#include <thread>

#include "base/deadline.h"
#include "base/limits.h"

namespace pycomm {

StreamMarks::StreamMarks(Device& device) : device_(device) {
  if (const auto failure = device_.allocate_pinned(kPageBytes, &page_)) throw CommError(failure);
  std::fill_n(static_cast<uint64_t*>(page_.host), 2, 0);
}

StreamMarks::~StreamMarks() {
  const auto patience = Deadline::after(kStreamPatience);
  while (!ended(last_) && !patience.expired()) std::this_thread::sleep_for(kReadyNap);
  if (ended(last_)) (void)device_.release_pinned(page_);
}

uint64_t StreamMarks::read(Word word) const {
  auto* const words = static_cast<uint64_t*>(page_.host);
  return std::atomic_ref(words[word]).load(std::memory_order_acquire);
}

Failure StreamMarks::write(Word word, void* stream, uint64_t number) {
  const DeviceScope scope(device_);
  return device_.write_value(stream, static_cast<uint64_t*>(page_.device) + word, number);
}

}  // namespace pycomm
