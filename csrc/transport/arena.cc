// SPDX-License-Identifier: MIT
#include "transport/arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "base/error.h"
#include "base/limits.h"
#include "base/log.h"
#include "transport/arena_fork.h"
#include "transport/host_memory.h"

namespace pycomm {
namespace {

size_t whole_pages(size_t bytes) { return (bytes + kPageBytes - 1) / kPageBytes * kPageBytes; }

// "8G", "512M", "4096"; pycomm/options.py has complained already about anything else.
size_t parse_bytes(const std::string& text) {
  char* end = nullptr;
  const size_t number = std::strtoull(text.c_str(), &end, 10);
  const size_t unit = *end == 'K' ? 1 : *end == 'M' ? 2 : *end == 'G' ? 3 : *end == 'T' ? 4 : 0;
  return number << (10 * unit);
}

size_t wanted_capacity() {
  const char* const given = std::getenv("PYCOMM_ARENA_BYTES");
  size_t wanted = given ? parse_bytes(given) : memory_limit() / 2;
  // Where address space is rationed it is rationed for everybody: each peer's arena takes as much.
  const size_t addresses = address_space_available();
  if (addresses != SIZE_MAX) wanted = std::min(wanted, addresses / kArenaAddressShare);
  return std::min(wanted, file_size_limit()) / kPageBytes * kPageBytes;
}

// Without locks: in a forked child one could be held for ever.
std::atomic<Arena*>& current() {
  static std::atomic<Arena*> arena{new Arena(wanted_capacity())};
  return arena;
}

}  // namespace

Arena& Arena::of_process() { return *current().load(std::memory_order_acquire); }

Arena& Arena::for_group() {
  Arena* const there = &of_process();
  if (there->fd_ || there->capacity_ == 0) return *there;
  auto made = std::make_unique<Arena>(wanted_capacity());
  made->inherited_ = there;
  Arena* expected = there;
  if (!current().compare_exchange_strong(expected, made.get())) return *expected;
  return *made.release();
}

Arena* Arena::owner_of(const void* data) noexcept {
  for (Arena* arena = &of_process(); arena; arena = arena->inherited_) {
    if (arena->owns(data)) return arena;
  }
  return nullptr;
}

Arena::Arena(size_t capacity_bytes) : ranges_(kPageBytes, whole_pages(capacity_bytes)) {
  if (capacity_bytes >= 2 * kPageBytes && make(whole_pages(capacity_bytes))) ArenaFork::add(this);
}

Arena::~Arena() {
  if (!base_) return;
  ArenaFork::remove(this);
  ::munmap(base_, capacity_);
}

bool Arena::make(size_t capacity_bytes) {
  Fd fd(::memfd_create("pycomm arena", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  ArenaHeader header;
  header.capacity = capacity_bytes;
  header.token = token_ = random_token();
  header.pid = ::getpid();
  void* at = MAP_FAILED;
  if (fd && ::ftruncate(fd.get(), static_cast<off_t>(capacity_bytes)) == 0 &&
      ::fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) == 0 &&
      ::pwrite(fd.get(), &header, sizeof(header), 0) == sizeof(header)) {
    at = ::mmap(nullptr, capacity_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE,
                fd.get(), 0);
  }
  if (at == MAP_FAILED) {
    log(LogLevel::info, -1,
        str("no arena of ", capacity_bytes, " bytes: ", std::strerror(errno),
            "; tensors stay in ordinary memory"));
    return false;
  }
  ::madvise(at, capacity_bytes, MADV_HUGEPAGE);  // where the system allows it for shared memory
  base_ = static_cast<std::byte*>(at);
  capacity_ = capacity_bytes;
  fd_ = std::move(fd);
  shared_bytes_.store(capacity_bytes, std::memory_order_relaxed);
  count();
  return true;
}

std::byte* Arena::allocate(size_t bytes) {
  if (bytes == 0 || !fd_) return nullptr;
  std::unique_lock lock(mutex_);
  const auto refuse = [this]() -> std::byte* {
    ++statistics_.fallbacks;
    count();
    return nullptr;
  };
  if (bytes > shared_bytes_.load(std::memory_order_relaxed)) return refuse();
  const auto taken = ranges_.take(whole_pages(bytes));
  if (!taken) return refuse();
  if (taken->fresh_bytes > 0) {
    const bool may = have_memory_for(taken->fresh_bytes);
    // The block is ours already, others need not wait.
    lock.unlock();
    const size_t fresh = taken->offset + taken->bytes - taken->fresh_bytes;
    const bool got = may && get_pages(fresh, taken->fresh_bytes);
    if (may && !got) drop_pages(fresh, taken->fresh_bytes);
    lock.lock();
    if (!got) {
      ranges_.untake(*taken);
      return refuse();
    }
  }
  ++statistics_.blocks;
  count();
  return base_ + taken->offset;
}

// Looking costs as much as touching some pages, so it is done once for many.
bool Arena::have_memory_for(size_t bytes) {
  if (bytes > granted_) {
    const size_t wanted = bytes + kArenaGrantBytes;
    if (memory_available() < wanted + kArenaReserveBytes) return false;
    granted_ = wanted;
  }
  granted_ -= bytes;
  return true;
}

bool Arena::get_pages(size_t offset, size_t bytes) const {
#ifdef MADV_POPULATE_WRITE
  if (::madvise(base_ + offset, bytes, MADV_POPULATE_WRITE) == 0) return true;
  if (errno != EINVAL) return false;
#endif
  return ::fallocate(fd_.get(), 0, static_cast<off_t>(offset), static_cast<off_t>(bytes)) == 0;
}

void Arena::drop_pages(size_t offset, size_t bytes) const {
  ::fallocate(fd_.get(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<off_t>(offset),
              static_cast<off_t>(bytes));
}

void Arena::free(std::byte* block) {
  if (!block) return;
  const std::lock_guard lock(mutex_);
  const size_t bytes = ranges_.give(offset_of(block));
  // In a forked child nobody will use the copy again.
  if (bytes > 0 && !fd_) ::madvise(block, bytes, MADV_DONTNEED);
  count();
}

void Arena::quarantine(const void* data) {
  const std::lock_guard lock(mutex_);
  if (owns(data)) ranges_.quarantine(offset_of(data));
}

size_t Arena::trim() {
  const std::lock_guard lock(mutex_);
  size_t bytes = 0;
  if (!fd_) return bytes;
  while (const auto range = ranges_.drop_free_range()) {
    drop_pages(range->first, range->second);
    bytes += range->second;
  }
  count();
  return bytes;
}

ArenaStatistics Arena::statistics() const {
  const std::lock_guard lock(mutex_);
  return statistics_;
}

// Brings the statistics up to date, here and where other processes can read them.
void Arena::count() {
  statistics_.capacity_bytes = shared_bytes_.load(std::memory_order_relaxed);
  statistics_.used_bytes = ranges_.used_bytes();
  statistics_.used_peak_bytes = std::max(statistics_.used_peak_bytes, statistics_.used_bytes);
  statistics_.touched_bytes = ranges_.touched_bytes();
  statistics_.quarantined_bytes = ranges_.retired_bytes();
  if (fd_) reinterpret_cast<ArenaHeader*>(base_)->statistics = statistics_;
}

}  // namespace pycomm
