// SPDX-License-Identifier: MIT
#include "engine/device_words.h"

#include <mutex>
#include <thread>
#include <vector>

#include "base/deadline.h"

namespace pycomm {
namespace {

// Later than any piece, and far from where the comparison of streams, which is cyclic, turns over.
constexpr uint64_t kReleased = uint64_t{1} << 62;
constexpr size_t kLineWords = kCacheLineBytes / sizeof(uint64_t);

static_assert(offsetof(PeerControl, abort) == 0 && offsetof(PeerControl, status) == 8);

size_t whole_pages(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }
// ready by rank, done, ended by rank, broken, closed and control by rank.
size_t lines_for(int world_size) { return 4 * static_cast<size_t>(world_size) + 2; }
// The words that one rank reads lie together.
size_t row_words(int world_size) {
  return (static_cast<size_t>(world_size) + kLineWords - 1) / kLineWords * kLineWords;
}
// What streams see; the tickets behind it are the threads' alone.
size_t registered_bytes(int world_size) {
  return whole_pages(lines_for(world_size) * kCacheLineBytes + 2 * static_cast<size_t>(world_size) *
                                                                   row_words(world_size) *
                                                                   sizeof(uint64_t));
}

}  // namespace

size_t DeviceWords::bytes_for(int world_size) {
  return registered_bytes(world_size) +
         whole_pages(kDeviceTicketsMax * static_cast<size_t>(world_size) * kCacheLineBytes);
}

DeviceWords::DeviceWords(Device& device, Mapping memory, int rank, int world_size)
    : device_(device), memory_(std::move(memory)), rank_(rank), world_size_(world_size) {
  if (Failure failure =
          device_.register_host(memory_.data(), registered_bytes(world_size), &registered_)) {
    throw CommError(failure);
  }
}

void DeviceWords::unregister() { (void)device_.unregister_host(registered_); }

bool DeviceWords::reached(const uint64_t* word, uint64_t value) {
  const uint64_t now =
      std::atomic_ref(*const_cast<uint64_t*>(word)).load(std::memory_order_acquire);
  return static_cast<int64_t>(now - value) >= 0;
}

bool DeviceWords::await_end(uint64_t piece, std::chrono::nanoseconds patience,
                            const std::function<bool()>& in_vain) const {
  const auto until = Deadline::after(patience);
  auto next_look = Deadline::after(kSleepSlice);
  while (!has_ended(rank_, piece) && !until.expired()) {
    std::this_thread::sleep_for(kAttendNap);
    if (!next_look.expired()) continue;
    if (in_vain()) return false;
    next_look = Deadline::after(kSleepSlice);
  }
  return has_ended(rank_, piece);
}

uint64_t DeviceWords::last_ready(int rank) const {
  return std::atomic_ref(*line(rank)).load(std::memory_order_acquire);
}

PeerFault DeviceWords::fault() const {
  return unpack_fault(
      std::atomic_ref(line(3 * world_size_ + 2 + rank_)[1]).load(std::memory_order_acquire));
}

Failure DeviceWords::explain_fault() const {
  const PeerFault found = fault();
  if (found.status == PeerStatus::timed_out) {
    return {FailureKind::timeout,
            str("timeout on the GPU of rank ", rank_, ": its kernel waited for that of rank ",
                found.peer, ", which did not come"),
            {found.peer}};
  }
  if (found.status == PeerStatus::mismatch) {
    return {FailureKind::mismatch,
            str("the GPU of rank ", rank_, " met that of rank ", found.peer,
                " in another collective; graphs must be replayed in the same order on all ranks"),
            {found.peer}};
  }
  return {};
}

uint64_t* DeviceWords::line(int index) const {
  return reinterpret_cast<uint64_t*>(memory_.data() + static_cast<size_t>(index) * kCacheLineBytes);
}

uint64_t* DeviceWords::pair(int phase, int reader, int writer) const {
  const auto row = static_cast<size_t>(phase * world_size_ + reader);
  return line(static_cast<int>(lines_for(world_size_))) + row * row_words(world_size_) + writer;
}

uint64_t* DeviceWords::on_device(const uint64_t* word) const {
  const auto offset = reinterpret_cast<const std::byte*>(word) - memory_.data();
  return reinterpret_cast<uint64_t*>(static_cast<std::byte*>(registered_.device) + offset);
}

DeviceWords::Ticket& DeviceWords::ticket_of(int rank, uint64_t number) const {
  const size_t index = static_cast<size_t>(rank) * kDeviceTicketsMax + number % kDeviceTicketsMax;
  return *reinterpret_cast<Ticket*>(memory_.data() + registered_bytes(world_size_) +
                                    index * kCacheLineBytes);
}

// A peer reads this rank's ticket of a call when it has published its own. So to have made the call
// whose ticket will be written over is not enough: it must have begun the one after it.
int DeviceWords::laggard(uint64_t ticket) const {
  if (ticket <= kDeviceTicketsMax) return -1;
  const uint64_t begun = ticket - kDeviceTicketsMax + 1;
  for (int peer = 0; peer < world_size_; ++peer) {
    const uint64_t last = ticket_of(peer, begun).number.load(std::memory_order_acquire);
    if (peer != rank_ && last < begun) return peer;
  }
  return -1;
}

void DeviceWords::publish(uint64_t ticket, const OpSignature& signature) {
  Ticket& mine = ticket_of(rank_, ticket);
  const auto words = signature.pack();
  for (size_t i = 0; i < words.size(); ++i) {
    mine.signature[i].store(words[i], std::memory_order_relaxed);
  }
  mine.number.store(ticket, std::memory_order_seq_cst);
}

std::optional<OpSignature> DeviceWords::published(int peer, uint64_t ticket) const {
  const Ticket& theirs = ticket_of(peer, ticket);
  if (theirs.number.load(std::memory_order_seq_cst) != ticket) return {};
  std::array<uint64_t, 4> words{};
  for (size_t i = 0; i < words.size(); ++i) {
    words[i] = theirs.signature[i].load(std::memory_order_acquire);
  }
  return OpSignature::unpack(words);
}

void DeviceWords::close() {
  std::atomic_ref(*line(2 * world_size_ + 2 + rank_)).store(1, std::memory_order_release);
}

bool DeviceWords::all_closed() const {
  for (int rank = 0; rank < world_size_; ++rank) {
    if (!reached(line(2 * world_size_ + 2 + rank), 1)) return false;
  }
  return true;
}

void DeviceWords::break_up() {
  const auto store = [](uint64_t* word) {
    std::atomic_ref(*word).store(kReleased, std::memory_order_release);
  };
  store(line(2 * world_size_ + 1));  // before any stream can go on because of it
  for (int rank = 0; rank < world_size_; ++rank) {
    std::atomic_ref(*line(3 * world_size_ + 2 + rank)).store(1, std::memory_order_release);
    store(line(rank));
    for (int writer = 0; writer < world_size_; ++writer) {
      store(pair(0, rank, writer));
      store(pair(1, rank, writer));
    }
  }
  store(line(world_size_));
}

bool DeviceWords::broken() const { return reached(line(2 * world_size_ + 1), kReleased); }

void keep_for_ever(std::shared_ptr<DeviceWords> words) {
  static std::mutex mutex;
  static auto* const kept = new std::vector<std::shared_ptr<DeviceWords>>;
  const std::lock_guard lock(mutex);
  kept->push_back(std::move(words));
}

}  // namespace pycomm
