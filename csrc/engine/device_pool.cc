// SPDX-License-Identifier: MIT
#include "engine/device_pool.h"

#include <algorithm>
#include <map>

namespace pycomm {
namespace {

size_t round_up(size_t bytes, size_t unit) { return (bytes + unit - 1) / unit * unit; }

// On the GPU that has most.
size_t largest_share(std::span<const DeviceCard> cards, const PoolLayout& layout) {
  std::map<std::string, size_t> shares;
  size_t largest = 0;
  for (size_t rank = 0; rank < cards.size(); ++rank) {
    size_t& share = shares[cards[rank].uuid];
    share += round_up(layout.bytes_of(static_cast<int>(rank)), kDevicePoolStep);
    largest = std::max(largest, share);
  }
  return largest;
}

constexpr size_t kTrialBytes = 4096;

int mark_of(int rank) { return rank % 251 + 1; }

}  // namespace

PoolLayout PoolLayout::choose(std::span<const DeviceCard> cards, size_t pool_bytes,
                              const std::function<size_t(size_t)>& peer_bytes) {
  PoolLayout layout;
  layout.own_results = !on_one_gpu(cards);
  for (size_t bytes = kDeviceSlotBytesMax;; bytes -= kDeviceSlotBytesMin) {
    layout.slot_bytes = bytes;
    layout.peer_bytes = peer_bytes(bytes);
    if (bytes == kDeviceSlotBytesMin || largest_share(cards, layout) <= pool_bytes) return layout;
  }
}

size_t PoolLayout::bytes_of(int rank) const {
  const int slots = kInSlots + (own_results || rank == 0 ? kResultSlots : 0);
  return static_cast<size_t>(slots) * slot_bytes + peer_bytes;
}

DevicePool::DevicePool(Device& device, int rank, int world_size, ShareKind kind,
                       const PoolLayout& layout)
    : device_(device),
      rank_(rank),
      kind_(kind),
      layout_(layout),
      memory_(static_cast<size_t>(world_size)) {}

Failure DevicePool::connect(DeviceRendezvous& rendezvous, Device& device, DeviceWords& words,
                            int rank, const std::vector<DeviceCard>& cards,
                            const PoolLayout& layout, std::unique_ptr<DevicePool>* out) {
  const auto world_size = static_cast<int>(cards.size());
  Failure why{FailureKind::system, "no way to share memory of the GPU", {}};
  uint64_t piece = 0;  // of the words, which only grow
  for (const ShareKind kind : {ShareKind::descriptor, ShareKind::ipc}) {
    const bool all = std::all_of(cards.begin(), cards.end(), [kind](const DeviceCard& card) {
      return kind == ShareKind::descriptor ? card.descriptors : card.ipc;
    });
    if (!all) continue;
    std::unique_ptr<DevicePool> pool(new DevicePool(device, rank, world_size, kind, layout));
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
  Failure failure = device_.allocate_shared(kind_, layout_.bytes_of(rank_), &mine);
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
  HostAllocation seen;
  Failure failure = device_.create_stream(false, &stream);
  if (!failure) failure = device_.allocate_pinned(memory_.size() * kTrialBytes, &seen);
  if (!failure)
    failure = write_and_read(words, piece, stream, static_cast<std::byte*>(seen.device));
  if (!failure && !words.await_end(piece, kDeviceSetupTimeout, [&] { return rendezvous.lost(); })) {
    failure = {FailureKind::system, "a round trip over the GPU's memory did not end in time", {}};
  }
  if (failure) {  // peers wait, and the stream may still use what it was given
    words.break_up();
    abandon();
  } else if (!words.broken()) {  // or else whoever did that says why
    failure = check_marks(static_cast<const std::byte*>(seen.host));
  }
  if (stream) (void)device_.destroy_stream(stream);
  if (seen.host && !words.broken()) (void)device_.release_pinned(seen);
  const auto why = rendezvous.agree(failure);
  return why.empty() ? Failure{} : Failure{FailureKind::system, why, {}};
}

// Writes this rank's mark and reads all others'.
Failure DevicePool::write_and_read(DeviceWords& words, uint64_t piece, void* stream,
                                   std::byte* seen) {
  Failure failure = device_.fill(stream, in(rank_, 0), mark_of(rank_), kTrialBytes);
  if (!failure) failure = device_.write_value(stream, words.ready(rank_), piece);
  for (int rank = 0; static_cast<size_t>(rank) < memory_.size() && !failure; ++rank) {
    failure = device_.wait_value(stream, words.ready(rank), piece);
    if (!failure) failure = device_.copy(stream, seen, in(rank, 0), kTrialBytes);
    seen += kTrialBytes;
  }
  return failure ? failure : device_.write_value(stream, words.ended(rank_), piece);
}

Failure DevicePool::check_marks(const std::byte* seen) const {
  for (int rank = 0; static_cast<size_t>(rank) < memory_.size(); ++rank, seen += kTrialBytes) {
    const auto mark = static_cast<std::byte>(mark_of(rank));
    if (std::all_of(seen, seen + kTrialBytes, [mark](std::byte b) { return b == mark; })) continue;
    return {FailureKind::system,
            str("read something else than rank ", rank, " wrote to the GPU's memory"),
            {}};
  }
  return {};
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
