// SPDX-License-Identifier: MIT
#include "engine/device_peer_kernels.h"

#include <algorithm>

namespace pycomm {
namespace {

constexpr size_t kFlagsBytes = (sizeof(PeerFlags) + kPageBytes - 1) / kPageBytes * kPageBytes;
// What set-up sums, as bytes; and the words' numbers for it, behind those of the pool.
constexpr size_t kTrialBytes = 4096;
constexpr uint64_t kZeroedPiece = 5, kTriedPiece = 6;

// Of one of the two spaces that a rank has, for direct and for captured work.
struct Space {
  size_t slot_bytes, buffer_bytes, lanes_bytes;

  Space(int world_size, size_t pool_slot_bytes, const PeerPlan& chosen)
      : slot_bytes(
            std::min(pool_slot_bytes / 2, kPeerPushedBytes / static_cast<size_t>(world_size)) /
            kPageBytes * kPageBytes),
        buffer_bytes(2 * pool_slot_bytes),
        lanes_bytes(chosen.plan ? plan_lanes_bytes(world_size, kPeerLanePieceBytes) : 0) {}
  size_t slots_bytes(int world_size) const {
    return 2 * static_cast<size_t>(world_size) * slot_bytes;
  }
  size_t bytes(int world_size) const {
    return kFlagsBytes + slots_bytes(world_size) + buffer_bytes + lanes_bytes;
  }
};

PeerGroup group_in(const DevicePool& pool, int index, int rank, int world_size,
                   const PeerPlan& chosen) {
  const Space space(world_size, pool.slot_bytes(), chosen);
  PeerGroup group;
  group.rank = rank;
  group.world_size = world_size;
  group.slots_bytes = space.slots_bytes(world_size);
  group.buffer_bytes = space.buffer_bytes;
  group.lanes_bytes = space.lanes_bytes;
  for (int r = 0; r < world_size; ++r) {
    char* const base = reinterpret_cast<char*>(pool.peers(r)) +
                       static_cast<size_t>(index) * space.bytes(world_size);
    group.flags[r] = reinterpret_cast<PeerFlags*>(base);
    group.slots[r] = base + kFlagsBytes;
    group.buffers[r] = group.slots[r] + group.slots_bytes;
    group.lanes[r] = group.buffers[r] + group.buffer_bytes;
  }
  return group;
}

uint64_t to_ns(std::chrono::nanoseconds timeout) {
  return static_cast<uint64_t>(std::max<int64_t>(timeout.count(), 1));
}

}  // namespace

size_t PeerKernels::bytes_for(int world_size, size_t slot_bytes, const PeerPlan& chosen) {
  return 2 * Space(world_size, slot_bytes, chosen).bytes(world_size);
}

bool PeerKernels::serve(const Operation& wanted) {
  return wanted.collective == Collective::all_reduce && travels_between_gpus(wanted.dtype) &&
         wanted.op != ReduceOp::premul_sum && supports(wanted.op, wanted.dtype);
}

PeerKernels::PeerKernels(Device& device, const DeviceKernels& kernels, DevicePool& pool,
                         DeviceWords& words, int rank, int world_size, const PeerPlan& chosen)
    : device_(device),
      kernels_(kernels),
      pool_(pool),
      chosen_(chosen),
      direct_(group_in(pool, 0, rank, world_size, chosen)),
      captured_(group_in(pool, 1, rank, world_size, chosen)) {
  direct_.control = captured_.control = words.control();
}

Failure PeerKernels::connect(DeviceRendezvous& rendezvous, Device& device,
                             const DeviceKernels& kernels, DevicePool& pool, DeviceWords& words,
                             int rank, int world_size, const PeerPlan& chosen,
                             std::unique_ptr<PeerKernels>* out) {
  std::unique_ptr<PeerKernels> made(
      new PeerKernels(device, kernels, pool, words, rank, world_size, chosen));
  (void)kernels.load_all_reduce();  // what cannot be loaded cannot be launched, which says so
  void* stream = nullptr;
  HostAllocation seen;
  Failure failure = device.create_stream(false, &stream);
  if (!failure) failure = device.allocate_pinned(2 * kTrialBytes, &seen);
  // Awaits the end of what the stream was given. Without it peers' kernels wait, and the stream may
  // still use the memory.
  const auto end = [&](uint64_t piece) {
    if (!failure) failure = device.write_value(stream, words.ended(rank), piece);
    if (!failure &&
        !words.await_end(piece, kDeviceSetupTimeout, [&] { return rendezvous.lost(); })) {
      failure = {FailureKind::system, "kernels that meet each other's did not end in time", {}};
    }
    if (!failure) return;
    words.break_up();
    pool.abandon();
  };
  const auto agree = [&] {
    const auto why = rendezvous.agree(failure);
    return why.empty() ? Failure{} : Failure{FailureKind::system, why, {}};
  };
  if (!failure) failure = made->zero_flags(stream);
  end(kZeroedPiece);
  Failure why = agree();
  if (!why) {
    failure = made->try_both(static_cast<std::byte*>(seen.device), stream);
    end(kTriedPiece);
    // Of whoever has broken up the words all waits end, and that rank says why.
    if (!words.broken())
      failure = made->check_sums(words, static_cast<const std::byte*>(seen.host));
    why = agree();
  }
  if (stream) (void)device.destroy_stream(stream);
  if (seen.host && !words.broken()) (void)device.release_pinned(seen);
  if (!why) *out = std::move(made);
  return why;
}

Failure PeerKernels::check_sums(const DeviceWords& words, const std::byte* seen) const {
  if (const PeerFault fault = words.fault(); fault.status != PeerStatus::fine) {
    return {FailureKind::system, str("its kernel waited in vain for rank ", fault.peer, "'s"), {}};
  }
  const auto sum = static_cast<std::byte>(direct_.world_size * (direct_.world_size + 1) / 2);
  if (std::all_of(seen, seen + 2 * kTrialBytes, [sum](std::byte one) { return one == sum; })) {
    return {};
  }
  return {FailureKind::system, "a sum over the GPUs' memory came out wrong", {}};
}

Failure PeerKernels::zero_flags(void* stream) const {
  Failure failure = device_.fill(stream, direct_.flags[direct_.rank], 0, kFlagsBytes);
  if (failure) return failure;
  return device_.fill(stream, captured_.flags[captured_.rank], 0, kFlagsBytes);
}

// Every byte of the sum is that of all ranks' numbers from 1, as no byte carries into the next.
Failure PeerKernels::try_both(std::byte* seen, void* stream) const {
  const int rank = direct_.rank;
  AllReduceTask task;
  task.group = direct_;
  task.group.timeout_ns = to_ns(kDeviceSetupTimeout / 3);
  task.dtype = DType::int32;
  task.count = kTrialBytes / sizeof(int32_t);
  task.input = task.output = pool_.in(rank, 0);
  for (const char* algorithm : {kOneShotPlan, kTwoShotPlan}) {
    Failure failure = device_.fill(stream, pool_.in(rank, 0), rank + 1, kTrialBytes);
    if (!failure) failure = launch(task, algorithm, stream);
    if (!failure) failure = device_.copy(stream, seen, pool_.in(rank, 0), kTrialBytes);
    if (failure) return failure;
    seen += kTrialBytes;
  }
  return {};
}

Failure PeerKernels::launch(const AllReduceTask& task, const std::string& algorithm,
                            void* stream) const {
  int error = kLaunched;
  if (algorithm == kOneShotPlan) {
    error = kernels_.all_reduce_one_shot(task, stream);
  } else if (algorithm == kTwoShotPlan) {
    error = kernels_.all_reduce_two_shot(task, stream);
  } else {
    PlanTask plan;
    plan.group = task.group;
    plan.plan = &*chosen_.plan;
    plan.op = task.op;
    plan.dtype = task.dtype;
    plan.divisor = task.divisor;
    plan.tensor = task.output;
    plan.count = task.count;
    // Peers read and write buffers in two_shot alone, between its meetings.
    plan.scratch = task.group.buffers[task.group.rank];
    plan.signature = task.signature;
    error = kernels_.run_plan(plan, stream);
  }
  if (error == kLaunched) return {};
  return {FailureKind::system,
          str("the launch of an all_reduce of ", name_of(task.dtype), " by ", algorithm, " on GPU ",
              device_.facts().index, " failed with CUDA error ", error),
          {}};
}

// The elements of the largest piece.
size_t PeerKernels::piece_of(const PeerGroup& group, size_t count, DType dtype) const {
  if (chosen_.plan) return chosen_.piece_of(count, dtype, group.buffer_bytes);
  if (chosen_.algorithm == kOneShotPlan) return one_shot_count(group, dtype);
  return group.buffer_bytes / size_of(dtype);
}

Failure PeerKernels::all_reduce(const DeviceWork& work, const Launch& how, void* stream) const {
  AllReduceTask task;
  task.group = how.captured ? captured_ : direct_;
  task.group.timeout_ns = to_ns(how.timeout);
  task.op = work.op;
  task.dtype = work.dtype;
  task.divisor = work.op == ReduceOp::avg ? task.group.world_size : 1;
  task.signature = how.signature;
  const size_t piece = piece_of(task.group, work.count, work.dtype);
  const size_t fits_slot = one_shot_count(task.group, work.dtype);
  std::byte* const tensor = work.regions[0].data;
  Failure failure;
  size_t begin = 0;
  do {
    task.count = std::min(piece, work.count - begin);
    task.output = tensor + begin * size_of(work.dtype);
    task.input = task.output;
    const char* const by_size = task.count <= fits_slot ? kOneShotPlan : kTwoShotPlan;
    failure = launch(task, chosen_.algorithm.empty() ? by_size : chosen_.algorithm, stream);
    begin += task.count;
  } while (!failure && begin < work.count);
  return failure;
}

}  // namespace pycomm
