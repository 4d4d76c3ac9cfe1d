// SPDX-License-Identifier: MIT
// Ranks that call different things, and channels that drop, cut and delay: always an error, a stall
// that the engine's deadlines end, or the right result; never wrong data and never an endless loop.
#include "check.h"
#include "collective_data.h"
#include "simulation.h"

using namespace pycomm;
using data::Case;
using data::RankData;
using simulation::Order;

namespace {

constexpr uint64_t kSeed = 77031;

struct Call {
  Case c;
  std::string algorithm;
};

struct Result {
  simulation::Outcome outcome;
  std::vector<std::unique_ptr<RankData>> memory;
};

// Rank r makes the calls calls[r], all numbered alike.
Result run_calls(simulation::World& world, const std::vector<std::vector<Call>>& calls, Order order,
                 std::mt19937_64& random, int patience = 1) {
  Result result;
  std::vector<simulation::Script> scripts(calls.size());
  for (size_t rank = 0; rank < calls.size(); ++rank) {
    uint64_t sequence = 1;
    for (const auto& call : calls[rank]) {
      auto memory = std::make_unique<RankData>(call.c, static_cast<int>(rank));
      memory->operation.sequence = sequence++;
      scripts[rank].push_back(
          {&simulation::program_for(call.c.collective, call.algorithm, call.c.world_size,
                                    static_cast<int>(rank), call.c.root),
           &memory->operation});
      result.memory.push_back(std::move(memory));
    }
  }
  result.outcome = simulation::Run(world, scripts, order, random, patience).to_end();
  return result;
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// All ranks call `common` except `odd`, which calls `other`. Some rank must say what both called.
void expect_mismatch(const Call& common, const Call& other, int odd, const std::string& first,
                     const std::string& second) {
  std::mt19937_64 random(kSeed);
  const int p = common.c.world_size;
  for (const auto order : simulation::kOrders) {
    simulation::World world(p, 64);
    std::vector<std::vector<Call>> calls;
    for (int rank = 0; rank < p; ++rank) {
      const Call& mine = rank == odd ? other : common;
      calls.push_back({mine, mine});  // twice: a rank that needs no answer is found out by the next
    }
    const auto outcome = run_calls(world, calls, order, random).outcome;
    bool told = false;
    for (const auto& failure : outcome.failures) {
      if (!failure) continue;
      CHECK(failure.kind == FailureKind::mismatch, failure.text);
      CHECK(failure.ranks.size() == 1, failure.text);
      told |= contains(failure.text, first) && contains(failure.text, second);
    }
    CHECK(told, "expected '", first, "' and '", second, "'; order ", simulation::name_of(order),
          ": ", outcome.text());
  }
}

Call all_reduce(int p, size_t count, const char* algorithm = "direct") {
  return {{Collective::all_reduce, p, 0, ReduceOp::sum, DType::float32, count}, algorithm};
}

}  // namespace

TEST("a different number of elements is named with both sides, by every algorithm") {
  for (const int p : {2, 3, 4, 5}) {
    for (const auto name : algorithms_for(Collective::all_reduce)) {
      const std::string algorithm(name);
      expect_mismatch(all_reduce(p, 1000, algorithm.c_str()),
                      all_reduce(p, 1001, algorithm.c_str()), p - 1,
                      "all_reduce(float32[1000], sum)", "all_reduce(float32[1001], sum)");
    }
  }
}

TEST("a different dtype, op, collective or algorithm is named with both sides") {
  const Call common = all_reduce(4, 100);
  Call other = common;
  other.c.dtype = DType::int32;
  expect_mismatch(common, other, 2, "all_reduce(float32[100], sum)", "all_reduce(int32[100], sum)");
  other = common;
  other.c.op = ReduceOp::max;
  expect_mismatch(common, other, 2, "all_reduce(float32[100], sum)",
                  "all_reduce(float32[100], max)");
  other = {{Collective::broadcast, 4, 1, ReduceOp::sum, DType::float32, 100}, "direct"};
  expect_mismatch(common, other, 2, "all_reduce(float32[100], sum)",
                  "broadcast(float32[100], root 1)");
  other = {{Collective::barrier, 4}, "dissemination"};
  expect_mismatch(common, other, 0, "all_reduce(float32[100], sum)", "barrier()");
  expect_mismatch(common, all_reduce(4, 100, "ring"), 1, "by another algorithm", "PYCOMM_ALGO");
}

TEST("different roots are named with both sides, for every rooted collective and algorithm") {
  for (const auto collective :
       {Collective::broadcast, Collective::reduce, Collective::gather, Collective::scatter}) {
    for (const auto algorithm : algorithms_for(collective)) {
      for (const int p : {2, 3, 4, 7}) {
        const Call common{{collective, p, 0, ReduceOp::sum, DType::float32, 40},
                          std::string(algorithm)};
        Call other = common;
        other.c.root = 1;
        for (const int odd : {0, 1, p - 1}) expect_mismatch(common, other, odd, "root 0", "root 1");
      }
    }
  }
}

TEST("gather and scatter refuse blocks of different sizes and name both") {
  for (const auto collective : {Collective::gather, Collective::scatter}) {
    const Call common{{collective, 4, 0, ReduceOp::sum, DType::float32, 40}, "direct"};
    Call other = common;
    other.c.count = 41;
    expect_mismatch(common, other, 2, "float32[40]", "float32[41]");
  }
}

TEST("a rank that is one call behind is named with both numbers") {
  std::mt19937_64 random(kSeed);
  simulation::World world(2, 64);
  const Call call = all_reduce(2, 10, "one_shot");
  const Call other{{Collective::all_gather, 2, 0, ReduceOp::sum, DType::float32, 10}, "direct"};
  const auto result = run_calls(world, {{call, other}, {other, call}}, Order::round_robin, random);
  const auto& text = result.outcome.failures[0].text;
  CHECK(contains(text, "all_reduce(float32[10], sum)") && contains(text, "all_gather(float32[10])"),
        result.outcome.text());
}

TEST("a find of nothing contradictory leaves a waiting rank alone") {
  simulation::World world(3, 64);
  const Call call = all_reduce(3, 100, "ring");
  RankData memory(call.c, 0);
  memory.operation.sequence = 1;
  auto& executor = world.executor(0);
  executor.start(simulation::program_for(Collective::all_reduce, "ring", 3, 0, 0),
                 memory.operation);
  while (executor.advance() == Executor::Progress::moved) {
  }
  CHECK(!executor.find_contradiction());
  CHECK(executor.awaited() == std::vector<int>{2}, executor.awaited().size());
}

namespace {

// Random calls over channels of which one is faulty. Returns how many of the runs ended well.
template <class MakeFault>
int run_with_faults(int rounds, int patience, const MakeFault& make_fault, bool may_stall) {
  int completed = 0;
  for (int round = 0; round < rounds; ++round) {
    const uint64_t seed = kSeed + static_cast<uint64_t>(round);
    std::mt19937_64 random(seed);
    const int p = 2 + static_cast<int>(random() % 5);
    const int from = static_cast<int>(random() % static_cast<unsigned>(p));
    const int to = (from + 1 + static_cast<int>(random() % static_cast<unsigned>(p - 1))) % p;
    const FaultPlan fault = make_fault(random);
    simulation::World world(p, 64, kSlots, [&](int a, int b) {
      return (a == from && b == to) || patience > 1 ? fault : FaultPlan{};
    });
    std::vector<Call> calls;
    for (int k = 0; k < 3; ++k) {
      const auto collective =
          static_cast<Collective>(random() % static_cast<uint64_t>(Collective::send));
      const auto names = algorithms_for(collective);
      const int root =
          is_rooted(collective) ? static_cast<int>(random() % static_cast<unsigned>(p)) : 0;
      calls.push_back(
          {{collective, p, root, ReduceOp::sum, DType::float32, random() % 200, false, k},
           std::string(names[random() % names.size()])});
    }
    const auto result =
        run_calls(world, std::vector<std::vector<Call>>(static_cast<size_t>(p), calls),
                  simulation::kOrders[random() % 4], random, patience);
    const auto& outcome = result.outcome;
    CHECK(may_stall || !outcome.stalled, "seed ", seed, ": ", outcome.text());
    bool all = true;
    for (size_t rank = 0; rank < static_cast<size_t>(p); ++rank) {
      for (size_t k = 0; k < calls.size(); ++k) {
        if (k >= outcome.done[rank]) {
          all = false;
          continue;
        }
        const auto wrong = result.memory[rank * calls.size() + k]->wrong();
        CHECK(wrong.empty(), "seed ", seed, ": ", wrong, "; ", outcome.text());
      }
    }
    completed += all;
  }
  return completed;
}

}  // namespace

TEST("a dropped frame is an error, a stall or harmless, and never wrong data") {
  const auto drop = [](std::mt19937_64& random) {
    FaultPlan fault;
    fault.drop_frame = random() % 12;
    return fault;
  };
  const int completed = run_with_faults(1500, 1, drop, true);
  CHECK(completed > 0 && completed < 1500, completed, " of 1500 completed");
}

TEST("a connection that is cut fails the rank that uses it and spoils no data") {
  const auto cut = [](std::mt19937_64& random) {
    FaultPlan fault;
    fault.cut_before_frame = random() % 12;
    return fault;
  };
  const int completed = run_with_faults(1500, 1, cut, true);
  CHECK(completed > 0 && completed < 1500, completed, " of 1500 completed");
}

TEST("channels that are late now and then change nothing") {
  const auto delay = [](std::mt19937_64& random) {
    FaultPlan fault;
    fault.delay_every = 2 + random() % 2;
    return fault;
  };
  CHECK(run_with_faults(200, 3000, delay, false) == 200);
}
