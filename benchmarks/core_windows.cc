// SPDX-License-Identifier: MIT
// Collectives over memory that all ranks map, against the same over ordinary memory and against a
// bare loop that moves the fewest bytes: three contenders in turns, float32, one process a rank.
//
//   core_windows [world=2] [collectives=all_reduce,...] [sizes=65536,...] [samples=15] [calls=0]
//
// Sizes are bytes of the tensor (all_reduce, broadcast), else of all blocks of a rank. calls=0
// chooses as many as take some 6 ms. The bare loop knows where all memory lies, meets the others
// at a flag before and after, and does nothing else: no signatures, no deadlines, no failures. What
// it reads and writes on each rank is printed as bytes for one byte of the size. Columns: size,
// microseconds at the median over samples (slowest rank) of ordinary memory, arena and bare loop,
// then ordinary / arena and bare / arena.
#include <cstdlib>
#include <cstring>
#include <map>
#include <sstream>

#include "core_group.h"
#include "kernels/reduce.h"
#include "transport/arena.h"

using namespace core_group;

namespace {

// Flags and addresses in memory that all ranks map.
struct alignas(kCacheLineBytes) Flag {
  std::atomic<uint64_t> passed{0};
};
struct Board {
  Flag flags[kRanksMax];
  uint64_t offsets[kRanksMax] = {};
};

struct Bench {
  Engine& engine;
  int rank, world_size;
  Meeting& meeting;
  Board& board;
  int samples, calls;
  uint64_t passes = 0;
  std::byte* base[kRanksMax] = {};  // every rank's memory, here

  Mesh& mesh() { return engine.mesh(); }

  void meet() {
    ++passes;
    board.flags[rank].passed.store(passes, std::memory_order_release);
    for (int peer = 0; peer < world_size; ++peer) {
      for (int tries = 0; board.flags[peer].passed.load(std::memory_order_acquire) < passes;) {
        if (++tries % 64 == 0 && world_size > 2) ::sched_yield();
        __builtin_ia32_pause();
      }
    }
  }
  void share(std::byte* mine) {
    base[rank] = mine;
    board.offsets[rank] = Arena::of_process().offset_of(mine);
    meeting.wait(world_size);
    for (int peer = 0; peer < world_size; ++peer) {
      if (peer != rank) base[peer] = mesh().link(peer).arena->at(board.offsets[peer], 1);
      PYCOMM_ASSERT(base[peer], "no arena of rank ", peer);
    }
    meeting.wait(world_size);
  }
};

// Where a collective's regions lie in one allocation: `in` bytes of input, then the output.
struct Shape {
  Collective collective;
  size_t bytes;
  int world_size;

  size_t block() const {
    return bytes / static_cast<size_t>(world_size) / kCacheLineBytes * kCacheLineBytes;
  }
  bool in_place() const {
    return collective == Collective::all_reduce || collective == Collective::broadcast;
  }
  size_t input() const {
    return in_place() ? bytes : collective == Collective::all_gather ? block() : bytes;
  }
  size_t output_at() const { return (input() + kPageBytes - 1) / kPageBytes * kPageBytes; }
  size_t total() const { return output_at() + bytes + kPageBytes; }
};

Regions regions_of(const Shape& shape, std::byte* memory) {
  const size_t block = shape.block(), count = block / sizeof(float);
  std::byte* const out = memory + shape.output_at();
  Regions regions;
  const auto add = [&](std::byte* from, int blocks) {
    for (int i = 0; i < blocks; ++i)
      regions.push_back({from + static_cast<size_t>(i) * block, count});
  };
  switch (shape.collective) {
    case Collective::all_gather:
      add(out, shape.world_size);
      add(memory, 1);
      break;
    case Collective::reduce_scatter:
      add(memory, shape.world_size);
      add(out, 1);
      break;
    case Collective::all_to_all:
      add(memory, shape.world_size);
      add(out, shape.world_size);
      break;
    default:
      regions.push_back({memory, shape.bytes / sizeof(float)});
  }
  return regions;
}

// The loop of prototype quality: sums and stores once, in one pass.
[[gnu::target("avx512f"), gnu::optimize("O3")]] void add_to_both(float* mine, float* other,
                                                                 size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const float sum = mine[i] + other[i];
    mine[i] = sum;
    other[i] = sum;
  }
}

void bare_all_reduce(Bench& b, const Shape& shape) {
  const size_t count = shape.bytes / sizeof(float);
  const size_t begin = chunk_begin(count, b.world_size, b.rank, sizeof(float));
  const size_t end = chunk_begin(count, b.world_size, b.rank + 1, sizeof(float));
  float* all[kRanksMax];
  for (int r = 0; r < b.world_size; ++r) all[r] = reinterpret_cast<float*>(b.base[r]) + begin;
  if (b.world_size == 2) return add_to_both(all[b.rank], all[1 - b.rank], end - begin);
  constexpr size_t kBlock = 2048;
  for (size_t at = 0; at < end - begin; at += kBlock) {
    const size_t n = std::min(kBlock, end - begin - at);
    const void* sources[kRanksMax];
    for (int r = 0; r < b.world_size; ++r) sources[r] = all[r] + at;
    ReduceTask task;
    task.target = all[b.rank] + at;
    task.sources = sources;
    task.source_count = b.world_size;
    task.count = n;
    reduce(task);
    for (int r = 0; r < b.world_size; ++r) {
      if (r != b.rank) std::memcpy(all[r] + at, all[b.rank] + at, n * sizeof(float));
    }
  }
}

void bare(Bench& b, const Shape& shape) {
  const auto p = static_cast<size_t>(b.world_size), me = static_cast<size_t>(b.rank);
  const size_t block = shape.block();
  std::byte* const mine = b.base[b.rank];
  std::byte* const out = mine + shape.output_at();
  b.meet();
  switch (shape.collective) {
    case Collective::all_reduce:
      bare_all_reduce(b, shape);
      break;
    case Collective::broadcast:  // all ranks copy a share of each copy
      for (size_t to = 1; to < p; ++to) {
        const size_t begin = shape.bytes / p * me;
        const size_t end = me + 1 == p ? shape.bytes : begin + shape.bytes / p;
        std::memcpy(b.base[to] + begin, b.base[0] + begin, end - begin);
      }
      break;
    case Collective::all_gather:
      for (size_t d = 0; d < p; ++d) {
        const size_t from = (me + d) % p;
        std::memcpy(out + from * block, b.base[from], block);
      }
      break;
    case Collective::all_to_all:
      for (size_t d = 0; d < p; ++d) {
        const size_t from = (me + d) % p;
        std::memcpy(out + from * block, b.base[from] + me * block, block);
      }
      break;
    default: {
      const void* sources[kRanksMax];
      for (size_t r = 0; r < p; ++r) sources[r] = b.base[r] + me * block;
      ReduceTask task;
      task.target = out;
      task.sources = sources;
      task.source_count = b.world_size;
      task.count = block / sizeof(float);
      reduce(task);
    }
  }
  b.meet();
}

// Bytes that the bare loop reads and writes on each rank, for one byte of the size.
double traffic(const Shape& shape) {
  const double p = shape.world_size;
  switch (shape.collective) {
    case Collective::broadcast:
      return 2 * (p - 1) / p;
    case Collective::reduce_scatter:
      return 1 + 1 / p;
    default:
      return 2;
  }
}

void check_all_reduce(Bench& b, const Shape& shape, std::byte* memory,
                      const std::function<void()>& call) {
  auto* const values = reinterpret_cast<float*>(memory);
  const size_t count = shape.bytes / sizeof(float);
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(b.rank + 1);
  b.meeting.wait(b.world_size);
  call();
  const float sum = static_cast<float>(b.world_size * (b.world_size + 1)) / 2;
  for (size_t i = 0; i < count; ++i) PYCOMM_ASSERT(values[i] == sum, values[i], " at ", i);
  std::memset(memory, 0, shape.bytes);
  b.meeting.wait(b.world_size);
}

void measure(Bench& b, const Shape& shape) {
  std::vector<std::byte> ordinary(shape.total());
  std::byte* const shared = Arena::of_process().allocate(shape.total());
  PYCOMM_ASSERT(shared, "the arena is full or off");
  std::memset(shared, 0, shape.total());
  b.share(shared);
  const auto run = [&](std::byte* memory) {
    auto operation = std::make_shared<Operation>();
    operation->collective = shape.collective;
    operation->work = regions_of(shape, memory);
    b.engine.run(operation);
  };
  const std::function<void()> contenders[] = {[&] { run(ordinary.data()); }, [&] { run(shared); },
                                              [&] { bare(b, shape); }};
  std::byte* const memory[] = {ordinary.data(), shared, shared};
  if (shape.collective == Collective::all_reduce) {
    for (int k = 0; k < 3; ++k) check_all_reduce(b, shape, memory[k], contenders[k]);
  }
  const double us = 1.0 + static_cast<double>(shape.bytes) / 20000;
  const int calls = b.calls > 0 ? b.calls : std::max(4, static_cast<int>(6000 / us));
  std::vector<double> times[3];
  for (int sample = 0; sample < b.samples; ++sample) {
    for (int k = 0; k < 3; ++k) {
      contenders[k]();
      times[k].push_back(median_us(b.rank, b.world_size, b.meeting, 1, calls, contenders[k]));
    }
  }
  if (b.rank == 0) {
    double median[3];
    for (int k = 0; k < 3; ++k) {
      std::nth_element(times[k].begin(), times[k].begin() + b.samples / 2, times[k].end());
      median[k] = times[k][static_cast<size_t>(b.samples) / 2];
    }
    std::printf(
        "%-14s %10zu B %10.2f %10.2f %10.2f us  ordinary/arena %5.2f  bare/arena %5.2f  "
        "bare moves %.2f B/B, %.1f GB/s\n",
        std::string(name_of(shape.collective)).c_str(), shape.bytes, median[0], median[1],
        median[2], median[0] / median[1], median[2] / median[1], traffic(shape),
        traffic(shape) * static_cast<double>(shape.bytes) / median[2] / 1e3);
    std::fflush(stdout);
  }
  b.meeting.wait(b.world_size);
  Arena::of_process().free(shared);
}

std::vector<std::string> words(const std::string& text) {
  std::stringstream in(text);
  std::vector<std::string> all;
  for (std::string one; std::getline(in, one, ',');) all.push_back(one);
  return all;
}

}  // namespace

int main(int argc, char** argv) {
  std::map<std::string, std::string> given{
      {"world", "2"},
      {"collectives", "all_reduce,broadcast,all_gather,reduce_scatter,all_to_all"},
      {"sizes", "65536,262144,1048576,4194304,16777216,67108864"},
      {"samples", "15"},
      {"calls", "0"},
      {"algorithm", ""}};
  for (int i = 1; i < argc; ++i) {
    const std::string word = argv[i];
    const auto split = word.find('=');
    if (split == std::string::npos || !given.count(word.substr(0, split))) {
      std::fprintf(stderr, "unknown argument %s; see the head of core_windows.cc\n", argv[i]);
      return 2;
    }
    given[word.substr(0, split)] = word.substr(split + 1);
  }
  const int world_size = std::atoi(given["world"].c_str());
  if (world_size < 2 || world_size > kRanksMax) return 2;
  void* const at =
      ::mmap(nullptr, sizeof(Board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (at == MAP_FAILED) return 2;
  auto& board = *new (at) Board;
  return run_ranks(world_size, true, [&](int rank, Store& store, Meeting& meeting) {
    auto engine = make_engine(store, rank, world_size, "shm", given["algorithm"]);
    Bench bench{*engine,
                rank,
                world_size,
                meeting,
                board,
                std::atoi(given["samples"].c_str()),
                std::atoi(given["calls"].c_str())};
    for (const auto& name : words(given["collectives"])) {
      for (int code = 0; code < kCollectiveCount; ++code) {
        const auto collective = static_cast<Collective>(code);
        if (name != name_of(collective)) continue;
        for (const auto& size : words(given["sizes"])) {
          measure(bench, {collective, std::strtoull(size.c_str(), nullptr, 10), world_size});
        }
      }
    }
    engine->shutdown("the benchmark is over", true);
  });
}
