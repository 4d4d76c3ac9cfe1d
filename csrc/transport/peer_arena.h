// SPDX-License-Identifier: MIT
// The arena of another process of this host, as seen from here.
//
// Mapped by the first channel that uses it, once a process however many groups the two have in
// common, and unmapped when the last of these is gone. The ranks that are threads of one process
// get that process's own arena. Any thread. What it points to belongs to the peer, which says for
// how long it may be used.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "base/fd.h"
#include "transport/address.h"

namespace pycomm {

class PeerArena {
 public:
  // From the descriptor that a peer passed at set-up; the same object for the same arena, but in a
  // forked child not the one it inherited. nullptr when it is none, or one that its owner could
  // shrink under us.
  static std::shared_ptr<PeerArena> open(Fd fd);
  ~PeerArena();
  PeerArena(const PeerArena&) = delete;
  PeerArena& operator=(const PeerArena&) = delete;

  // Where the peer's [offset, offset + bytes) is here; nullptr when it is not inside the arena, or
  // the arena cannot be mapped. A range's first use enters its pages into the page table, all at
  // once.
  std::byte* at(size_t offset, size_t bytes);
  size_t capacity() const { return capacity_; }

 private:
  friend struct ArenaFork;
  PeerArena(Fd fd, Token token, size_t capacity, std::byte* own);
  // Held over open() and across fork.
  static std::mutex& opening();
  std::byte* map();
  void enter_pages(std::byte* base, size_t offset, size_t bytes);

  Fd fd_;
  const Token token_;
  const size_t capacity_;
  const bool own_;          // this process's arena, mapped by itself
  bool inherited_ = false;  // by a forked child, which cannot reach the arena through it
  std::atomic<std::byte*> base_{nullptr};
  std::mutex mapping_;
  bool unmappable_ = false;
  // One bit for each kArenaGranuleBytes: its pages were entered into this process's page table.
  std::unique_ptr<std::atomic<uint64_t>[]> entered_;
};

}  // namespace pycomm
