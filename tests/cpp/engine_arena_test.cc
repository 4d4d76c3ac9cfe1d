// SPDX-License-Identifier: MIT
// Whole engines, ranks as threads, tensors in the arena or not: the results are right, synchronous
// and not, and what a failed operation has shown to peers is never given out again.
#include <random>

#include "collective_data.h"
#include "groups.h"
#include "transport/arena.h"

using namespace groups;

namespace {

constexpr uint64_t kSeed = 1815;

// Each rank maps the rings at addresses of its own, so ThreadSanitizer does not see that a frame's
// publication orders what two threads do to a window, and reports every access as a race.
#ifdef __SANITIZE_THREAD__
constexpr bool kOrderIsHidden = true;
#else
constexpr bool kOrderIsHidden = false;
#endif

// One rank's regions, moved into the arena where `random` says so, at addresses of any alignment.
class Placed {
 public:
  Placed(data::RankData& memory, std::mt19937_64& random) : memory_(memory) {
    auto& operation = memory.operation;
    const size_t element = size_of(operation.dtype);
    for (Region& region : operation.work) {
      homes_.push_back(region.data);
      blocks_.push_back(nullptr);
      if (region.count == 0 || random() % 4 == 0) continue;
      const size_t skip = random() % 3 * element;
      blocks_.back() = Arena::of_process().allocate(region.count * element + skip);
      CHECK(blocks_.back(), "the arena is full");
      std::memcpy(blocks_.back() + skip, region.data, region.count * element);
      region.data = blocks_.back() + skip;
    }
  }
  ~Placed() {
    for (std::byte* block : blocks_) Arena::of_process().free(block);
  }
  Placed(const Placed&) = delete;
  Placed& operator=(const Placed&) = delete;

  std::string wrong() {
    auto& operation = memory_.operation;
    for (size_t i = 0; i < homes_.size(); ++i) {
      const Region& region = operation.work[i];
      if (!blocks_[i]) continue;
      std::memcpy(homes_[i], region.data, region.count * size_of(operation.dtype));
    }
    return memory_.wrong();
  }

 private:
  data::RankData& memory_;
  std::vector<std::byte*> homes_, blocks_;
};

// The same on all ranks: what is called, in which order.
std::vector<data::Case> cases_for(int world_size, int count) {
  std::mt19937_64 random(kSeed + static_cast<uint64_t>(world_size));
  std::vector<data::Case> cases;
  while (static_cast<int>(cases.size()) < count) {
    const auto collective =
        static_cast<Collective>(random() % static_cast<uint64_t>(Collective::barrier));
    const auto choices = data::arithmetic_for(collective);
    const auto [op, dtype] = choices[random() % choices.size()];
    const int root = is_rooted(collective) ? static_cast<int>(random()) & 1 : 0;
    const size_t elements = 1000 + random() % 80000;
    const bool uneven = data::may_be_uneven(collective) && random() % 2;
    cases.push_back({collective, world_size, root, op, dtype, elements, uneven,
                     static_cast<int>(cases.size())});
  }
  return cases;
}

// The operation that `memory` describes. Whoever runs it may still look at it when the one who
// waits has gone on, so it keeps the memory.
OperationPtr operation_of(const std::shared_ptr<data::RankData>& memory) {
  return {memory, &memory->operation};
}

}  // namespace

TEST("collectives over tensors in and out of the arena are right, one after the other") {
  if (kOrderIsHidden) return;
  // Within a host tensors are referred to, between hosts they travel; two-level plans do both.
  for (const auto& hosts :
       {std::vector<int>{0, 0}, {0, 0, 0}, {0, 0, 0, 0}, {0, 0, 1, 1}, {0, 1, 0, 1, 2}}) {
    const int p = static_cast<int>(hosts.size());
    const auto cases = cases_for(p, 60);
    with_group({"shm,tcp", hosts}, p, [&](std::unique_ptr<Engine>& engine, int rank) {
      std::mt19937_64 random(kSeed + static_cast<uint64_t>(rank));
      for (const auto& c : cases) {
        const auto memory = std::make_shared<data::RankData>(c, rank);
        Placed placed(*memory, random);
        engine->run(operation_of(memory));
        const auto wrong = placed.wrong();
        CHECK(wrong.empty(), wrong, ", seed ", kSeed);
      }
    });
  }
  CHECK(Arena::of_process().statistics().quarantined_bytes == 0);
}

TEST("collectives over tensors in and out of the arena are right, many at once in the queue") {
  if (kOrderIsHidden) return;
  for (const int p : {2, 3}) {
    const auto cases = cases_for(p, 40);
    with_group({"shm"}, p, [&](std::unique_ptr<Engine>& engine, int rank) {
      std::mt19937_64 random(kSeed + static_cast<uint64_t>(rank));
      std::vector<std::shared_ptr<data::RankData>> memory;
      std::vector<std::unique_ptr<Placed>> placed;
      for (const auto& c : cases) {
        memory.push_back(std::make_shared<data::RankData>(c, rank));
        placed.push_back(std::make_unique<Placed>(*memory.back(), random));
        engine->submit(operation_of(memory.back()));
      }
      for (size_t k = 0; k < cases.size(); ++k) {
        engine->wait(memory[k]->operation, {});
        const auto wrong = placed[k]->wrong();
        CHECK(wrong.empty(), wrong, ", seed ", kSeed);
      }
    });
  }
}

TEST("a tensor may be written as soon as its all_reduce has returned, whatever peers still do") {
  if (kOrderIsHidden) return;
  constexpr size_t kCount = 30000;
  for (const int p : {2, 3}) {
    with_group({"shm"}, p, [&](std::unique_ptr<Engine>& engine, int rank) {
      auto* const values =
          reinterpret_cast<float*>(Arena::of_process().allocate(kCount * sizeof(float)));
      for (int round = 0; round < 300; ++round) {
        for (size_t i = 0; i < kCount; ++i) values[i] = static_cast<float>(rank + round);
        auto operation = std::make_shared<Operation>();
        operation->work = {{reinterpret_cast<std::byte*>(values), kCount}};
        engine->run(operation);
        const auto sum = static_cast<float>(p * round + p * (p - 1) / 2);
        for (size_t i = 0; i < kCount; ++i) {
          CHECK(values[i] == sum, "round ", round, ", rank ", rank, ", element ", i, " is ",
                values[i], ", expected ", sum);
        }
      }
      Arena::of_process().free(reinterpret_cast<std::byte*>(values));
    });
  }
}

TEST("memory that a failed operation has shown to peers is never given out again") {
  constexpr size_t kCount = 100000;
  auto& arena = Arena::of_process();
  const size_t before = arena.statistics().quarantined_bytes;
  with_group({"shm"}, 2, [&](std::unique_ptr<Engine>& engine, int rank) {
    std::byte* const block = arena.allocate(kCount * sizeof(float));
    std::memset(block, 0, kCount * sizeof(float));
    auto operation = std::make_shared<Operation>();
    operation->work = {{block, kCount}};
    if (rank == 0) {  // rank 1 leaves instead
      const auto why = failure_of([&] { engine->run(operation); });
      CHECK(why.kind == FailureKind::peer_failure, why.text);
    }
    arena.free(block);
    if (rank == 0) CHECK(arena.statistics().quarantined_bytes - before >= kCount * sizeof(float));
  });
  // Rank 1 has shown nothing.
  CHECK(arena.statistics().quarantined_bytes - before < 2 * kCount * sizeof(float));
}
