// SPDX-License-Identifier: MIT
// Collectives whose tensors peers can reach: frames refer to memory instead of carrying it, and
// sums are written where peers wait for them. All ranks in one thread over loopback, in many
// orders; some tensors are in reach and some are not; the results must be those without windows.
#include <cstdio>

#include "check.h"
#include "collective_data.h"
#include "simulation.h"

using namespace pycomm;
using data::Case;
using data::RankData;
using simulation::Order;

namespace {

constexpr uint64_t kSeed = 20261121;

// The memory that frames may refer to.
class Reachable {
 public:
  void add(const Operation& operation) {
    for (const Region& region : operation.work) {
      const size_t bytes = region.count * size_of(operation.dtype);
      if (bytes) ranges_.emplace_back(region.data, region.data + bytes);
    }
  }
  void clear() { ranges_.clear(); }
  LoopbackReach function() {
    return [this](const std::byte* data, size_t bytes) {
      for (const auto& [begin, end] : ranges_) {
        if (data < begin || data + bytes > end) continue;
        ++asked_;
        return true;
      }
      return false;
    };
  }
  size_t found() const { return asked_; }

 private:
  std::vector<std::pair<const std::byte*, const std::byte*>> ranges_;
  size_t asked_ = 0;
};

struct Work {
  Case c;
  std::string algorithm;
};

enum class Reach { all, some };

// Runs `works` one after the other and checks every byte.
void run_all(simulation::World& world, Reachable& reachable, Reach reach,
             const std::vector<Work>& works, Order order, std::mt19937_64& random,
             int patience = 1) {
  const int p = world.size();
  std::vector<std::unique_ptr<RankData>> memory;
  std::vector<simulation::Script> scripts(static_cast<size_t>(p));
  reachable.clear();
  for (const auto& work : works) {
    const auto sequence = world.next_sequence();
    for (int rank = 0; rank < p; ++rank) {
      memory.push_back(std::make_unique<RankData>(work.c, rank));
      Operation& operation = memory.back()->operation;
      operation.sequence = sequence;
      if (reach == Reach::all || random() % 2) reachable.add(operation);
      scripts[static_cast<size_t>(rank)].push_back(
          {&simulation::program_for(work.c.collective, work.algorithm, p, rank, work.c.root),
           &operation});
    }
  }
  const auto context = [&] {
    return str(works.front().c.text(), " by ", works.front().algorithm, ", order ",
               simulation::name_of(order), ", ", works.size(), " in a row, seed ", kSeed);
  };
  const auto outcome = simulation::Run(world, scripts, order, random, patience).to_end();
  CHECK(!outcome.stalled && outcome.all_done(scripts), context(), ": ", outcome.text());
  for (const auto& one : memory) CHECK(one->wrong().empty(), one->wrong(), "; ", context());
}

template <class Body>
void for_each_algorithm(const Body& body) {
  for (int code = 0; code < kCollectiveCount; ++code) {
    const auto collective = static_cast<Collective>(code);
    for (const auto name : algorithms_for(collective)) body(collective, std::string(name));
  }
}

// `how`: bytes of a segment, or a Cut.
template <class How>
void sweep(int p, const How& how, int slots) {
  std::mt19937_64 random(kSeed + static_cast<uint64_t>(p));
  Reachable reachable;
  simulation::World world(p, how, slots, {}, reachable.function());
  int turn = 0;
  for_each_algorithm([&](Collective collective, const std::string& algorithm) {
    for (const auto& [op, dtype] : data::arithmetic_for(collective)) {
      for (const size_t count : {size_t{0}, size_t{1}, static_cast<size_t>(p), size_t{333}}) {
        const int root =
            is_rooted(collective) ? static_cast<int>(random() % static_cast<unsigned>(p)) : 0;
        Case c{collective, p, root, op, dtype, count, false, ++turn};
        for (const auto reach : {Reach::all, Reach::some}) {
          c.uneven = data::may_be_uneven(collective) && turn % 2;
          const auto order = reach == Reach::all ? simulation::kOrders[turn % 4] : Order::random;
          run_all(world, reachable, reach, {{c, algorithm}}, order, random);
        }
      }
    }
  });
  CHECK(p == 1 || reachable.found() > 0);
}

}  // namespace

TEST("every algorithm is right whichever tensors are in reach, for 1 to 8 ranks, in any order") {
  for (int p = 1; p <= 8; ++p) sweep(p, size_t{64}, kSlots);
}

TEST("every algorithm is right in reach with one slot and with segments that divide nothing") {
  for (const int p : {2, 3, 5}) {
    sweep(p, size_t{24}, 1);
    sweep(p, size_t{1000}, 2);
  }
}

TEST("every algorithm is right in reach when tensors are sliced, some or all of them in reach") {
  for (int p = 1; p <= 8; ++p) {
    sweep(p, Cut{256, 64, 2, 640}, 2);
    sweep(p, Cut{64, 16, 3, 208}, kSlots);
  }
}

TEST("the rest of a sliced tensor goes whole where all tensors are in reach, else by slices") {
  const Cut cut{256, 64, 2, 640};
  const size_t slices = 50;
  std::mt19937_64 random(kSeed);
  for (const int p : {2, 3, 5}) {
    for (int out_of_reach = -1; out_of_reach < p; ++out_of_reach) {
      const Case c{Collective::all_reduce,       p,    0, ReduceOp::sum, DType::float32,
                   slices * 640 / sizeof(float), false};
      Reachable reachable;
      simulation::World world(p, cut, kSlots, {}, reachable.function());
      std::vector<std::unique_ptr<RankData>> memory;
      std::vector<simulation::Script> scripts;
      for (int rank = 0; rank < p; ++rank) {
        memory.push_back(std::make_unique<RankData>(c, rank));
        memory.back()->operation.sequence = 1;
        if (rank != out_of_reach) reachable.add(memory.back()->operation);
        scripts.push_back({{&simulation::program_for(c.collective, "direct", p, rank, 0),
                            &memory.back()->operation}});
      }
      const auto outcome = simulation::Run(world, scripts, Order::random, random).to_end();
      const auto context = str("rank ", out_of_reach, " of ", p, " out of reach, seed ", kSeed);
      CHECK(outcome.all_done(scripts), context, ": ", outcome.text());
      for (const auto& one : memory) CHECK(one->wrong().empty(), one->wrong(), "; ", context);
      // A rank asks once for each chunk that it gives away, in each piece of the tensor.
      const auto once = static_cast<size_t>(p * (p - 1));
      CHECK(
          out_of_reach < 0 ? reachable.found() <= 4 * once : reachable.found() >= slices * once / 2,
          context, ": asked ", reachable.found(), " times");
    }
  }
}

TEST("operations in a row over tensors in reach do not mix, though ranks run ahead") {
  std::mt19937_64 random(kSeed);
  for (const int p : {2, 3, 4, 8}) {
    Reachable reachable;
    simulation::World world(p, 64, kSlots, {}, reachable.function());
    for (int round = 0; round < 40; ++round) {
      std::vector<Work> works;
      for (int k = 0; k < 8; ++k) {
        const auto collective =
            static_cast<Collective>(random() % static_cast<uint64_t>(Collective::send));
        const auto names = algorithms_for(collective);
        const auto choices = data::arithmetic_for(collective);
        const auto [op, dtype] = choices[random() % choices.size()];
        const int root =
            is_rooted(collective) ? static_cast<int>(random() % static_cast<unsigned>(p)) : 0;
        const bool uneven = data::may_be_uneven(collective) && random() % 2 == 0;
        works.push_back({{collective, p, root, op, dtype, random() % 150, uneven, k},
                         std::string(names[random() % names.size()])});
      }
      run_all(world, reachable, Reach::some, works, simulation::kOrders[random() % 4], random);
    }
  }
}

namespace {

// Several all_reduces over one and the same tensor of each rank; returns all tensors.
std::vector<std::vector<float>> repeated(int p, const std::string& algorithm, uint64_t seed,
                                         Reach reach, bool windows) {
  constexpr int kRounds = 4;
  std::mt19937_64 random(seed);
  std::uniform_real_distribution<float> values(-1, 1);
  Reachable reachable;
  simulation::World world(p, 64, kSlots, {}, windows ? reachable.function() : LoopbackReach());
  std::vector<std::vector<float>> tensors(static_cast<size_t>(p), std::vector<float>(333));
  std::vector<simulation::Script> scripts(static_cast<size_t>(p));
  std::vector<std::unique_ptr<Operation>> operations;
  for (auto& tensor : tensors) {
    for (auto& one : tensor) one = values(random);
  }
  for (int round = 0; round < kRounds; ++round) {
    const auto sequence = world.next_sequence();
    for (int rank = 0; rank < p; ++rank) {
      auto& tensor = tensors[static_cast<size_t>(rank)];
      auto operation = std::make_unique<Operation>();
      operation->sequence = sequence;
      // Another offset each time, odd ones too.
      const size_t skip = static_cast<size_t>(round);
      operation->work = {{reinterpret_cast<std::byte*>(tensor.data() + skip), 333 - skip}};
      if (reach == Reach::all || rank % 2) reachable.add(*operation);
      scripts[static_cast<size_t>(rank)].push_back(
          {&simulation::program_for(Collective::all_reduce, algorithm, p, rank, 0),
           operation.get()});
      operations.push_back(std::move(operation));
    }
  }
  const auto outcome = simulation::Run(world, scripts, Order::random, random).to_end();
  CHECK(outcome.all_done(scripts), algorithm, " on ", p, " ranks, seed ", seed, ": ",
        outcome.text());
  return tensors;
}

}  // namespace

TEST("all_reduces in a row over one tensor give the bits that they give without windows") {
  for (const int p : {2, 3, 4, 7}) {
    for (const auto name : algorithms_for(Collective::all_reduce)) {
      for (const auto reach : {Reach::all, Reach::some}) {
        for (uint64_t seed = kSeed; seed < kSeed + 5; ++seed) {
          const auto expected = repeated(p, std::string(name), seed, reach, false);
          const auto got = repeated(p, std::string(name), seed, reach, true);
          for (size_t rank = 0; rank < got.size(); ++rank) {
            CHECK(std::memcmp(got[rank].data(), expected[rank].data(), 333 * sizeof(float)) == 0,
                  name, " on ", p, " ranks, rank ", rank, ", seed ", seed);
          }
        }
      }
    }
  }
}

TEST("a lost reference is noticed: some rank says so, or all wait for it, and nothing is wrong") {
  std::mt19937_64 random(kSeed);
  for (int round = 0; round < 200; ++round) {
    const int p = 2 + static_cast<int>(random() % 3);
    const int from = static_cast<int>(random() % static_cast<unsigned>(p));
    const uint64_t drop = random() % 4;
    Reachable reachable;
    const auto faults = [&](int a, int) {
      FaultPlan plan;
      if (a == from) plan.drop_frame = drop;
      return plan;
    };
    simulation::World world(p, 64, kSlots, faults, reachable.function());
    std::vector<std::unique_ptr<RankData>> memory;
    std::vector<simulation::Script> scripts(static_cast<size_t>(p));
    const Case c{Collective::all_reduce, p, 0, ReduceOp::sum, DType::float32, 333, false, round};
    const size_t operations = drop / 2 + 1;
    for (size_t k = 0; k < operations; ++k) {
      const auto sequence = world.next_sequence();
      for (int rank = 0; rank < p; ++rank) {
        memory.push_back(std::make_unique<RankData>(c, rank));
        memory.back()->operation.sequence = sequence;
        reachable.add(memory.back()->operation);
        scripts[static_cast<size_t>(rank)].push_back(
            {&simulation::program_for(Collective::all_reduce, "direct", p, rank, 0),
             &memory.back()->operation});
      }
    }
    const auto outcome = simulation::Run(world, scripts, Order::random, random).to_end();
    CHECK(!outcome.all_done(scripts), "round ", round, ", seed ", kSeed, ": ", outcome.text());
    // What did complete is right.
    for (size_t rank = 0; rank < scripts.size(); ++rank) {
      for (size_t k = 0; k < outcome.done[rank]; ++k) {
        const auto& one = *memory[k * static_cast<size_t>(p) + rank];
        CHECK(one.wrong().empty(), one.wrong(), ", round ", round, ", seed ", kSeed);
      }
    }
  }
}

TEST("delays at every call change nothing") {
  std::mt19937_64 random(kSeed);
  for (const int p : {2, 3, 4}) {
    Reachable reachable;
    const auto delays = [](int a, int b) {
      FaultPlan plan;
      plan.delay_every = static_cast<uint64_t>(2 + (a + b) % 3);
      return plan;
    };
    simulation::World world(p, 64, kSlots, delays, reachable.function());
    for_each_algorithm([&](Collective collective, const std::string& algorithm) {
      const auto [op, dtype] = data::arithmetic_for(collective).front();
      const Case c{collective, p, p - 1, op, dtype, 200, false, p};
      run_all(world, reachable, Reach::some, {{c, algorithm}}, Order::random, random, 20);
    });
  }
}

// The rule that lets a fold write into a peer's memory: the peer's next touch of that chunk is the
// receive of the very frame that takes the answer's place.
TEST("wherever a fold may answer in place, the peer receives the same chunk in that frame") {
  size_t answers = 0;
  for (int p = 2; p <= 16; ++p) {
    for (const auto name : algorithms_for(Collective::all_reduce)) {
      std::vector<Program> programs;
      for (int rank = 0; rank < p; ++rank) {
        programs.emplace_back(make_plan(Collective::all_reduce, std::string(name), p, rank, 0));
      }
      // Chunks in the order of frames from `from` to `to`, with the instruction that has them.
      using Kind = Instruction::Kind;
      const auto frames = [&](int from, int to, bool sent) {
        std::vector<std::pair<int, size_t>> all;
        const auto& list = programs[static_cast<size_t>(sent ? from : to)].instructions;
        for (size_t i = 0; i < list.size(); ++i) {
          const auto& one = list[i];
          const bool matches = sent ? one.kind == Kind::send && one.peer == to
                                    : (one.kind == Kind::recv && one.peer == from) ||
                                          (one.kind == Kind::fold &&
                                           std::find(one.operands.begin(), one.operands.end(),
                                                     from) != one.operands.end());
          if (matches) all.emplace_back(one.target, i);
        }
        return all;
      };
      for (int rank = 0; rank < p; ++rank) {
        const auto& list = programs[static_cast<size_t>(rank)].instructions;
        for (size_t f = 0; f < list.size(); ++f) {
          for (size_t k = 0; k < list[f].answers.size(); ++k) {
            if (list[f].answers[k] < 0) continue;
            const int peer = list[f].operands[k];
            const auto context = str(name, " on ", p, " ranks, rank ", rank, ", fold ", f);
            // The frame that the fold reads, at the peer.
            const auto read = frames(peer, rank, false), given = frames(peer, rank, true);
            size_t at = 0;
            while (read[at].second != f) ++at;
            const auto& theirs = programs[static_cast<size_t>(peer)].instructions;
            const auto& contribution = theirs[given[at].second];
            if (contribution.answer < 0) continue;  // the peer does not allow it
            ++answers;
            const auto sent = frames(rank, peer, true), taken = frames(rank, peer, false);
            size_t n = 0;
            while (sent[n].second != static_cast<size_t>(list[f].answers[k])) ++n;
            CHECK(static_cast<int>(taken[n].second) == contribution.answer, context);
            CHECK(theirs[taken[n].second].target == contribution.target, context);
          }
        }
      }
    }
  }
  CHECK(answers > 100, answers);
}
