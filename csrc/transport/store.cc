// SPDX-License-Identifier: MIT
#include "transport/store.h"

#include "base/error.h"

namespace pycomm {

void MemoryStore::set(const std::string& key, const std::string& value) {
  const std::lock_guard lock(mutex_);
  values_[key] = value;
  changed_.notify_all();
}

std::string MemoryStore::get(const std::string& key, Deadline deadline) {
  std::unique_lock lock(mutex_);
  while (!values_.count(key)) {
    if (deadline.expired()) {
      throw CommError(Failure{FailureKind::timeout, str("nobody set ", key, " in time"), {}});
    }
    changed_.wait_for(lock, std::chrono::milliseconds(deadline.remaining_ms_at_most(100)));
  }
  return values_[key];
}

bool MemoryStore::has(const std::string& key) {
  const std::lock_guard lock(mutex_);
  return values_.count(key) != 0;
}

int64_t MemoryStore::add(const std::string& key, int64_t amount) {
  const std::lock_guard lock(mutex_);
  return counters_[key] += amount;
}

}  // namespace pycomm
