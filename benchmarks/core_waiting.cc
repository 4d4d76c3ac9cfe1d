// SPDX-License-Identifier: MIT
// What waiting costs: processor time of a rank whose peer comes late.
//
//   core_waiting [seconds=5] [world=2]
//
// The last rank sleeps; the others wait for it in a collective on the calling thread, in one on the
// progress thread, or do nothing in an idle group. Columns: what rank 0 does, processor time of its
// whole process in per cent of a core, times it gave way to others or slept (context switches).
#include <sys/resource.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <thread>

#include "core_group.h"

using namespace core_group;

namespace {

struct Usage {
  double seconds;
  long switches;
};

Usage usage() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  return {seconds(used.ru_utime) + seconds(used.ru_stime), used.ru_nvcsw + used.ru_nivcsw};
}

}  // namespace

int main(int argc, char** argv) {
  double patience = 5;
  int world_size = 2;
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "seconds=", 8) == 0) patience = std::atof(argv[i] + 8);
    if (std::strncmp(argv[i], "world=", 6) == 0) world_size = std::atoi(argv[i] + 6);
  }
  if (world_size < 2 || world_size > kRanksMax || patience <= 0) return 2;
  return run_ranks(world_size, true, [&](int rank, Store& store, Meeting& meeting) {
    auto engine = make_engine(store, rank, world_size, "shm", "");
    const bool late = rank == world_size - 1;
    std::vector<float> memory(256);
    const auto make = [&](Collective collective) {
      auto operation = std::make_shared<Operation>();
      operation->collective = collective;
      if (collective != Collective::barrier) {
        operation->work = {{reinterpret_cast<std::byte*>(memory.data()), memory.size()}};
      }
      return operation;
    };
    const auto measure = [&](const char* what, const std::function<void()>& wait) {
      engine->run(make(Collective::barrier));
      meeting.wait(world_size);
      const auto before = usage();
      if (late) std::this_thread::sleep_for(std::chrono::duration<double>(patience));
      wait();
      const auto after = usage();
      if (rank == 0) {
        std::printf("%-36s %8.3f %% %8ld switches/s\n", what,
                    100 * (after.seconds - before.seconds) / patience,
                    std::lround(static_cast<double>(after.switches - before.switches) / patience));
        std::fflush(stdout);
      }
    };
    measure("waits in all_reduce", [&] { engine->run(make(Collective::all_reduce)); });
    measure("waits in barrier", [&] { engine->run(make(Collective::barrier)); });
    measure("waits for an asynchronous all_reduce", [&] {
      const auto operation = make(Collective::all_reduce);
      engine->submit(operation);
      engine->wait(*operation, {});
    });
    measure("idle in the group", [&] {
      if (!late) std::this_thread::sleep_for(std::chrono::duration<double>(patience));
    });
    engine->shutdown("the benchmark is over", true);
  });
}
