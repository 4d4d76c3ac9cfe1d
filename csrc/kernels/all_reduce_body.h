// SPDX-License-Identifier: MIT
// All_reduce between GPUs in one kernel: one_shot and two_shot, both with the sum in rank order
// 0 .. p-1, so that every rank has the same bits whatever the size and the number of blocks.
//
// one_shot: push the tensor into every peer's slots, meet once, add up what came. Slots have two
// halves that calls use in turn: who begins the next call but one has met everybody in the next, so
// everybody has left this one. (p-1)S written, 1 meeting: for small tensors.
// two_shot: meet, add up one shard from all buffers and push the sum to all, meet again. 2(p-1)/p S
// over each rank's links: for large ones. Block b owns part b of every shard on every rank.
// See device_env.h for what a body is.
#pragma once

#include "kernels/peer_body.h"
#include "kernels/reduce_body.h"

namespace pycomm {
namespace {

struct AllReduceArguments {
  PeerGroup group;
  const char* input;
  char* output;
  char* work;  // two_shot: in group.buffers[rank]
  size_t count;
  int divisor;
  ReduceOp op;
  uint32_t signature;
};

struct AllReduceBlock {
  PeerBlock peers;
  ReduceArguments sum;
};

// Elements [begin, end).
struct Range {
  size_t begin, end;
  PYCOMM_KERNEL_INLINE size_t size() const { return end - begin; }
};

// Part `index` of `parts` of [begin, end), all but the last a multiple of 16 bytes.
PYCOMM_KERNEL_INLINE Range part_of(Range whole, size_t parts, size_t index, size_t element_bytes) {
  const size_t even = (whole.size() + parts - 1) / parts * element_bytes;
  const size_t size = (even + 15) / 16 * 16 / element_bytes;
  const auto at = [&](size_t i) {
    const size_t offset = i * size;
    return whole.begin + (offset < whole.size() ? offset : whole.size());
  };
  return {at(index), at(index + 1)};
}

template <class Code, class Env>
PYCOMM_KERNEL_INLINE void copy_share(const Env& env, const char* from, char* to, size_t count,
                                     GridPlace place) {
  size_t head = (16 - bytes_past_16(to)) % 16 / sizeof(Code);
  if (bytes_past_16(from) != bytes_past_16(to) || bytes_past_16(to) % sizeof(Code) != 0) {
    head = count;
  }
  if (head > count) head = count;
  const size_t vectors = (count - head) * sizeof(Code) / 16;
  const size_t vector_end = head + vectors * 16 / sizeof(Code);
  for (size_t v = place.first; v < vectors; v += place.step) {
    const size_t at = head * sizeof(Code) + v * 16;
    env.store16(to + at, env.load16(from + at));
  }
  for (size_t e = place.first; e < head + count - vector_end; e += place.step) {
    const size_t at = (e < head ? e : vector_end + e - head) * sizeof(Code);
    env.store(to + at, env.template load<Code>(from + at));
  }
}

template <class Env>
PYCOMM_KERNEL_INLINE GridPlace place_in_block(const Env& env, int thread) {
  return {static_cast<size_t>(thread), static_cast<size_t>(env.threads())};
}

template <class Format>
struct OneShotBody {
  using Code = typename Format::Code;
  static constexpr int kThreads = 512;
  static constexpr int kBlocksPerProcessor = 1;
  AllReduceArguments arguments;

  PYCOMM_KERNEL_INLINE char* slot(int owner, uint32_t parity, int writer) const {
    const PeerGroup& group = arguments.group;
    const size_t slot_bytes =
        group.slots_bytes / (2 * static_cast<size_t>(group.world_size)) / 16 * 16;
    const size_t index =
        parity * static_cast<size_t>(group.world_size) + static_cast<size_t>(writer);
    return group.slots[owner] + index * slot_bytes;
  }

  template <class Env>
  PYCOMM_KERNEL_INLINE void operator()(const Env& env) const {
    const AllReduceArguments& a = arguments;
    const PeerGroup& group = a.group;
    auto& block = env.template shared<AllReduceBlock>();
    if (!enter_call(env, group, block.peers)) return;
    take_turn(env, group, block.peers);
    const Range range = part_of({0, a.count}, env.blocks(), env.block(), sizeof(Code));
    const size_t at = range.begin * sizeof(Code);
    env.each_thread([&](int thread) {
      for (int d = 1; d < group.world_size; ++d) {
        const int peer = (group.rank + d) % group.world_size;  // not all to the same one at once
        copy_share<Code>(env, a.input + at, slot(peer, block.peers.parity, group.rank) + at,
                         range.size(), place_in_block(env, thread));
      }
      if (thread == 0) prepare(block, range);
    });
    if (!meet(env, group, block.peers, 1, a.signature)) return;
    env.each_thread([&](int thread) {
      reduce_share_by_op<Format>(env, block.sum, place_in_block(env, thread));
    });
    leave_call(env, group, block.peers, 1);
  }

 private:
  PYCOMM_KERNEL_INLINE void prepare(AllReduceBlock& block, Range range) const {
    const AllReduceArguments& a = arguments;
    const size_t at = range.begin * sizeof(Code);
    ReduceArguments& sum = block.sum;
    sum.op = a.op;
    sum.divisor = a.divisor;
    sum.count = range.size();
    sum.source_count = a.group.world_size;
    sum.target_count = 1;
    sum.targets[0] = a.output + at;
    for (int r = 0; r < a.group.world_size; ++r) {
      sum.sources[r] =
          r == a.group.rank ? a.input + at : slot(a.group.rank, block.peers.parity, r) + at;
    }
    split_for_vectors(sum, sizeof(Code));
  }
};

template <class Format>
struct TwoShotBody {
  using Code = typename Format::Code;
  static constexpr int kThreads = 512;
  static constexpr int kBlocksPerProcessor = 1;
  AllReduceArguments arguments;

  // Part b of shard s.
  PYCOMM_KERNEL_INLINE Range part(int shard, size_t blocks, size_t block) const {
    const auto ranks = static_cast<size_t>(arguments.group.world_size);
    const Range own =
        part_of({0, arguments.count}, ranks, static_cast<size_t>(shard), sizeof(Code));
    return part_of(own, blocks, block, sizeof(Code));
  }

  template <class Env>
  PYCOMM_KERNEL_INLINE void operator()(const Env& env) const {
    const AllReduceArguments& a = arguments;
    const PeerGroup& group = a.group;
    auto& block = env.template shared<AllReduceBlock>();
    if (!enter_call(env, group, block.peers)) return;
    if (a.input != a.work) copy_parts(env, a.input, a.work);
    env.each_thread([&](int thread) {
      if (thread == 0) prepare(block, part(group.rank, env.blocks(), env.block()));
    });
    if (!meet(env, group, block.peers, 1, a.signature)) return;
    env.each_thread([&](int thread) {
      reduce_share_by_op<Format>(env, block.sum, place_in_block(env, thread));
    });
    if (!meet(env, group, block.peers, 2, a.signature)) return;
    if (a.output != a.work) copy_parts(env, a.work, a.output);
    leave_call(env, group, block.peers, 2);
  }

 private:
  template <class Env>
  PYCOMM_KERNEL_INLINE void copy_parts(const Env& env, const char* from, char* to) const {
    env.each_thread([&](int thread) {
      for (int shard = 0; shard < arguments.group.world_size; ++shard) {
        const Range range = part(shard, env.blocks(), env.block());
        const size_t at = range.begin * sizeof(Code);
        copy_share<Code>(env, from + at, to + at, range.size(), place_in_block(env, thread));
      }
    });
  }

  PYCOMM_KERNEL_INLINE void prepare(AllReduceBlock& block, Range range) const {
    const AllReduceArguments& a = arguments;
    const size_t at =
        static_cast<size_t>(a.work - a.group.buffers[a.group.rank]) + range.begin * sizeof(Code);
    ReduceArguments& sum = block.sum;
    sum.op = a.op;
    sum.divisor = a.divisor;
    sum.count = range.size();
    sum.source_count = sum.target_count = a.group.world_size;
    for (int r = 0; r < a.group.world_size; ++r) {
      sum.sources[r] = a.group.buffers[r] + at;
      sum.targets[r] = a.group.buffers[r] + at;
    }
    split_for_vectors(sum, sizeof(Code));
  }
};

}  // namespace
}  // namespace pycomm
