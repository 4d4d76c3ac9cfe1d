// SPDX-License-Identifier: MIT
// One requested collective or message: what to do, on which memory, until when, and how it ended.
//
// Filled in by the caller, then handed to the Engine, which owns every field until finished()
// holds; after that all fields may be read. The memory in `work` belongs to the caller and must
// stay until then. wait_finished() and finished() may be called from any thread.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

#include "base/deadline.h"
#include "base/dtype.h"
#include "base/error.h"
#include "base/wire.h"
#include "engine/regions.h"
#include "engine/watched.h"

namespace pycomm {

inline constexpr int kAnySource = -1;
inline constexpr size_t kNotRecorded = SIZE_MAX;

struct Operation {
  Collective collective = Collective::all_reduce;
  ReduceOp op = ReduceOp::sum;
  DType dtype = DType::float32;
  int root = 0;  // rooted collectives; the tag of send and recv
  int peer = 0;  // send, recv: the other rank, or kAnySource
  // What it travels as where wire_choice.h lets it travel narrow; none: what its group says.
  std::optional<Wire> wire;
  // all_reduce, broadcast, reduce, send, recv: one region, the tensor. The others: one region for
  // each chunk of `work` as plan.h lists them; regions this rank does not have are empty.
  Regions work;
  std::chrono::nanoseconds timeout = std::chrono::nanoseconds::max();
  // The call that this one is a part of, for errors to name; none: it is the call.
  std::optional<Collective> part_of;
  // Carried out by somebody else, who alone knows the memory; null: by the engine.
  std::shared_ptr<Watched> watched;
  // Memory that a device's stream fills: nobody reads or writes `work` before the word has reached
  // the value. The stream writes the word and wakes nobody. Null: the memory is ready.
  uint64_t* ready_word = nullptr;
  uint64_t ready_value = 0;
  bool on_device = false;  // a DeviceOperation, see host_staging.h
  // What tells the stream that `work` is its own again: written when the operation is finished,
  // however it ended. Null: nobody asks.
  uint64_t* done_word = nullptr;
  uint64_t done_value = 0;
  // Run by the executing thread right before the first and right after the last step, for example
  // to pack a tensor that is not contiguous. May be empty.
  std::function<void()> before, after;
  // Run once by the thread that finished the operation, whatever the outcome. May be empty.
  std::function<void(Operation&)> on_finished;

  // Set by the engine.
  std::atomic<uint64_t> sequence = 0;  // of a collective that waits it may still grow
  int source = kAnySource;             // recv: who sent
  Failure failure;
  size_t record = kNotRecorded;  // index in the flight recorder
  Deadline deadline = Deadline::never();

  bool ready() const {
    if (!ready_word) return true;
    const uint64_t now = std::atomic_ref(*ready_word).load(std::memory_order_acquire);
    return static_cast<int64_t>(now - ready_value) >= 0;
  }
  bool finished() const { return finished_.load(std::memory_order_acquire) != 0; }
  // False when the deadline passed first.
  bool wait_finished(Deadline until) const;
  void finish(Failure why);  // engine only

 private:
  mutable std::atomic<uint32_t> finished_{0};
  mutable std::atomic<uint32_t> waiters_{0};
};

// Of all regions.
inline size_t bytes_of(const Operation& operation) {
  size_t count = 0;
  for (const Region& region : operation.work) count += region.count;
  return count * size_of(operation.dtype);
}

// Whether all ranks' blocks are equally long; only all_gather and reduce_scatter may have others,
// of which every rank gives all lengths.
bool has_even_blocks(const Operation& operation);
inline bool is_message(const Operation& operation) {
  return operation.collective == Collective::send || operation.collective == Collective::recv;
}

}  // namespace pycomm
