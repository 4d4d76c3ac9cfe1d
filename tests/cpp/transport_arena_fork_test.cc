// SPDX-License-Identifier: MIT
// The arena and processes: what a forked child has, what limits leave, and what a killed peer does.
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "arena_blocks.h"
#include "base/limits.h"
#include "check.h"
#include "connections.h"
#include "transport/arena.h"
#include "transport/host_memory.h"
#include "transport/peer_arena.h"

using namespace pycomm;
using namespace arena_blocks;

TEST("a forked child has a copy of its own, as of the fork") {
  Arena arena(16 * kMiB);
  std::byte* const kept = arena.allocate(kMiB);
  std::byte* const freed = arena.allocate(kMiB);
  std::byte* const other = arena.allocate(3 * kPageBytes);
  std::memset(kept, 1, kMiB);
  std::memset(other, 3, 3 * kPageBytes);
  arena.free(freed);
  int go[2];
  CHECK(::pipe(go) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    char byte;
    bool good = ::read(go[0], &byte, 1) == 1;  // until the parent has written
    good = good && all(kept, kMiB, 1) && all(other, 3 * kPageBytes, 3);
    good = good && !arena.holds(kept, 1) && arena.owns(kept) && arena.fd() == -1;
    good = good && !arena.allocate(kPageBytes);
    std::memset(kept, 9, kMiB);
    good = good && all(kept, kMiB, 9);
    arena.free(kept);
    // A child of the child copies no arena, but its ordinary memory.
    good = good && in_child([&] { return all(other, 3 * kPageBytes, 3); }) == 0;
    ::_exit(good ? 0 : 1);
  }
  std::memset(kept, 2, kMiB);
  CHECK(::write(go[1], "x", 1) == 1);
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status ", status);
  CHECK(all(kept, kMiB, 2) && all(other, 3 * kPageBytes, 3));
  CHECK(arena.allocate(kMiB) == freed, "the child's frees are its own");
  ::close(go[0]);
  ::close(go[1]);
}

TEST("forks beside threads that allocate end, and blocks of the forking thread are intact") {
  Arena arena(64 * kMiB);
  std::byte* const mine = arena.allocate(kMiB);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int number = 0; number < 2; ++number) {
    threads.emplace_back([&] {
      while (!stop) {
        std::byte* const block = arena.allocate(100'000);
        std::memset(block, 1, 100'000);
        arena.free(block);
      }
    });
  }
  std::vector<int> wrong;
  for (int i = 0; i < 20; ++i) {
    std::memset(mine, i, kMiB);
    if (in_child([&] { return all(mine, kMiB, i) && !arena.allocate(1); }) != 0) wrong.push_back(i);
  }
  stop = true;
  for (auto& thread : threads) thread.join();
  CHECK(wrong.empty(), wrong.size(), " children saw something else");
}

TEST("a forked child that makes a group has an arena of its own and frees what it inherited") {
  auto& mine = Arena::of_process();
  std::byte* const block = mine.allocate(kMiB);
  std::memset(block, 5, kMiB);
  CHECK(&Arena::for_group() == &mine && Arena::owner_of(block) == &mine);
  CHECK(!Arena::owner_of(&mine));
  CHECK(in_child([&] {
          if (&Arena::of_process() != &mine || mine.fd() != -1) return false;
          auto& own = Arena::for_group();
          std::byte* const other = own.allocate(kMiB);
          if (&own == &mine || &Arena::of_process() != &own || !other) return false;
          if (!own.holds(other, kMiB) || own.holds(block, 1) || !all(block, kMiB, 5)) return false;
          if (Arena::owner_of(block) != &mine || Arena::owner_of(other) != &own) return false;
          mine.free(block);
          own.free(other);
          return own.statistics().used_bytes == 0 && mine.statistics().used_bytes == 0;
        }) == 0);
  mine.free(block);
}

TEST("a forked child that meets an arena again maps it anew, its parent's among them") {
  auto& mine = Arena::for_group();
  Arena other(4 * kMiB);
  for (Arena* const arena : {&mine, &other}) {
    std::byte* const block = arena->allocate(kMiB);
    const size_t offset = arena->offset_of(block);
    const auto open = [fd = Fd(::dup(arena->fd()))] {
      return PeerArena::open(Fd(::dup(fd.get())));
    };
    const auto inherited = open();
    CHECK(inherited->at(offset, kMiB) && open() == inherited);
    const int status = in_child([&] {
      const auto again = open();
      if (!again || again == inherited) return false;
      // What the parent's tensors are now: written where it would write.
      std::byte* const there = again->at(offset, kMiB);
      if (!there) return false;
      std::memset(there, 3, kMiB);
      return open() == again;
    });
    CHECK(status == 0, "status ", status);
    CHECK(all(block, kMiB, 3), "the child reached something else");
    arena->free(block);
  }
}

TEST("a child that cannot have a copy cannot write to its parent either") {
  Arena arena(16 * kMiB);
  std::byte* const block = arena.allocate(kMiB);
  // No private memory: the copy fails, and the view that takes its place is private too.
  std::memset(block, 1, kMiB);
  rlimit before{};
  CHECK(::getrlimit(RLIMIT_DATA, &before) == 0);
  rlimit none = before;
  none.rlim_cur = 0;
  CHECK(::setrlimit(RLIMIT_DATA, &none) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    ::setrlimit(RLIMIT_DATA, &before);
    std::memset(block, 9, kMiB);
    ::kill(::getpid(), SIGKILL);
  }
  CHECK(::setrlimit(RLIMIT_DATA, &before) == 0);
  int status = 0;
  ::waitpid(child, &status, 0);
  CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL, "status ", status);
  CHECK(all(block, kMiB, 1));
}

TEST("limits of address space and file size bound the capacity, and 0 means no arena") {
  CHECK(memory_limit() >= memory_available() && memory_available() > 0);
  Arena::of_process();
  const auto capacity = [] { return Arena::for_group().statistics().capacity_bytes; };
  const auto limit = [](__rlimit_resource which, size_t bytes) {
    const rlimit value{bytes, bytes};
    return ::setrlimit(which, &value) == 0;
  };
  ::unsetenv("PYCOMM_ARENA_BYTES");
  CHECK(in_child([&] { return limit(RLIMIT_FSIZE, 3 * kMiB) && capacity() == 3 * kMiB; }) == 0);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they map terabytes
  CHECK(in_child([&] {
          const size_t addresses = size_t{64} << 30;
          return limit(RLIMIT_AS, addresses) && capacity() > 0 && capacity() <= addresses / 8;
        }) == 0);
#endif
  ::setenv("PYCOMM_ARENA_BYTES", "24M", 1);
  CHECK(in_child([&] { return capacity() == 24 * kMiB; }) == 0);
  ::setenv("PYCOMM_ARENA_BYTES", "0", 1);
  CHECK(in_child([&] {
          const auto meshes = connections::connect_threads(2, {"shm"});
          return capacity() == 0 && !Arena::of_process().allocate(1) && !meshes[0]->link(1).arena;
        }) == 0);
  ::unsetenv("PYCOMM_ARENA_BYTES");
}

TEST("a peer's memory can still be used after the peer was killed") {
  connections::FileStore store;
  const auto rank_main = [&](int rank) {
    MeshOptions options;
    options.transports = "shm";
    options.connect_timeout = std::chrono::seconds(30);
    auto mesh = Mesh::connect(store, rank, 2, options);
    if (rank == 0) {
      std::byte* const block = Arena::of_process().allocate(kMiB);
      std::memset(block, 7, kMiB);
      store.set("offset", str(Arena::of_process().offset_of(block), " ", ::getpid()));
      while (true) ::pause();
    }
    std::istringstream told(store.get("offset", Deadline::after(std::chrono::seconds(30))));
    size_t offset = 0;
    pid_t pid = 0;
    told >> offset >> pid;
    std::byte* const there = mesh->link(0).arena->at(offset, kMiB);
    const bool before = there && all(there, kMiB, 7);
    ::kill(pid, SIGKILL);
    while (!mesh->link(0).control->at_end()) ::usleep(1000);
    std::memset(there, 8, kMiB);
    return before && all(there, kMiB, 8) && mesh->link(0).arena->at(offset + kMiB, kMiB);
  };
  const pid_t first = ::fork();
  if (first == 0) ::_exit(rank_main(0));
  const int second = in_child([&] { return rank_main(1); });
  ::kill(first, SIGKILL);
  int status = 0;
  ::waitpid(first, &status, 0);
  CHECK(second == 0 && WIFSIGNALED(status));
}
