// SPDX-License-Identifier: MIT
// All ranks of pycomm's core, the engine without torch: core_rank WORLD [arena] forks them. With
// `arena` all buffers lie in memory that the ranks map.
#include "../core_group.h"
#include "rank.h"
#include "transport/arena.h"

namespace {

using namespace pycomm;

class CoreContender final : public peers::Contender {
 public:
  CoreContender(Engine& engine, int rank, int world, bool arena)
      : engine_(engine), rank_(rank), world_(world), arena_(arena) {}
  int rank() const override { return rank_; }
  int world() const override { return world_; }
  std::string version() const override { return arena_ ? "pycomm core, arena" : "pycomm core"; }
  std::byte* allocate(size_t bytes) override {
    if (!arena_) return Contender::allocate(bytes);
    std::byte* data = Arena::of_process().allocate(bytes);
    if (!data) throw std::runtime_error("the arena is full or not there");
    return data;
  }
  void release(std::byte* data, size_t bytes) override {
    if (!arena_) return Contender::release(data, bytes);
    Arena::of_process().free(data);
    Arena::of_process().trim();  // other contenders need the memory
  }

  std::string prepare(const peers::Cell& cell, std::byte* in, std::byte* out) override {
    work_ = {};
    if (!find(cell)) return "no such collective or dtype";
    const auto add = [&](std::byte* data, size_t count) { work_.push_back({data, count}); };
    const auto add_blocks = [&](std::byte* data) {
      for (size_t i = 0; i < static_cast<size_t>(world_); ++i) {
        add(data + i * cell.block * cell.itemsize, cell.block);
      }
    };
    switch (collective_) {
      case Collective::all_gather:
        add_blocks(out);
        add(in, cell.block);
        break;
      case Collective::reduce_scatter:
        add_blocks(in);
        add(out, cell.block);
        break;
      case Collective::all_to_all:
        add_blocks(in);
        add_blocks(out);
        break;
      case Collective::barrier:
        break;
      default:
        add(in, cell.count);
    }
    return "";
  }
  void call() override { run(collective_, dtype_, work_); }
  void barrier() override { run(Collective::barrier, DType::uint8, {}); }

 private:
  // Every call makes its operation anew, as a caller does.
  void run(Collective collective, DType dtype, const Regions& work) {
    auto operation = std::make_shared<Operation>();
    operation->collective = collective;
    operation->dtype = dtype;
    operation->work = work;
    engine_.run(operation);
  }
  bool find(const peers::Cell& cell) {
    int found = 0;
    for (int i = 0; i < kCollectiveCount; ++i) {
      if (name_of(static_cast<Collective>(i)) != cell.collective) continue;
      collective_ = static_cast<Collective>(i);
      ++found;
    }
    for (int i = 0; i < kDTypeCount; ++i) {
      if (name_of(static_cast<DType>(i)) != cell.dtype) continue;
      dtype_ = static_cast<DType>(i);
      ++found;
    }
    return found == 2;
  }

  Engine& engine_;
  int rank_, world_;
  bool arena_;
  Collective collective_ = Collective::barrier;
  DType dtype_ = DType::float32;
  Regions work_;
};

}  // namespace

int main(int argc, char** argv) {
  const int world = argc > 1 ? std::atoi(argv[1]) : 0;
  if (world < 1 || world > core_group::kRanksMax) {
    std::fprintf(stderr, "usage: core_rank WORLD [arena]\n");
    return 2;
  }
  const bool arena = argc > 2 && std::string(argv[2]) == "arena";
  return core_group::run_ranks(world, true, [&](int rank, Store& store, core_group::Meeting&) {
    const char* algorithms = std::getenv("PYCOMM_ALGO");
    auto engine = core_group::make_engine(store, rank, world, "shm", algorithms ? algorithms : "");
    CoreContender contender(*engine, rank, world, arena);
    peers::serve(contender);
    engine->shutdown("the benchmark is over", true);
  });
}
