// SPDX-License-Identifier: MIT
// All that rendezvous needs of a key-value store: publish a value, wait for a value, count. c10d's
// Store is adapted in csrc/torch; MemoryStore serves ranks that are threads of one process, in
// tests.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "base/deadline.h"

namespace pycomm {

class Store {
 public:
  virtual ~Store() = default;
  virtual void set(const std::string& key, const std::string& value) = 0;
  // Blocks until the key exists; throws CommError(timeout) naming the key.
  virtual std::string get(const std::string& key, Deadline deadline) = 0;
  // Does not block.
  virtual bool has(const std::string& key) = 0;
  // Counts from 0; the new value.
  virtual int64_t add(const std::string& key, int64_t amount) = 0;
};

class MemoryStore final : public Store {
 public:
  void set(const std::string& key, const std::string& value) override;
  std::string get(const std::string& key, Deadline deadline) override;
  bool has(const std::string& key) override;
  int64_t add(const std::string& key, int64_t amount) override;

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<std::string, std::string> values_;
  std::map<std::string, int64_t> counters_;
};

}  // namespace pycomm
