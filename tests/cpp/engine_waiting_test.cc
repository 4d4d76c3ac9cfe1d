// SPDX-License-Identifier: MIT
// How ranks wait: somebody who waits for long sleeps, and is woken whenever it began to sleep.
#include <sys/resource.h>

#include <ctime>
#include <random>

#include "groups.h"

using namespace groups;

namespace {

constexpr uint64_t kSeed = 4711;

double processor_seconds() {
  timespec used{};
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
  return static_cast<double>(used.tv_sec) + 1e-9 * static_cast<double>(used.tv_nsec);
}

}  // namespace

TEST("a rank that waits for long uses next to no processor time") {
  constexpr double kPatience = 0.5;
  // On the caller's thread, on the progress thread, and for a message.
  for (const int how : {0, 1, 2}) {
    with_group({"shm"}, 2, [&](auto& engine, int rank) {
      auto memory = tensor(10, 1);
      engine->run(make(Collective::all_reduce, memory));
      if (rank == 0) {
        const double before = processor_seconds();
        std::this_thread::sleep_for(std::chrono::duration<double>(kPatience));
        const double used = processor_seconds() - before;
        // Some milliseconds of looking and yielding, then 50 wake-ups a second.
        CHECK(used < 0.2 * kPatience, how, ": ", used, " s of processor time in ", kPatience, " s");
      }
      if (how == 2) {
        return engine->run(
            message(rank == 0 ? Collective::send : Collective::recv, 1 - rank, 0, memory));
      }
      const auto operation = make(Collective::all_reduce, memory);
      if (how == 0) return engine->run(operation);
      engine->submit(operation);
      engine->wait(*operation, {});
    });
  }
}

// Pauses around the lengths of the steps of waiting, so that a peer often moves just when this rank
// goes to sleep. A wake-up that is lost costs kSleepSlice.
TEST("a rank is woken wherever in its waiting the peer comes") {
  for (const auto& transport : kTransports) {
    with_group({transport}, 3, [&](auto& engine, int rank) {
      std::mt19937_64 random(kSeed + static_cast<uint64_t>(rank));
      auto memory = tensor(1, 0);
      const auto begin = std::chrono::steady_clock::now();
      constexpr int kCalls = 400;
      for (int k = 0; k < kCalls; ++k) {
        if (k % 3 == rank) {
          std::this_thread::sleep_for(std::chrono::microseconds(random() % 2000));
        }
        const auto operation = make(Collective::all_reduce, memory);
        if (random() % 2) {
          engine->run(operation);
        } else {
          engine->submit(operation);
          engine->wait(*operation, {});
        }
      }
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
      std::printf("%s: %.0f us a call\n", transport.c_str(), 1e6 * took.count() / kCalls);
    });
  }
}
