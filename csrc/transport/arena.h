// SPDX-License-Identifier: MIT
// Memory of this process that the ranks of its host can map: tensors in it are reduced in place.
//
// One memfd a process, large, sparse and mapped once, made with the first use. Its descriptor goes
// to every peer at set-up of a group (shm.h); a peer that is told an offset reads and writes there
// through a mapping of its own (peer_arena.h). Nothing has a name in the file system and the memory
// goes with the last process that maps it.
//
// A page's first touch costs more than a copy of it, so blocks get their pages when they are given
// out, all at once, and free blocks keep theirs for the next one. allocate() answers nullptr, and
// the caller takes ordinary memory, where pages cannot be had: that is the place where a machine or
// container runs out of memory in order, instead of by a signal at some later store.
//
// After fork the child has a private copy of the blocks that were given out, at the same addresses,
// and no arena until it makes a group: what it allocates is ordinary memory. See docs/arena.md.
//
// Any thread, any time, also in destructors of static objects: the arena is never destroyed.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "base/fd.h"
#include "transport/address.h"
#include "transport/arena_ranges.h"

namespace pycomm {

struct ArenaStatistics {
  size_t capacity_bytes = 0;  // 0: there is no arena here
  size_t used_bytes = 0;      // given out
  size_t used_peak_bytes = 0;
  size_t touched_bytes = 0;      // has pages: given out or kept for later
  size_t quarantined_bytes = 0;  // given back, but never given out again
  uint64_t blocks = 0;           // given out so far
  uint64_t fallbacks = 0;        // asked for and not to be had
};

// The arena's first page, which is never given out. pycomm/doctor/arenas.py reads it too.
struct ArenaHeader {
  uint64_t magic = kMagic;
  uint64_t capacity = 0;
  Token token{};  // tells arenas apart
  int64_t pid = 0;
  ArenaStatistics statistics;  // of now; written without a lock that readers could take

  static constexpr uint64_t kMagic = 0x31414e4552416370;  // "pcARENA1"
};
static_assert(sizeof(ArenaHeader) == 96);

class Arena {
 public:
  // Made at the first call, with PYCOMM_ARENA_BYTES of capacity, 0 meaning none; the default is
  // half of the memory there is.
  static Arena& of_process();
  // The same, but a forked child gets one of its own: it makes a group, so it is a rank.
  static Arena& for_group();
  // Whose free() takes this: of_process() or, in a forked child, also what it inherited. nullptr:
  // ordinary memory.
  static Arena* owner_of(const void* data) noexcept;
  // For tests. Must outlive everything that was allocated from it.
  explicit Arena(size_t capacity_bytes);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  // A block of whole pages with undefined content, or nullptr: too little left, no arena, or a
  // forked child.
  std::byte* allocate(size_t bytes);
  // Takes back what allocate() returned; also in a forked child, where it frees the copy.
  void free(std::byte* block);
  // Whether all of it lies where peers can reach it. Lock-free. False in a forked child.
  bool holds(const void* data, size_t bytes) const noexcept {
    return within(data, bytes, shared_bytes_.load(std::memory_order_relaxed));
  }
  // Whether it may be freed here: like holds(), but true in a forked child too.
  bool owns(const void* data) const noexcept { return within(data, 1, capacity_); }
  // What peers call it. Only for what holds().
  size_t offset_of(const void* data) const noexcept {
    return static_cast<size_t>(static_cast<const std::byte*>(data) - base_);
  }
  // The block around `data` is never given out again, also after it is freed: a peer may still use
  // it.
  void quarantine(const void* data);
  // Gives the pages of all free blocks back to the system; returns how many bytes that were.
  size_t trim();

  // -1: no arena, nothing to pass to peers. The arena's own.
  int fd() const noexcept { return fd_.get(); }
  const Token& token() const noexcept { return token_; }
  std::byte* base() const noexcept { return base_; }
  ArenaStatistics statistics() const;

 private:
  friend struct ArenaFork;
  bool within(const void* data, size_t bytes, size_t end) const noexcept {
    const auto offset = reinterpret_cast<uintptr_t>(data) - reinterpret_cast<uintptr_t>(base_);
    return offset < end && bytes <= end - offset;
  }
  bool make(size_t capacity_bytes);
  bool have_memory_for(size_t bytes);
  bool get_pages(size_t offset, size_t bytes) const;
  void drop_pages(size_t offset, size_t bytes) const;
  void count();

  Arena* inherited_ = nullptr;  // a forked child's: the one its parent had
  std::byte* base_ = nullptr;
  size_t capacity_ = 0;
  std::atomic<size_t> shared_bytes_{0};  // the capacity, but 0 in a forked child
  Fd fd_;
  Token token_{};
  mutable std::mutex mutex_;  // of all below; held across fork
  ArenaRanges ranges_;
  size_t granted_ = 0;  // fresh bytes that may be touched before memory is looked at again
  ArenaStatistics statistics_;
};

}  // namespace pycomm
