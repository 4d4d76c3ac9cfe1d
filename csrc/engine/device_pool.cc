// SPDX-License-Identifier: MIT
#include "engine/device_pool.h"

#include <algorithm>
#include <thread>

namespace pycomm {
namespace {

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

size_t slots_of(int rank) { return static_cast<size_t>(kInSlots + (rank == 0 ? kResultSlots : 0)); }

size_t all_bytes(int world_size, size_t slot_bytes) {
  size_t sum = 0;
  for (int rank = 0; rank < world_size; ++rank) {
    sum += round_up(slots_of(rank) * slot_bytes, kDevicePoolStep);
  }
  return sum;
}

constexpr size_t kTrialBytes = 4096;

int mark_of(int rank) { return rank % 251 + 1; }

}  // namespace

size_t DevicePool::slot_bytes_for(int world_size, size_t pool_bytes) {
  size_t bytes = kDeviceSlotBytesMax;
  while (bytes > kDeviceSlotBytesMin && all_bytes(world_size, bytes) > pool_bytes) {
    bytes -= kDeviceSlotBytesMin;
  }
  return bytes;
}

DevicePool::DevicePool(Device& device, int rank, int world_size, ShareKind kind, size_t slot_bytes)
    : device_(device),
      rank_(rank),
      kind_(kind),
      slot_bytes_(slot_bytes),
      memory_(static_cast<size_t>(world_size)) {}

Failure DevicePool::connect(DeviceRendezvous& rendezvous, Device& device, DeviceWords& words,
                            int rank, const std::vector<DeviceCard>& cards, size_t pool_bytes,
                            std::unique_ptr<DevicePool>* out) {
  const auto world_size = static_cast<int>(cards.size());
  const size_t slot_bytes = slot_bytes_for(world_size, pool_bytes);
  Failure why{FailureKind::system, "no way to share memory of the GPU", {}};
  uint64_t piece = 0;  // of the words, which only grow
  for (const ShareKind kind : {ShareKind::descriptor, ShareKind::ipc}) {
    const bool all = std::all_of(cards.begin(), cards.end(), [kind](const DeviceCard& card) {
      return kind == ShareKind::descriptor ? card.descriptors : card.ipc;
    });
    if (!all) continue;
    std::unique_ptr<DevicePool> pool(new DevicePool(device, rank, world_size, kind, slot_bytes));
    why = pool->share(rendezvous);
    if (!why) why = pool->try_it(rendezvous, words, ++piece);
    if (!why) {
      *out = std::move(pool);
      return {};
    }
    if (words.broken()) break;  // whoever did not come to the end keeps what it has
    pool->close_imported();
    (void)rendezvous.agree({});
    pool->close_own();
  }
  return why;
}

// Allocates, tells the others, maps theirs.
Failure DevicePool::share(DeviceRendezvous& rendezvous) {
  SharedAllocation& mine = memory_[static_cast<size_t>(rank_)];
  ShareHandle handle;
  Failure failure = device_.allocate_shared(kind_, slots_of(rank_) * slot_bytes_, &mine);
  if (!failure) failure = device_.export_shared(mine, &handle);
  if (const auto why = rendezvous.agree(failure); !why.empty()) {
    return {FailureKind::system, why, {}};
  }
  struct Handle {
    uint64_t bytes;
    std::array<std::byte, 64> ipc;
  };
  const auto handles = rendezvous.gather(Handle{handle.bytes, handle.ipc});
  std::vector<std::vector<Fd>> passed(memory_.size());
  if (kind_ == ShareKind::descriptor) {
    if (Failure not_passed = rendezvous.pass({handle.descriptor.get()}, &passed)) return not_passed;
  }
  for (size_t rank = 0; rank < memory_.size() && !failure; ++rank) {
    if (static_cast<int>(rank) == rank_) continue;
    ShareHandle theirs;
    theirs.kind = kind_;
    theirs.bytes = handles[rank].bytes;
    theirs.ipc = handles[rank].ipc;
    if (!passed[rank].empty()) theirs.descriptor = std::move(passed[rank].front());
    failure = device_.import_shared(theirs, &memory_[rank]);
  }
  const auto why = rendezvous.agree(failure);
  return why.empty() ? Failure{} : Failure{FailureKind::system, why, {}};
}

// A round trip: whatever the attributes say, this is what has to work.
Failure DevicePool::try_it(DeviceRendezvous& rendezvous, DeviceWords& words, uint64_t piece) {
  void* stream = nullptr;
  Failure failure = device_.create_stream(false, &stream);
  if (!failure) {
    failure = write_and_read(words, piece, stream);
    (void)device_.destroy_stream(stream);
  }
  const auto why = rendezvous.agree(failure);
  return why.empty() ? Failure{} : Failure{FailureKind::system, why, {}};
}

Failure DevicePool::write_and_read(DeviceWords& words, uint64_t piece, void* stream) {
  HostAllocation host;
  if (Failure failure = device_.allocate_pinned(memory_.size() * kTrialBytes, &host)) {
    return failure;
  }
  Failure failure = device_.fill(stream, in(rank_, 0), mark_of(rank_), kTrialBytes);
  if (!failure) failure = device_.write_value(stream, words.ready(rank_), piece);
  for (int rank = 0; static_cast<size_t>(rank) < memory_.size() && !failure; ++rank) {
    failure = device_.wait_value(stream, words.ready(rank), piece);
    const auto offset = static_cast<size_t>(rank) * kTrialBytes;
    if (!failure) {
      failure = device_.copy(stream, static_cast<std::byte*>(host.device) + offset, in(rank, 0),
                             kTrialBytes);
    }
  }
  if (!failure) failure = device_.write_value(stream, words.ended(rank_), piece);
  const auto patience = Deadline::after(kDeviceSetupTimeout);
  while (!failure && !words.has_ended(rank_, piece) && !patience.expired()) {
    std::this_thread::sleep_for(kAttendNap);
  }
  if (!failure && !words.has_ended(rank_, piece)) {
    words.break_up();
    abandon();
    return {FailureKind::system, "a round trip over the GPU's memory did not end in time", {}};
  }
  for (int rank = 0; static_cast<size_t>(rank) < memory_.size() && !failure; ++rank) {
    const auto* from =
        static_cast<const std::byte*>(host.host) + static_cast<size_t>(rank) * kTrialBytes;
    const auto mark = static_cast<std::byte>(mark_of(rank));
    if (!std::all_of(from, from + kTrialBytes, [mark](std::byte b) { return b == mark; })) {
      failure = {FailureKind::system,
                 str("read something else than rank ", rank, " wrote to the GPU's memory"),
                 {}};
    }
  }
  (void)device_.release_pinned(host);
  return failure;
}

void DevicePool::close_imported() {
  for (SharedAllocation& one : memory_) {
    if (!one.data || !one.imported) continue;
    (void)device_.close_shared(one);
    one = {};
  }
}

void DevicePool::close_own() {
  SharedAllocation& mine = memory_[static_cast<size_t>(rank_)];
  if (mine.data) (void)device_.close_shared(mine);
  mine = {};
}

DevicePool::~DevicePool() {
  close_imported();
  if (kind_ == ShareKind::descriptor) close_own();
}

}  // namespace pycomm
