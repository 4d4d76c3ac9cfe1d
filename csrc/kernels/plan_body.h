// SPDX-License-Identifier: MIT
// The interpreter: carries out any plan whose steps run in order over lanes of kLaneSlots slots,
// which engine/lower_plan.h has proved.
//
// Block b does part b of every chunk, piece by piece as slots hold them, and only ever waits for
// block b of its peers. A lane leads from one rank to another: the sender writes a piece into the
// next slot in the receiver's memory and raises `sent` there; the receiver uses it and raises
// `taken` at the sender, who keeps at most kLaneSlots ahead of it. A slot begins with the call's
// signature. See device_env.h for what a body is.
#pragma once

#include "kernels/all_reduce_body.h"
#include "kernels/device_plan.h"

namespace pycomm {
namespace {

constexpr size_t kSlotHeaderBytes = 16;
constexpr size_t kChunkUnitBytes = 64;  // as engine/cut.h cuts

PYCOMM_KERNEL_INLINE size_t lane_slot_bytes(const PeerGroup& group) {
  return group.lanes_bytes / (size_t{kPeerBlocksMax} * group.world_size * kLaneSlots) / 16 * 16;
}

PYCOMM_KERNEL_INLINE Range chunk_of(size_t count, int chunks, int index, size_t element_bytes) {
  const size_t unit = kChunkUnitBytes / element_bytes;
  const auto parts = static_cast<size_t>(chunks);
  const size_t each = ((count + parts - 1) / parts + unit - 1) / unit * unit;
  const auto at = [&](int i) {
    const size_t begin = i >= chunks ? count : each * static_cast<size_t>(i);
    return begin < count ? begin : count;
  };
  return {at(index), at(index + 1)};
}

template <class Format>
struct PlanBody {
  using Code = typename Format::Code;
  static constexpr int kThreads = 512;
  static constexpr int kBlocksPerProcessor = 1;
  PeerGroup group;
  DevicePlan plan;
  char* tensor;
  char* scratch;
  size_t count;
  int divisor;
  ReduceOp op;
  uint32_t signature;

  template <class Env>
  PYCOMM_KERNEL_INLINE void operator()(const Env& env) const {
    auto& block = env.template shared<AllReduceBlock>();
    if (!enter_call(env, group, block.peers)) return;
    const size_t slot = (lane_slot_bytes(group) - kSlotHeaderBytes) / sizeof(Code);
    const size_t longest = chunk_of(count, plan.work_chunks, 0, sizeof(Code)).size();
    const size_t part = part_of({0, longest}, env.blocks(), 0, sizeof(Code)).size();
    for (size_t begin = 0; begin == 0 || begin < part; begin += slot) {
      for (int s = 0; s < plan.step_count; ++s) {
        if (!run(env, block, plan.steps[s], {begin, begin + slot})) return;
      }
    }
  }

 private:
  // Where a piece of a chunk lies, and how many elements it has.
  struct Place {
    char* data;
    size_t count;
  };
  template <class Env>
  PYCOMM_KERNEL_INLINE Place place(const Env& env, int chunk, Range piece) const {
    const bool work = chunk < plan.work_chunks;
    const int like = work ? chunk : plan.scratch_like[chunk - plan.work_chunks];
    const Range whole = chunk_of(count, plan.work_chunks, like, sizeof(Code));
    const Range part = part_of(whole, env.blocks(), env.block(), sizeof(Code));
    const size_t begin = part.begin + (piece.begin < part.size() ? piece.begin : part.size());
    const size_t end = part.begin + (piece.end < part.size() ? piece.end : part.size());
    if (work) return {tensor + begin * sizeof(Code), end - begin};
    const size_t each = chunk_of(count, plan.work_chunks, 0, sizeof(Code)).size() * sizeof(Code);
    char* const base =
        scratch + static_cast<size_t>(chunk - plan.work_chunks) * ((each + 63) / 64 * 64);
    return {base + (begin - whole.begin) * sizeof(Code), end - begin};
  }

  template <class Env>
  PYCOMM_KERNEL_INLINE char* slot(const Env& env, int owner, int writer, uint32_t number) const {
    const size_t lane = env.block() * group.world_size + static_cast<size_t>(writer);
    return group.lanes[owner] + (lane * kLaneSlots + number % kLaneSlots) * lane_slot_bytes(group);
  }

  template <class Env>
  PYCOMM_KERNEL_INLINE bool run(const Env& env, AllReduceBlock& block, const PlanStep& step,
                                Range piece) const {
    switch (step.op) {
      case PlanOp::send:
        return send(env, block, step, piece);
      case PlanOp::recv:
        return receive(env, block, step, piece);
      case PlanOp::fold:
      case PlanOp::reduce:
        return add(env, block, step, piece);
      case PlanOp::copy:
        env.each_thread([&](int thread) {
          const Place from = place(env, step.source, piece), to = place(env, step.target, piece);
          copy_share<Code>(env, from.data, to.data, to.count, place_in_block(env, thread));
        });
        env.barrier();
    }
    return true;
  }

  template <class Env>
  PYCOMM_KERNEL_INLINE bool send(const Env& env, AllReduceBlock& block, const PlanStep& step,
                                 Range piece) const {
    PeerFlags& own = *group.flags[group.rank];
    const size_t b = env.block();
    env.each_thread([&](int thread) {
      if (thread != 0) return;
      const uint32_t enough = own.lane_sent[b][step.peer] - (kLaneSlots - 1);
      uint64_t found;
      if (!wait_for(env, group, &own.taken[b][step.peer], enough, step.peer, &found)) {
        block.peers.failed = 1;
      }
    });
    env.barrier();
    if (block.peers.failed != 0) return false;
    env.each_thread([&](int thread) {
      const Place from = place(env, step.target, piece);
      char* const to = slot(env, step.peer, group.rank, own.lane_sent[b][step.peer]);
      if (thread == 0) env.store(to, signature);
      copy_share<Code>(env, from.data, to + kSlotHeaderBytes, from.count,
                       place_in_block(env, thread));
    });
    env.barrier();
    env.each_thread([&](int thread) {
      if (thread != 0) return;
      const uint32_t number = ++own.lane_sent[b][step.peer];
      env.store_release(&group.flags[step.peer]->sent[b][group.rank], uint64_t{number});
    });
    return true;
  }

  // Waits for the next piece from `peer` and compares signatures.
  template <class Env>
  PYCOMM_KERNEL_INLINE bool await(const Env& env, int peer) const {
    PeerFlags& own = *group.flags[group.rank];
    const uint32_t taken = own.lane_taken[env.block()][peer];
    uint64_t found;
    if (!wait_for(env, group, &own.sent[env.block()][peer], taken + 1, peer, &found)) return false;
    const auto theirs = env.template load<uint32_t>(slot(env, group.rank, peer, taken));
    if (theirs == signature) return true;
    report(env, group, PeerStatus::mismatch, peer, theirs);
    return false;
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE void give_back(const Env& env, int peer) const {
    const uint32_t number = ++group.flags[group.rank]->lane_taken[env.block()][peer];
    env.store_release(&group.flags[peer]->taken[env.block()][group.rank], uint64_t{number});
  }
  template <class Env>
  PYCOMM_KERNEL_INLINE char* arrived_piece(const Env& env, int peer) const {
    const uint32_t taken = group.flags[group.rank]->lane_taken[env.block()][peer];
    return slot(env, group.rank, peer, taken) + kSlotHeaderBytes;
  }

  template <class Env>
  PYCOMM_KERNEL_INLINE bool receive(const Env& env, AllReduceBlock& block, const PlanStep& step,
                                    Range piece) const {
    env.each_thread([&](int thread) {
      if (thread == 0 && !await(env, step.peer)) block.peers.failed = 1;
    });
    env.barrier();
    if (block.peers.failed != 0) return false;
    env.each_thread([&](int thread) {
      const Place to = place(env, step.target, piece);
      copy_share<Code>(env, arrived_piece(env, step.peer), to.data, to.count,
                       place_in_block(env, thread));
    });
    env.barrier();
    env.each_thread([&](int thread) {
      if (thread == 0) give_back(env, step.peer);
    });
    env.barrier();  // other threads read in the next step what was raised
    return true;
  }

  template <class Env>
  PYCOMM_KERNEL_INLINE bool add(const Env& env, AllReduceBlock& block, const PlanStep& step,
                                Range piece) const {
    const bool awaits = step.op == PlanOp::fold;
    const uint8_t* const operands = plan.operands + step.first_operand;
    env.each_thread([&](int thread) {
      if (thread == 0) prepare(env, block.sum, step, piece);
      if (!awaits || thread >= step.operand_count || operands[thread] == group.rank) return;
      if (!await(env, operands[thread])) block.peers.failed = 1;
    });
    env.barrier();
    if (block.peers.failed != 0) return false;
    env.each_thread([&](int thread) {
      reduce_share_by_op<Format>(env, block.sum, place_in_block(env, thread));
    });
    env.barrier();
    env.each_thread([&](int thread) {
      if (!awaits || thread >= step.operand_count || operands[thread] == group.rank) return;
      give_back(env, operands[thread]);
    });
    env.barrier();
    return true;
  }

  template <class Env>
  PYCOMM_KERNEL_INLINE void prepare(const Env& env, ReduceArguments& sum, const PlanStep& step,
                                    Range piece) const {
    const Place target = place(env, step.target, piece), own = place(env, step.source, piece);
    sum.op = op;
    sum.divisor = step.completes ? divisor : 1;
    sum.count = target.count;
    sum.target_count = 1;
    sum.targets[0] = target.data;
    if (step.op == PlanOp::reduce) {
      sum.source_count = 2;
      sum.sources[0] = step.peer ? own.data : target.data;
      sum.sources[1] = step.peer ? target.data : own.data;
    } else {
      sum.source_count = step.operand_count;
      for (int k = 0; k < step.operand_count; ++k) {
        const int rank = plan.operands[step.first_operand + k];
        sum.sources[k] = rank == group.rank ? own.data : arrived_piece(env, rank);
      }
    }
    split_for_vectors(sum, sizeof(Code));
  }
};

}  // namespace
}  // namespace pycomm
