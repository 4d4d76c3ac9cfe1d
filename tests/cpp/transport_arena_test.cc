// SPDX-License-Identifier: MIT
// The arena within a process: blocks, threads, quarantine, peers that map it, and when it is full.
// transport_arena_fork_test.cc has what concerns other processes.
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "arena_blocks.h"
#include "base/limits.h"
#include "check.h"
#include "connections.h"
#include "transport/arena.h"
#include "transport/peer_arena.h"

using namespace pycomm;
using namespace arena_blocks;

TEST("a block is whole pages, writable, and given out again after it was freed") {
  Arena arena(16 * kMiB);
  std::byte* const a = arena.allocate(100'000);
  CHECK(a && reinterpret_cast<uintptr_t>(a) % kPageBytes == 0);
  CHECK(arena.holds(a, 100'000) && arena.owns(a));
  CHECK(!arena.holds(a, 17 * kMiB) && !arena.holds(&arena, 1) && !arena.holds(nullptr, 1));
  std::memset(a, 1, 100'000);
  std::byte* const b = arena.allocate(1);
  CHECK(arena.offset_of(b) == arena.offset_of(a) + 102'400);
  arena.free(a);
  CHECK(arena.allocate(90'000) == a);
  const auto statistics = arena.statistics();
  CHECK(statistics.used_bytes == 90'112 + kPageBytes && statistics.blocks == 3);
  CHECK(statistics.used_peak_bytes == 102'400 + kPageBytes && statistics.fallbacks == 0);
}

TEST("a full arena says so, and so does one that was never made") {
  Arena arena(kMiB);
  CHECK(!arena.allocate(2 * kMiB));
  std::vector<std::byte*> blocks;
  while (std::byte* const block = arena.allocate(64 * 1024)) blocks.push_back(block);
  CHECK(blocks.size() == 15, "the first page is the header, got ", blocks.size());
  CHECK(arena.statistics().fallbacks == 2);
  for (std::byte* const block : blocks) arena.free(block);
  CHECK(arena.allocate(kMiB - kPageBytes), "free neighbours are one range again");
  Arena none(0);
  CHECK(!none.allocate(1) && none.fd() == -1 && !none.owns(nullptr));
  CHECK(none.statistics().capacity_bytes == 0);
}

TEST("a block in quarantine is never given out again") {
  Arena arena(kMiB);
  std::byte* const a = arena.allocate(64 * 1024);
  std::byte* const b = arena.allocate(64 * 1024);
  arena.quarantine(a + 5000);
  arena.free(a);
  arena.free(b);
  std::vector<std::byte*> later;
  while (std::byte* const block = arena.allocate(kPageBytes)) later.push_back(block);
  for (const std::byte* const block : later) CHECK(block < a || block >= a + 64 * 1024);
  CHECK(later.size() == 255 - 16);
  CHECK(arena.statistics().quarantined_bytes == 64 * 1024);
}

TEST("trimming gives pages of free blocks back and leaves the others alone") {
  Arena arena(16 * kMiB);
  std::byte* const a = arena.allocate(kMiB);
  std::byte* const b = arena.allocate(kMiB);
  std::memset(a, 1, kMiB);
  std::memset(b, 2, kMiB);
  arena.free(a);
  CHECK(arena.trim() == kMiB && arena.trim() == 0);
  CHECK(arena.statistics().touched_bytes == kMiB);
  CHECK(all(b, kMiB, 2));
  std::byte* const again = arena.allocate(kMiB);
  CHECK(again == a && all(again, kMiB, 0));
}

TEST("threads allocate, write and free side by side") {
  Arena arena(8 * kMiB);
  const auto seed = static_cast<unsigned>(
      std::chrono::steady_clock::now().time_since_epoch().count() & 0xffffffff);
  std::printf("seed %u\n", seed);
  connections::on_threads(3, [&](int number) {
    std::mt19937 random(seed + static_cast<unsigned>(number));
    std::vector<std::pair<std::byte*, size_t>> mine;
    const auto drop = [&](size_t which) {
      CHECK(all(mine[which].first, mine[which].second, number), "seed ", seed);
      arena.free(mine[which].first);
      mine.erase(mine.begin() + static_cast<std::ptrdiff_t>(which));
    };
    for (int i = 0; i < 400; ++i) {
      const size_t bytes = 1 + random() % 100'000;
      if (std::byte* const block = arena.allocate(bytes)) {
        std::memset(block, number, bytes);
        mine.emplace_back(block, bytes);
      }
      if (mine.size() > 10) drop(random() % mine.size());
    }
    while (!mine.empty()) drop(0);
  });
  CHECK(arena.statistics().used_bytes == 0);
}

TEST("a peer that maps the arena sees what is written, on both sides") {
  Arena arena(16 * kMiB);
  std::byte* const block = arena.allocate(kMiB);
  std::memset(block, 1, kMiB);
  const auto offset = arena.offset_of(block);
  auto peer = PeerArena::open(Fd(::dup(arena.fd())));
  CHECK(peer && peer->capacity() == 16 * kMiB);
  CHECK(PeerArena::open(Fd(::dup(arena.fd()))) == peer, "one mapping however many groups");
  std::byte* const there = peer->at(offset, kMiB);
  CHECK(there && there != block && all(there, kMiB, 1));
  std::memset(there, 2, kMiB);
  CHECK(all(block, kMiB, 2));
  CHECK(!peer->at(offset, 16 * kMiB) && !peer->at(16 * kMiB, 1) && !peer->at(0, 1));
  CHECK(peer->at(16 * kMiB - 1, 1) && !peer->at(SIZE_MAX, 2) && !peer->at(kPageBytes, SIZE_MAX));
  CHECK(in_child([&] { return !::munmap(there, kMiB); }) == 0, "nothing of the peer's is there");
}

TEST("a descriptor that is no arena, or that could shrink, is refused") {
  CHECK(!PeerArena::open(create_shared_memory(kMiB)));
  CHECK(!PeerArena::open(Fd(::open("/dev/null", O_RDONLY | O_CLOEXEC))));
  CHECK(!PeerArena::open(Fd()));
  Fd loose(::memfd_create("loose", MFD_CLOEXEC));
  CHECK(::ftruncate(loose.get(), kMiB) == 0);
  ArenaHeader header;
  header.capacity = kMiB;
  CHECK(::pwrite(loose.get(), &header, sizeof(header), 0) == sizeof(header));
  CHECK(!PeerArena::open(std::move(loose)));
}

TEST("links of the shm transport lead to the peer's arena") {
  for (const int world_size : {2, 3}) {
    const auto meshes = connections::connect_threads(world_size, {"shm"});
    auto& mine = Arena::of_process();
    std::byte* const block = mine.allocate(kPageBytes);
    CHECK(block);
    for (int rank = 0; rank < world_size; ++rank) {
      for (int peer = 0; peer < world_size; ++peer) {
        const auto& arena = meshes[static_cast<size_t>(rank)]->link(peer).arena;
        CHECK((arena != nullptr) == (rank != peer));
        if (arena) CHECK(arena->at(mine.offset_of(block), kPageBytes) == block, "one process");
      }
    }
    mine.free(block);
  }
  CHECK(!connections::connect_threads(2, {"tcp"})[0]->link(1).arena);
}
