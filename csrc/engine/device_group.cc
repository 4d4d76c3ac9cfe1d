// SPDX-License-Identifier: MIT
#include "engine/device_group.h"

#include <algorithm>
#include <thread>

#include "base/log.h"

namespace pycomm {
namespace {

// The words' first numbers are the set-up's.
constexpr uint64_t kFirstPiece = 8;
// OpSignature::plan of a call.
constexpr uint32_t kAtOnce = 0, kCapturedWork = 1;

// In place of a leader.
constexpr int kNobody = -1, kByKernels = -2;

// The end of this rank's part, seen without a call of CUDA.
class DeviceRun final : public Watched {
 public:
  DeviceRun(std::shared_ptr<DeviceWords> words, int rank, int world_size, int leader, uint64_t last)
      : words_(std::move(words)),
        rank_(rank),
        world_size_(world_size),
        leader_(leader),
        last_(last) {}

  // A failure releases streams, and then the end means nothing; the engine is about to hear of it.
  bool over() override { return words_->has_ended(rank_, last_) && !words_->broken() && !fault(); }
  Failure fault() override { return words_->explain_fault(); }
  bool given_up() override { return words_->broken(); }
  const char* label() const override { return leader_ == kByKernels ? "mode K" : "mode S"; }

  // Those who are furthest behind; whoever has broken up, which words do not say.
  std::vector<int> awaited() override {
    std::vector<int> behind;
    for (int rank = 0; rank < world_size_ && words_->broken(); ++rank) {
      if (rank != rank_) behind.push_back(rank);
    }
    if (!behind.empty()) return behind;
    uint64_t least = last_;
    for (int rank = 0; rank < world_size_; ++rank) {
      const uint64_t ready = words_->last_ready(rank);
      if (ready >= last_ || ready > least) continue;
      if (ready < least) behind.clear();
      least = ready;
      behind.push_back(rank);
    }
    if (!behind.empty()) return behind;
    // Kernels of all are running: whoever has not come through holds up the others.
    for (int rank = 0; rank < world_size_ && leader_ == kByKernels; ++rank) {
      if (rank != rank_ && !words_->has_ended(rank, last_)) behind.push_back(rank);
    }
    if (!behind.empty()) return behind;
    return {leader_ >= 0 && !words_->is_done(last_) ? leader_ : rank_};
  }

 private:
  const std::shared_ptr<DeviceWords> words_;
  const int rank_, world_size_, leader_;
  const uint64_t last_;
};

std::chrono::nanoseconds saturated_sum(std::chrono::nanoseconds a, std::chrono::nanoseconds b) {
  return a > std::chrono::nanoseconds::max() - b ? std::chrono::nanoseconds::max() : a + b;
}

std::string say_captured(const OpSignature& signature, int rank) {
  return str("rank ", rank, signature.plan == kCapturedWork ? " captures " : " runs at once ",
             to_string(signature));
}

}  // namespace

DeviceGroup::DeviceGroup(Engine& engine, Device& device)
    : engine_(engine),
      device_(device),
      rank_(engine.mesh().rank()),
      world_size_(engine.mesh().world_size()),
      pieces_(kFirstPiece) {}

bool DeviceGroup::serves(const Operation& wanted) const {
  return mode() != DeviceMode::host && DeviceStages::serve(wanted) && has_even_blocks(wanted);
}

DeviceGroup::Call DeviceGroup::prepare(const Operation& wanted, bool captured) {
  if (const auto failure = engine_.failure()) raise(wanted, failure, rank_, world_size_);
  // Of a graph's kernels, which nobody watches.
  if (const auto fault = words_->explain_fault()) engine_.refuse(wanted, fault);
  Call call;
  call.work.collective = wanted.collective;
  call.work.op = wanted.op;
  call.work.dtype = wanted.dtype;
  call.work.root = wanted.root;
  call.work.regions = wanted.work;
  const bool whole = call.work.led();
  call.work.count = wanted.work[whole ? 0 : static_cast<size_t>(world_size_)].count;
  ++calls_;
  // Whoever leads does more than its share; so another one each time.
  call.work.leader = wanted.collective == Collective::all_reduce
                         ? static_cast<int>(calls_ % static_cast<uint64_t>(world_size_))
                         : wanted.root;
  const OpSignature signature = signature_of(call.work, captured);
  check_with_peers(wanted, signature);
  call.by_kernels = kernels_ && PeerKernels::serve(wanted);
  const size_t piece = stages_->piece_count(call.work);
  const size_t pieces = call.by_kernels ? 1 : (call.work.count + piece - 1) / piece;
  call.pieces = std::max<size_t>(1, pieces);
  // The engine's own deadline comes first, as it can say more.
  call.launch = {captured, digest(signature), saturated_sum(timeout_of(wanted), kDevicePatience)};
  if (captured) {
    captured_ = true;
    return call;
  }
  call.first = pieces_ + 1;
  pieces_ += call.pieces;
  call.operation = std::make_shared<Operation>();
  call.operation->collective = wanted.collective;
  call.operation->op = wanted.op;
  call.operation->dtype = wanted.dtype;
  call.operation->root = wanted.root;
  call.operation->timeout = wanted.timeout;
  call.operation->work = wanted.work;  // for the flight recorder
  const int leader = call.by_kernels ? kByKernels : whole ? call.work.leader : kNobody;
  call.operation->watched =
      std::make_shared<DeviceRun>(words_, rank_, world_size_, leader, pieces_);
  call.passed = [words = words_, rank = rank_, last = pieces_] {
    return words->has_ended(rank, last);
  };
  return call;
}

OpSignature DeviceGroup::signature_of(const DeviceWork& work, bool captured) const {
  OpSignature mine;
  mine.count = work.count;
  mine.root = is_rooted(work.collective) ? work.root : 0;
  mine.collective = work.collective;
  mine.op = is_reduction(work.collective) ? work.op : ReduceOp::sum;
  mine.dtype = work.dtype;
  mine.plan = captured ? kCapturedWork : kAtOnce;
  return mine;
}

std::chrono::nanoseconds DeviceGroup::timeout_of(const Operation& wanted) const {
  return wanted.timeout == std::chrono::nanoseconds::max() ? engine_.timeout() : wanted.timeout;
}

void DeviceGroup::check_with_peers(const Operation& wanted, const OpSignature& mine) {
  await_laggards(wanted, mine);
  words_->publish(calls_, mine);
  for (int peer = 0; peer < world_size_; ++peer) {
    if (peer == rank_) continue;
    const auto theirs = words_->published(peer, calls_);
    if (!theirs || *theirs == mine) continue;
    Failure found{FailureKind::mismatch, explain_mismatch(mine, *theirs, rank_, peer), {peer}};
    if (to_string(mine) == to_string(*theirs) && mine.plan != theirs->plan) {
      found.text = str(say_captured(*theirs, peer), ", but ", say_captured(mine, rank_),
                       "; a capture must be one on all ranks");
    }
    engine_.refuse(wanted, found);
  }
}

// This rank's host is so far ahead that its calls would overwrite what a peer has yet to read.
void DeviceGroup::await_laggards(const Operation& wanted, const OpSignature& mine) {
  const auto timeout = timeout_of(wanted);
  const auto deadline = Deadline::after(timeout);
  for (int peer = words_->laggard(calls_); peer >= 0; peer = words_->laggard(calls_)) {
    if (const auto failure = engine_.failure()) raise(wanted, failure, rank_, world_size_);
    if (deadline.expired()) {
      engine_.refuse(
          wanted, {FailureKind::timeout,
                   str("timeout after ", std::chrono::duration<double>(timeout).count(),
                       " s before ", to_string(mine), "; ", engine_.mesh().describe(peer), " is ",
                       kDeviceTicketsMax, " calls behind"),
                   {peer}});
    }
    std::this_thread::sleep_for(kAttendNap);
  }
}

DevicePiece DeviceGroup::piece_of(const Call& call, size_t index) const {
  const size_t step = stages_->piece_count(call.work);
  DevicePiece piece;
  piece.begin = index * step;
  piece.count = std::min(step, call.work.count - std::min(call.work.count, piece.begin));
  piece.slot = call.operation ? static_cast<int>((call.first + index) % 2) : kCapturedSlot;
  piece.result_slot = piece.slot;
  return piece;
}

Failure DeviceGroup::put(const Call& call, size_t index, void* stream) {
  if (Failure failure = stages_->put(call.work, piece_of(call, index), stream)) return failure;
  return device_.write_value(stream, words_->ready(rank_), call.first + index);
}

Failure DeviceGroup::carry_out(const Call& call, size_t index, void* stream) {
  const uint64_t number = call.first + index;
  const bool led = call.work.led(), leads = led && rank_ == call.work.leader;
  std::vector<WordOperation> waits;
  if (led && !leads) {
    waits.push_back({WordOperation::Kind::wait, words_->done(), number});
  } else {
    for (int rank = 0; rank < world_size_; ++rank) {
      if (rank == rank_) continue;
      waits.push_back({WordOperation::Kind::wait, words_->ready(rank), number});
    }
  }
  if (Failure failure = device_.word_operations(stream, waits)) return failure;
  const DevicePiece piece = piece_of(call, index);
  if (!leads) return stages_->take(call.work, piece, stream);
  if (Failure failure = stages_->lead(call.work, piece, stream)) return failure;
  return device_.write_value(stream, words_->done(), number);
}

Failure DeviceGroup::enqueue(const Call& call, void* stream) {
  const DeviceScope scope(device_);
  if (!call.operation) {
    return call.by_kernels ? kernels_->all_reduce(call.work, call.launch, stream)
                           : enqueue_captured(call, stream);
  }
  Failure failure = call.by_kernels ? enqueue_kernels(call, stream) : enqueue_pieces(call, stream);
  // The mark alone would say that all went well; but it also says when the stream has done with the
  // memory.
  if (failure) words_->break_up();
  const uint64_t last = call.first + call.pieces - 1;
  const Failure unmarked = device_.write_value(stream, words_->ended(rank_), last);
  return failure ? failure : unmarked;
}

// A rank may put a piece before it takes the one before it, if nobody reads its slot of two pieces
// ago any more. Of a led operation that was the leader alone, who has since said that it is done.
// Otherwise it was everybody, and of them this rank knows only when it has taken the next one.
Failure DeviceGroup::enqueue_pieces(const Call& call, void* stream) {
  Failure failure = put(call, 0, stream);
  for (size_t index = 0; index < call.pieces && !failure; ++index) {
    const bool last = index + 1 == call.pieces;
    const bool early = call.work.led() && unled_piece_ != call.first + index - 1;
    if (!last && early) failure = put(call, index + 1, stream);
    if (!failure) failure = carry_out(call, index, stream);
    if (!last && !early && !failure) failure = put(call, index + 1, stream);
  }
  if (!call.work.led()) unled_piece_ = call.first + call.pieces - 1;
  return failure;
}

// The words only tell how far this rank is. Kernels meet all others', so what comes after them on
// any rank comes after all that was before them on every rank: no slot is in use then.
Failure DeviceGroup::enqueue_kernels(const Call& call, void* stream) {
  const Failure failure = device_.write_value(stream, words_->ready(rank_), call.first);
  return failure ? failure : kernels_->all_reduce(call.work, call.launch, stream);
}

// One hand-over of captured work: this rank tells `other`, or all, that it has come here, and waits
// until they have; then it sets back what it has read, for the next replay.
Failure DeviceGroup::hand_over(bool second, bool gives, bool gets, int other, void* stream) {
  using Kind = WordOperation::Kind;
  std::vector<WordOperation> writes, waits, resets;
  for (int rank = 0; rank < world_size_; ++rank) {
    if (rank == rank_ || (other >= 0 && rank != other)) continue;
    uint64_t* const theirs = second ? words_->passed(rank, rank_) : words_->arrived(rank, rank_);
    uint64_t* const mine = second ? words_->passed(rank_, rank) : words_->arrived(rank_, rank);
    if (gives) writes.push_back({Kind::write, theirs, 1});
    if (gets) waits.push_back({Kind::wait, mine, 1});
    if (gets) resets.push_back({Kind::write, mine, 0});
  }
  writes.insert(writes.end(), waits.begin(), waits.end());
  writes.insert(writes.end(), resets.begin(), resets.end());
  return device_.word_operations(stream, writes);
}

// The values of words are part of a graph, so they cannot count: a word is 1 when its writer has
// come there, and its reader sets it back to 0. It does so before it gives the writer the sign
// after which the writer may come there again. Pieces go one after the other through slots that
// nothing else uses, and at the end of an operation nobody reads any slot: so graphs may be
// replayed one after the other in any order, as long as it is the same on all ranks, and between or
// beside operations that were not captured.
Failure DeviceGroup::enqueue_captured(const Call& call, void* stream) {
  const int leader = call.work.led() ? call.work.leader : -1;
  const bool leads = leader == rank_;
  Failure failure;
  for (size_t index = 0; index < call.pieces && !failure; ++index) {
    const DevicePiece piece = piece_of(call, index);
    failure = stages_->put(call.work, piece, stream);
    if (leader < 0) {
      if (!failure) failure = hand_over(false, true, true, -1, stream);
      if (!failure) failure = stages_->take(call.work, piece, stream);
      if (!failure) failure = hand_over(true, true, true, -1, stream);
    } else if (leads) {
      if (!failure) failure = hand_over(false, false, true, -1, stream);
      if (!failure) failure = stages_->lead(call.work, piece, stream);
      if (!failure) failure = hand_over(true, true, false, -1, stream);
    } else {
      if (!failure) failure = hand_over(false, true, false, leader, stream);
      if (!failure) failure = hand_over(true, false, true, leader, stream);
      if (!failure) failure = stages_->take(call.work, piece, stream);
    }
  }
  return failure;
}

DeviceGroup::~DeviceGroup() {
  if (!words_) return;
  const auto patience = Deadline::after(kDevicePatience);
  const bool began = pieces_ != kFirstPiece;
  while (began && !words_->has_ended(rank_, pieces_) && !patience.expired()) {
    std::this_thread::sleep_for(kAttendNap);
    if (engine_.failure()) words_->break_up();
  }
  // Set-up that was given up leaves its own stream to itself.
  const bool stuck = began ? !words_->has_ended(rank_, pieces_) : words_->broken();
  if (stuck) words_->break_up();
  if (captured_ || stuck) {
    if (pool_) pool_->abandon();
    keep_for_ever(words_);
    return;
  }
  words_->unregister();
  if (!pool_) return;  // set-up has thrown
  pool_->close_imported();
  words_->close();
  if (pool_->kind() == ShareKind::descriptor) return;
  while (!words_->all_closed() && !patience.expired()) std::this_thread::sleep_for(kAttendNap);
  if (words_->all_closed()) pool_->close_own();
}

}  // namespace pycomm
