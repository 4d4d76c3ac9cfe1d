// SPDX-License-Identifier: MIT
#include "torch/hierarchy_call.h"

#include <c10/core/StreamGuard.h>

#include <algorithm>
#include <array>
#include <optional>
#include <thread>

#include "base/limits.h"
#include "engine/signature.h"

namespace pycomm {

namespace {

using Packed = std::array<uint64_t, 4>;

Packed signature_of(const Operation& wanted) {
  OpSignature signature;
  const auto at = moves_blocks(wanted.collective) ? wanted.work.size() - 1 : 0;
  signature.count = wanted.work[at].count;
  signature.collective = wanted.collective;
  signature.op = is_reduction(wanted.collective) ? wanted.op : ReduceOp::sum;
  signature.dtype = wanted.dtype;
  return signature.pack();
}

// Of one call: the first operation, and in place of the plan a hash of those coalesced with it.
OpSignature signature_of(const PreparedCall::Operations& wanted) {
  uint64_t hash = 14695981039346656037u;  // FNV-1a
  for (size_t i = 1; i < wanted.size(); ++i) {
    for (const uint64_t word : signature_of(*wanted[i])) hash = (hash ^ word) * 1099511628211u;
  }
  auto first = OpSignature::unpack(signature_of(*wanted.front()));
  first.plan = static_cast<uint32_t>(hash ^ hash >> 32);
  return first;
}

Failure mismatch(const OpSignature& mine, const OpSignature& theirs, int rank, int peer) {
  Failure found{FailureKind::mismatch, explain_mismatch(mine, theirs, rank, peer), {peer}};
  if (to_string(mine) == to_string(theirs)) {
    found.text = str("rank ", peer, " coalesces other tensors with ", to_string(theirs),
                     " than rank ", rank, "; give all ranks lists of the same shapes and dtypes");
  }
  return found;
}

struct Announced {
  std::vector<Packed> all;
  Packed mine;
};

// The end of a stream's work, seen without a call of CUDA.
class HierarchyRun final : public Watched {
 public:
  HierarchyRun(std::shared_ptr<Hierarchy> hierarchy, uint64_t number)
      : hierarchy_(std::move(hierarchy)), marks_(*hierarchy_->marks()), number_(number) {}

  // Given up before its stream was done: the group has failed, or a peer has aborted it. Whoever
  // waits in a half that has no part of that rank would wait for long.
  ~HierarchyRun() override {
    if (!marks_.ended(number_)) hierarchy_->abort("the group that it serves failed");
  }

  // A half that has died is mostly the echo of what the group is about to hear of in its own
  // numbering, so that gets a moment to come first. Its death has released the stream, and then
  // the end means nothing.
  bool over() override {
    const bool ended = marks_.ended(number_);
    const auto found = hierarchy_->failure(ended);
    if (!found) return ended;
    if (!echo_) echo_ = Deadline::after(kAnswerPatience);
    if (echo_->expired()) throw CommError(found);
    return false;
  }
  Failure fault() override { return {}; }
  bool given_up() override { return false; }
  const char* label() const override { return "between hosts"; }
  std::vector<int> awaited() override {
    if (!marks_.begun(number_)) return {hierarchy_->layout().rank};
    return hierarchy_->partners();
  }

 private:
  const std::shared_ptr<Hierarchy> hierarchy_;
  const StreamMarks& marks_;
  const uint64_t number_;
  std::optional<Deadline> echo_;
};

std::shared_ptr<Operation> like(const Operation& wanted) {
  auto operation = std::make_shared<Operation>();
  operation->collective = wanted.collective;
  operation->op = wanted.op;
  operation->dtype = wanted.dtype;
  operation->timeout = wanted.timeout;
  operation->work = wanted.work;  // for the flight recorder
  return operation;
}

}  // namespace

std::shared_ptr<Operation> make_announcement(const PreparedCall::Operations& wanted, int rank,
                                             int world_size) {
  const auto announced = std::make_shared<Announced>();
  announced->all.resize(static_cast<size_t>(world_size));
  announced->mine = signature_of(wanted).pack();
  auto operation = std::make_shared<Operation>();
  operation->collective = Collective::all_gather;
  operation->part_of = wanted.front()->collective;
  operation->dtype = DType::uint64;
  operation->timeout = wanted.front()->timeout;
  const auto region = [](Packed& words) {
    return Region{reinterpret_cast<std::byte*>(words.data()), words.size()};
  };
  for (auto& words : announced->all) operation->work.push_back(region(words));
  operation->work.push_back(region(announced->mine));
  operation->after = [announced, rank] {
    for (size_t peer = 0; peer < announced->all.size(); ++peer) {
      if (announced->all[peer] == announced->mine) continue;
      throw CommError(mismatch(OpSignature::unpack(announced->mine),
                               OpSignature::unpack(announced->all[peer]), rank,
                               static_cast<int>(peer)));
    }
  };
  return operation;
}

HierarchyCall::HierarchyCall(std::shared_ptr<Hierarchy> hierarchy, Engine& engine, DeviceLane& lane,
                             const Operations& wanted)
    : hierarchy_(std::move(hierarchy)),
      marks_(hierarchy_->marks()),
      engine_(engine),
      lane_(lane),
      wanted_(wanted),
      number_(marks_->next()),
      announcement_(
          make_announcement(wanted, hierarchy_->layout().rank, hierarchy_->layout().world_size)),
      attended_(like(*wanted.front())) {
  attended_->watched = std::make_shared<HierarchyRun>(hierarchy_, number_);
}

HierarchyCall::~HierarchyCall() {
  if (!enqueued_) marks_->withdraw(number_);
}

std::function<bool()> HierarchyCall::passed() const {
  return [marks = marks_, number = number_] { return marks->ended(number); };
}

void HierarchyCall::legs(void* stream) {
  const bool current = stream == lane_.current_native();
  const c10::StreamGuard guard(current ? lane_.current() : hierarchy_->stream());
  auto timeout = std::chrono::duration_cast<std::chrono::milliseconds>(
      wanted_.front()->timeout == std::chrono::nanoseconds::max() ? engine_.timeout()
                                                                  : wanted_.front()->timeout);
  for (const auto& one : wanted_) {
    hierarchy_->enqueue(static_cast<const DeviceTensors&>(*one), timeout + kHalfPatience);
  }
}

Failure HierarchyCall::enqueue(void* stream) {
  enqueued_ = true;
  if (auto failure = marks_->mark_begin(stream, number_)) return failure;
  try {
    legs(stream);
  } catch (const CommError& error) {
    // The group may be about to hear of it in its own numbering.
    (void)marks_->mark_end(stream, number_);
    const auto echo = Deadline::after(kAnswerPatience);
    while (!engine_.failure() && !echo.expired()) std::this_thread::sleep_for(kReadyNap);
    engine_.refuse(*attended_, error.failure());
  }
  return marks_->mark_end(stream, number_);
}

}  // namespace pycomm
