// SPDX-License-Identifier: MIT
// Whoever sleeps is woken: no frame and no ring of the doorbell is ever slept through. A lost
// wake-up shows as a sleep that lasts until its timeout.
#include <sys/eventfd.h>
#include <sys/socket.h>

#include <atomic>
#include <cstring>

#include "check.h"
#include "connections.h"

using namespace pycomm;
using namespace connections;

namespace {

// Longer than any thread that is to ring may be kept from running.
constexpr auto kLong = std::chrono::seconds(30);
constexpr auto kLost = std::chrono::seconds(29);

struct SleepLog {
  std::chrono::nanoseconds longest{0};
  int sleeps = 0;

  void add(std::chrono::nanoseconds slept) {
    longest = std::max(longest, slept);
    ++sleeps;
  }
};

// So that one thread's loss ends the others' waits.
std::atomic<bool> lost_one{false};

// Waits as the engine does, but goes to sleep without spinning first.
template <class Ready>
void wait_for(Waiter& waiter, const Ready& ready, SleepLog& log) {
  while (!ready()) {
    CHECK(!lost_one, "another thread lost a wake-up");
    const auto ticket = waiter.arm();
    if (!ready()) {
      const auto began = std::chrono::steady_clock::now();
      waiter.sleep(ticket, kLong);
      log.add(std::chrono::steady_clock::now() - began);
    }
    waiter.disarm();
    if (log.longest < kLost) continue;
    lost_one = true;
    CHECK(false, "slept ", log.longest.count() / 1000000, " ms after ", log.sleeps,
          " sleeps: a wake-up was lost");
  }
}

// Two ranks throw an empty frame back and forth and sleep for every one.
void ping_pong(const std::vector<std::unique_ptr<Mesh>>& meshes, int a, int b, int rounds) {
  lost_one = false;
  on_threads(2, [&](int side) {
    Mesh& mesh = *meshes[static_cast<size_t>(side == 0 ? a : b)];
    Channel& channel = mesh.channel(side == 0 ? b : a, Lane::collective);
    SleepLog log;
    ReceivedFrame frame;
    for (int round = 0; round < rounds; ++round) {
      if (round % 2 == side) {
        wait_for(mesh.waiter(), [&] { return channel.try_reserve(0) != nullptr; }, log);
        channel.commit({});
      } else {
        wait_for(mesh.waiter(), [&] { return channel.try_peek(frame); }, log);
        channel.consume();
      }
    }
  });
}

// One rank sends as fast as it can, so that both full and empty rings are slept on.
void stream(const std::vector<std::unique_ptr<Mesh>>& meshes, int from, int to, int frames) {
  lost_one = false;
  on_threads(2, [&](int side) {
    Mesh& mesh = *meshes[static_cast<size_t>(side == 0 ? from : to)];
    Channel& channel = mesh.channel(side == 0 ? to : from, Lane::collective);
    SleepLog log;
    ReceivedFrame frame;
    for (int k = 0; k < frames; ++k) {
      if (side == 0) {
        wait_for(mesh.waiter(), [&] { return channel.try_reserve(1) != nullptr; }, log);
        channel.commit({1, 0, {}});
      } else {
        wait_for(mesh.waiter(), [&] { return channel.try_peek(frame); }, log);
        channel.consume();
      }
    }
  });
}

// Several threads sleep on one waiter, each for a flag of its own; another thread raises the flags
// in turn and rings.
void many_sleepers(bool poll, int sleepers, int rounds) {
  lost_one = false;
  Doorbell bell;
  const Fd event(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  int pair[2];
  CHECK(::socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
  const Fd idle(pair[0]), other(pair[1]);
  Waiter waiter(&bell, event.get(), poll ? std::vector<int>{idle.get()} : std::vector<int>{});
  std::vector<std::atomic<int>> raised(static_cast<size_t>(sleepers));
  std::vector<std::atomic<int>> seen(static_cast<size_t>(sleepers));
  on_threads(sleepers + 1, [&](int thread) {
    if (thread == sleepers) {
      for (int round = 1; round <= rounds; ++round) {
        for (int k = 0; k < sleepers; ++k) {
          raised[static_cast<size_t>((k + round) % sleepers)].store(round,
                                                                    std::memory_order_release);
          if (k % 2 == round % 2 || k == sleepers - 1) bell.ring(event.get());
        }
        for (auto& one : seen) {
          while (one.load(std::memory_order_acquire) < round && !lost_one)
            std::this_thread::yield();
        }
      }
      return;
    }
    const auto at = static_cast<size_t>(thread);
    SleepLog log;
    for (int round = 1; round <= rounds; ++round) {
      wait_for(waiter, [&] { return raised[at].load(std::memory_order_acquire) >= round; }, log);
      seen[at].store(round, std::memory_order_release);
    }
  });
}

}  // namespace

TEST("a sleeper on a futex is woken by every frame and by every slot that comes free") {
  const auto meshes = connect_threads(2, {"shm"});
  ping_pong(meshes, 0, 1, 6000);
  stream(meshes, 0, 1, 20000);
}

TEST("a sleeper on sockets is woken by every frame") {
  const auto meshes = connect_threads(2, {"tcp"});
  ping_pong(meshes, 0, 1, 6000);
}

TEST("a rank with peers on both transports sleeps on sockets and hears its host's peers too") {
  const auto meshes = connect_threads(3, {"shm,tcp", {0, 0, 1}});
  CHECK(meshes[0]->link(1).transport == "shm" && meshes[0]->link(2).transport == "tcp");
  ping_pong(meshes, 0, 1, 4000);
  ping_pong(meshes, 0, 2, 4000);
  stream(meshes, 1, 0, 10000);
}

TEST("several sleepers on one futex are all woken") {
  for (const int sleepers : {2, 3}) many_sleepers(false, sleepers, 3000);
}

TEST("several sleepers on the same sockets are all woken") {
  for (const int sleepers : {2, 3}) many_sleepers(true, sleepers, 3000);
}

TEST("wake() ends the sleep of whoever was armed before it, in both modes") {
  for (const std::string transport : {"shm", "tcp"}) {
    const auto meshes = connect_threads(2, {transport});
    Waiter& waiter = meshes[0]->waiter();
    const auto ticket = waiter.arm();
    waiter.wake();
    const auto began = std::chrono::steady_clock::now();
    waiter.sleep(ticket, kLong);
    waiter.disarm();
    CHECK(std::chrono::steady_clock::now() - began < kLost, transport);
  }
}
