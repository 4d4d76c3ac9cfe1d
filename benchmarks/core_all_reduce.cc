// SPDX-License-Identifier: MIT
// All-reduce of float32 through the engine alone, without torch: p50 for each size.
//
//   core_all_reduce [world=2] [sizes=8,1024,...] [samples=21] [calls=0] [algorithm=] [pin=1]
//                   [transports=shm] [async=0]
//
// Sizes are bytes. async=1 submits to the progress thread and waits. calls=0 chooses as many as
// take about 5 ms. Every call makes its operation anew, as a caller does. Columns: bytes,
// microseconds at the median over samples (slowest rank), GB/s.
#include <cstdlib>
#include <map>
#include <sstream>

#include "core_group.h"

using namespace core_group;

namespace {

int calls_for(size_t bytes, int world_size) {
  const double us = 1.0 * world_size / 2 + static_cast<double>(bytes) / 4000;
  return std::max(2, static_cast<int>(5000 / us));
}

void measure(Engine& engine, int rank, int world_size, Meeting& meeting, size_t bytes, int samples,
             int calls, bool async) {
  std::vector<float> memory(std::max<size_t>(1, bytes / sizeof(float)), 0.0f);
  const auto call = [&] {
    auto operation = std::make_shared<Operation>();
    operation->work = {{reinterpret_cast<std::byte*>(memory.data()), memory.size()}};
    if (!async) return engine.run(operation);
    engine.submit(operation);
    engine.wait(*operation, {});
  };
  for (int i = 0; i < 3; ++i) call();
  memory.assign(memory.size(), static_cast<float>(rank + 1));
  call();
  const auto sum = static_cast<float>(world_size * (world_size + 1) / 2);
  for (const float one : memory) PYCOMM_ASSERT(one == sum, one, " instead of ", sum);
  memory.assign(memory.size(), 0.0f);
  const double us = median_us(rank, world_size, meeting, samples,
                              calls > 0 ? calls : calls_for(bytes, world_size), call);
  if (rank == 0) {
    std::printf("%10zu B %10.2f us %8.2f GB/s\n", bytes, us, static_cast<double>(bytes) / us / 1e3);
    std::fflush(stdout);
  }
}

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> given{
      {"world", "2"},        {"sizes", "8,1024,16384,65536,262144,1048576,4194304,16777216"},
      {"samples", "21"},     {"calls", "0"},
      {"algorithm", ""},     {"pin", "1"},
      {"transports", "shm"}, {"async", "0"}};
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto split = word.find('=');
    if (split == std::string::npos || !given.count(word.substr(0, split))) {
      std::fprintf(stderr, "unknown argument %s; see the head of core_all_reduce.cc\n", argv[i]);
      return 2;
    }
    given[word.substr(0, split)] = word.substr(split + 1);
  }
  const int world_size = std::atoi(given["world"].c_str());
  if (world_size < 1 || world_size > kRanksMax) return 2;
  return run_ranks(world_size, given["pin"] == "1", [&](int rank, Store& store, Meeting& meeting) {
    auto engine = make_engine(store, rank, world_size, given["transports"], given["algorithm"]);
    std::stringstream sizes(given["sizes"]);
    std::string size;
    while (std::getline(sizes, size, ',')) {
      measure(*engine, rank, world_size, meeting, std::strtoull(size.c_str(), nullptr, 10),
              std::atoi(given["samples"].c_str()), std::atoi(given["calls"].c_str()),
              given["async"] == "1");
    }
    engine->shutdown("the benchmark is over", true);
  });
}
