// SPDX-License-Identifier: MIT
#include "transport/arena_fork.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <mutex>
#include <set>

#include "base/limits.h"
#include "base/log.h"
#include "transport/arena.h"
#include "transport/peer_arena.h"

namespace pycomm {

// Handlers cannot be taken back, so what they touch lives as long as the process. The child's part
// makes system calls and reads memory, nothing else: other threads held locks when it was forked.
struct ArenaForkHandlers {
  std::mutex mutex;
  std::set<Arena*> arenas;
  std::set<PeerArena*> peers;
  // The parent reads its end until the child has closed the other, by being done or by dying.
  int ends[2] = {-1, -1};

  static ArenaForkHandlers& get() {
    static ArenaForkHandlers* const all = [] {
      auto* const handlers = new ArenaForkHandlers;
      ::pthread_atfork([] { get().before(); }, [] { get().in_parent(); }, [] { get().in_child(); });
      return handlers;
    }();
    return *all;
  }

  void before() {
    ArenaFork::opening().lock();  // first, as in PeerArena::open()
    mutex.lock();
    bool in_use = false;
    for (Arena* const arena : arenas) {
      ArenaFork::lock(*arena);
      in_use = in_use || ArenaFork::in_use(*arena);
    }
    if (in_use && ::pipe2(ends, O_CLOEXEC) != 0) ends[0] = ends[1] = -1;
  }

  void in_parent() {
    close_end(1);
    if (ends[0] >= 0) wait_for_child();
    close_end(0);
    for (Arena* const arena : arenas) ArenaFork::unlock(*arena);
    mutex.unlock();
    ArenaFork::opening().unlock();
  }

  void wait_for_child() const {
    const auto until = std::chrono::steady_clock::now() + kForkPatience;
    pollfd end{ends[0], POLLIN, 0};
    while (true) {
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
          until - std::chrono::steady_clock::now());
      const int ready = left.count() <= 0 ? 0 : ::poll(&end, 1, static_cast<int>(left.count()));
      if (ready > 0 || (ready < 0 && errno != EINTR)) return;
      if (ready == 0) break;
    }
    log(LogLevel::warning, -1,
        "a forked child has not copied the arena in time; what is written from now on may show "
        "in it");
  }

  void in_child() {
    close_end(0);
    for (PeerArena* const peer : peers) ArenaFork::make_private(*peer);
    for (Arena* const arena : arenas) {
      ArenaFork::make_private(*arena);
      ArenaFork::unlock(*arena);
    }
    close_end(1);
    mutex.unlock();
    ArenaFork::opening().unlock();
  }

  void close_end(int which) {
    if (ends[which] >= 0) ::close(ends[which]);
    ends[which] = -1;
  }
};

void ArenaFork::add(Arena* arena) {
  auto& all = ArenaForkHandlers::get();
  const std::lock_guard lock(all.mutex);
  all.arenas.insert(arena);
}

void ArenaFork::remove(Arena* arena) {
  auto& all = ArenaForkHandlers::get();
  const std::lock_guard lock(all.mutex);
  all.arenas.erase(arena);
}

void ArenaFork::add(PeerArena* arena) {
  auto& all = ArenaForkHandlers::get();
  const std::lock_guard lock(all.mutex);
  all.peers.insert(arena);
}

void ArenaFork::remove(PeerArena* arena) {
  auto& all = ArenaForkHandlers::get();
  const std::lock_guard lock(all.mutex);
  all.peers.erase(arena);
}

std::mutex& ArenaFork::opening() { return PeerArena::opening(); }
void ArenaFork::lock(Arena& arena) { arena.mutex_.lock(); }
void ArenaFork::unlock(Arena& arena) { arena.mutex_.unlock(); }
bool ArenaFork::in_use(const Arena& arena) { return arena.fd_ && arena.ranges_.used_bytes() > 0; }

namespace {

// Nothing there may be used any more, and the addresses stay reserved for whoever unmaps them.
void make_empty(std::byte* at, size_t bytes) {
  ::mmap(at, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

bool read_all(std::byte* at, size_t bytes, int fd, size_t offset) {
  for (size_t done = 0; done < bytes;) {
    const auto got = ::pread(fd, at + done, bytes - done, static_cast<off_t>(offset + done));
    if (got <= 0 && errno != EINTR) return false;
    if (got > 0) done += static_cast<size_t>(got);
  }
  return true;
}

// Private memory with the same content takes the place of shared memory. It is read through the
// descriptor: the child's page table has no entries for the shared mapping. Where there is no
// memory for a copy, a private view at least keeps what the child writes away from its parent.
void make_copy(std::byte* at, size_t bytes, int fd, size_t offset) {
  constexpr int kAccess = PROT_READ | PROT_WRITE;
  constexpr int kPrivate = MAP_PRIVATE | MAP_FIXED;
  if (::mmap(at, bytes, kAccess, kPrivate | MAP_ANONYMOUS, -1, 0) != MAP_FAILED) {
    ::madvise(at, bytes, MADV_HUGEPAGE);  // a tenth of the faults
    if (read_all(at, bytes, fd, offset)) return;
  }
  ::mmap(at, bytes, kAccess, kPrivate | MAP_NORESERVE, fd, static_cast<off_t>(offset));
}

}  // namespace

void ArenaFork::make_private(Arena& arena) {
  if (!arena.fd_) return;  // the child of a child: private already
  arena.shared_bytes_.store(0, std::memory_order_relaxed);
  // Neighbours that are both in use, or both not, are replaced together.
  size_t begin = 0, end = 0;
  bool used = false;
  const auto replace = [&] {
    if (begin == end) return;
    if (used) {
      make_copy(arena.base_ + begin, end - begin, arena.fd_.get(), begin);
    } else {
      make_empty(arena.base_ + begin, end - begin);
    }
  };
  for (const auto& [offset, range] : arena.ranges_.all()) {
    const bool this_used = range.kind == ArenaRanges::Kind::used;
    if (this_used != used) {
      replace();
      begin = end;
      used = this_used;
    }
    end = offset + range.bytes;
  }
  replace();
  make_empty(arena.base_, kPageBytes);
  arena.fd_.reset();
  arena.count();
}

void ArenaFork::make_private(PeerArena& arena) {
  arena.inherited_ = true;
  arena.fd_.reset();
  auto* const base = arena.base_.load();
  if (base && !arena.own_) make_empty(base, arena.capacity_);
}

}  // namespace pycomm
