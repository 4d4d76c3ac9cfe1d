// SPDX-License-Identifier: MIT
#include "transport/peer_arena.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <map>

#include "base/limits.h"
#include "transport/arena.h"
#include "transport/arena_fork.h"

namespace pycomm {
namespace {

// The arenas in use, by token. Lives as long as the process, as links may.
struct Opened {
  std::mutex mutex;
  std::map<Token, std::weak_ptr<PeerArena>> arenas;

  static Opened& get() {
    static Opened* const opened = new Opened;
    return *opened;
  }
};

}  // namespace

std::mutex& PeerArena::opening() { return Opened::get().mutex; }

std::shared_ptr<PeerArena> PeerArena::open(Fd fd) {
  ArenaHeader header;
  struct stat facts{};
  const int seals = ::fcntl(fd.get(), F_GET_SEALS);
  if (seals < 0 || !(seals & F_SEAL_SHRINK) || ::fstat(fd.get(), &facts) != 0 ||
      ::pread(fd.get(), &header, sizeof(header), 0) != sizeof(header) ||
      header.magic != ArenaHeader::kMagic ||
      header.capacity != static_cast<uint64_t>(facts.st_size)) {
    return nullptr;
  }
  // A token is what the peer says; which file it is the kernel says.
  auto& mine = Arena::of_process();
  struct stat my_facts{};
  const bool is_mine = mine.fd() >= 0 && ::fstat(mine.fd(), &my_facts) == 0 &&
                       my_facts.st_dev == facts.st_dev && my_facts.st_ino == facts.st_ino;
  std::byte* const own = is_mine ? mine.base() : nullptr;
  auto& opened = Opened::get();
  const std::lock_guard lock(opened.mutex);
  std::erase_if(opened.arenas, [](const auto& one) { return one.second.expired(); });
  auto& known = opened.arenas[header.token];
  if (auto again = known.lock(); again && !again->inherited_ && again->own_ == is_mine &&
                                 again->capacity_ == header.capacity) {
    return again;
  }
  std::shared_ptr<PeerArena> made(new PeerArena(std::move(fd), header.token, header.capacity, own));
  known = made;
  return made;
}

PeerArena::PeerArena(Fd fd, Token token, size_t capacity, std::byte* own)
    : fd_(std::move(fd)), token_(token), capacity_(capacity), own_(own != nullptr), base_(own) {
  ArenaFork::add(this);
}

PeerArena::~PeerArena() {
  ArenaFork::remove(this);
  if (own_) return;
  if (auto* const base = base_.load()) ::munmap(base, capacity_);
}

std::byte* PeerArena::at(size_t offset, size_t bytes) {
  if (offset < kPageBytes || offset > capacity_ || bytes > capacity_ - offset) return nullptr;
  auto* base = base_.load(std::memory_order_acquire);
  if (!base) base = map();
  if (!base) return nullptr;
  if (!own_) enter_pages(base, offset, bytes);
  return base + offset;
}

// The kernel enters pages in batches when asked to and one by one at faults by writing. What is no
// whole granule is left to those.
void PeerArena::enter_pages(std::byte* base, size_t offset, size_t bytes) {
  const size_t begin = (offset + kArenaGranuleBytes - 1) / kArenaGranuleBytes;
  const size_t end = (offset + bytes) / kArenaGranuleBytes;
  size_t missing = begin;  // [missing, granule) is to be entered
  for (size_t granule = begin; granule <= end; ++granule) {
    bool enter = false;
    if (granule < end) {
      auto& word = entered_[granule / 64];
      const uint64_t bit = uint64_t{1} << (granule % 64);
      enter = !(word.load(std::memory_order_relaxed) & bit);
      if (enter) word.fetch_or(bit, std::memory_order_relaxed);
    }
    if (enter && granule - missing < kArenaEnterBytesMax / kArenaGranuleBytes) continue;
#ifdef MADV_POPULATE_READ
    if (missing < granule) {
      ::madvise(base + missing * kArenaGranuleBytes, (granule - missing) * kArenaGranuleBytes,
                MADV_POPULATE_READ);
    }
#endif
    missing = enter ? granule : granule + 1;
  }
}

std::byte* PeerArena::map() {
  const std::lock_guard lock(mapping_);
  if (auto* const base = base_.load()) return base;
  if (unmappable_) return nullptr;
  void* const at =
      ::mmap(nullptr, capacity_, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd_.get(), 0);
  unmappable_ = at == MAP_FAILED;
  if (unmappable_) return nullptr;
  entered_.reset(new std::atomic<uint64_t>[capacity_ / kArenaGranuleBytes / 64 + 1]());
  ::madvise(at, capacity_, MADV_HUGEPAGE);
  ::madvise(at, capacity_, MADV_DONTDUMP);  // its owner dumps it
  base_.store(static_cast<std::byte*>(at), std::memory_order_release);
  return base_.load();
}

}  // namespace pycomm
