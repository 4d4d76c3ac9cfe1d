// SPDX-License-Identifier: MIT
// How far a group's streams have come, told by two words of pinned memory that they write and
// anybody may read: which numbered piece of work has begun, and which has ended.
//
// next() and write() under the lane's lock, in the order in which the streams come to them; the
// rest from any thread. The device outlives it.
#pragma once

#include <cstdint>

#include "device/device.h"

namespace pycomm {

class StreamMarks {
 public:
  // Throws CommError when pinned memory cannot be had.
  explicit StreamMarks(Device& device);
  // Waits a short while for the streams; memory that one of them may still write stays for ever.
  ~StreamMarks();
  StreamMarks(const StreamMarks&) = delete;
  StreamMarks& operator=(const StreamMarks&) = delete;

  // The number of the next piece of work. Whoever takes one marks both ends, or withdraws it.
  uint64_t next() { return ++last_; }
  void withdraw(uint64_t number) { last_ = number - 1; }
  Failure mark_begin(void* stream, uint64_t number) { return write(kBegun, stream, number); }
  Failure mark_end(void* stream, uint64_t number) { return write(kEnded, stream, number); }

  bool begun(uint64_t number) const { return read(kBegun) >= number; }
  bool ended(uint64_t number) const { return read(kEnded) >= number; }

 private:
  enum Word : int { kBegun, kEnded };
  uint64_t read(Word word) const;
  Failure write(Word word, void* stream, uint64_t number);

  Device& device_;
  HostAllocation page_;
  uint64_t last_ = 0;
};

}  // namespace pycomm
