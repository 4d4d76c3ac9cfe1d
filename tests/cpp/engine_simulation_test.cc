// SPDX-License-Identifier: MIT
// Every algorithm of every collective, run by the executor over loopback channels, all ranks in one
// thread: small segments, so that many arise, and many orders of stepping.
#include <cstdio>
#include <set>

#include "check.h"
#include "collective_data.h"
#include "simulation.h"

using namespace pycomm;
using data::Case;
using data::RankData;
using simulation::Order;

namespace {

constexpr uint64_t kSeed = 20240817;

struct Work {
  Case c;
  std::string algorithm;
};

// Runs `works` one after the other on the world's executors and checks all memory.
void run_all(simulation::World& world, const std::vector<Work>& works, Order order,
             std::mt19937_64& random, int patience = 1) {
  const int p = world.size();
  std::vector<std::unique_ptr<RankData>> memory;
  std::vector<simulation::Script> scripts(static_cast<size_t>(p));
  for (const auto& work : works) {
    const auto sequence = world.next_sequence();
    for (int rank = 0; rank < p; ++rank) {
      memory.push_back(std::make_unique<RankData>(work.c, rank));
      memory.back()->operation.sequence = sequence;
      scripts[static_cast<size_t>(rank)].push_back(
          {&simulation::program_for(work.c.collective, work.algorithm, p, rank, work.c.root),
           &memory.back()->operation});
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

std::set<size_t> counts_for(int p) {
  const auto ranks = static_cast<size_t>(p);
  return {0, 1, ranks - 1, ranks, ranks + 1, 100, 1000};
}

std::vector<int> roots_for(Collective collective, int p, std::mt19937_64& random) {
  if (!is_rooted(collective)) return {0};
  std::set<int> roots{0, p - 1, static_cast<int>(random() % static_cast<unsigned>(p))};
  return {roots.begin(), roots.end()};
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
void sweep(int p, const How& how, int slots, bool thorough) {
  std::mt19937_64 random(kSeed + static_cast<uint64_t>(p));
  simulation::World world(p, how, slots);
  int turn = 0;
  for_each_algorithm([&](Collective collective, const std::string& algorithm) {
    for (const auto& [op, dtype] : data::arithmetic_for(collective)) {
      for (const size_t count : counts_for(p)) {
        for (const int root : roots_for(collective, p, random)) {
          Case c{collective, p, root, op, dtype, count, false, turn};
          ++turn;
          if (!thorough && (turn % 5 != 0 || count == 1000)) continue;
          // Another order each time; the random one always.
          for (const auto order : {Order::random, simulation::kOrders[1 + turn % 3]}) {
            c.uneven = false;
            run_all(world, {{c, algorithm}}, order, random);
            c.uneven = data::may_be_uneven(collective);
            if (c.uneven) run_all(world, {{c, algorithm}}, order, random);
          }
        }
      }
    }
  });
}

}  // namespace

TEST("every algorithm is right for 1 to 8 ranks, all counts, ops and orders of stepping") {
  for (int p = 1; p <= 8; ++p) sweep(p, size_t{64}, kSlots, true);
}

TEST("every algorithm is right for 9 to 16 ranks") {
  for (const int p : {9, 11, 12, 15, 16}) sweep(p, size_t{64}, kSlots, false);
}

TEST("every algorithm is right with one slot and with segments that divide nothing") {
  for (const int p : {2, 3, 5, 8}) {
    sweep(p, size_t{24}, 1, false);
    sweep(p, size_t{1000}, 2, false);
  }
}

TEST("every algorithm is right when tensors are sliced and small chunks cut finer") {
  for (const int p : {1, 2, 3, 4, 5, 8}) {
    sweep(p, Cut{256, 64, 2, 640}, 2, false);
    sweep(p, Cut{64, 16, 3, 208}, kSlots, false);
  }
}

TEST("operations in a row on the same executors do not mix, though ranks run ahead") {
  std::mt19937_64 random(kSeed);
  for (const int p : {2, 3, 4, 5, 7, 8}) {
    simulation::World world(p, 64);
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
      run_all(world, works, simulation::kOrders[random() % 4], random);
    }
  }
}

TEST("every two-level plan is right for uneven hosts and uneven blocks, in any order of events") {
  std::mt19937_64 random(kSeed);
  const std::vector<std::vector<std::vector<int>>> layouts{
      {{0, 1}, {2, 3}}, {{0, 2, 4}, {1, 3}}, {{0}, {1, 2, 3}}, {{3, 1}, {0}, {2, 4, 5}}};
  for (const auto& hosts : layouts) {
    int p = 0;
    for (const auto& host : hosts) p += static_cast<int>(host.size());
    simulation::World world(p, 64);
    for (const auto collective :
         {Collective::all_reduce, Collective::broadcast, Collective::reduce, Collective::all_gather,
          Collective::reduce_scatter, Collective::barrier}) {
      const int root =
          is_rooted(collective) ? static_cast<int>(random() % static_cast<unsigned>(p)) : 0;
      const auto op = is_reduction(collective) ? ReduceOp::avg : ReduceOp::sum;
      std::vector<Program> programs;
      for (int rank = 0; rank < p; ++rank) {
        programs.emplace_back(make_hierarchical_plan(collective, hosts, rank, root));
      }
      for (const size_t count : counts_for(p)) {
        for (const auto order : simulation::kOrders) {
          const bool uneven = data::may_be_uneven(collective);
          const Case c{collective, p, root, op, DType::float32, count, uneven, 1};
          std::vector<std::unique_ptr<RankData>> memory;
          std::vector<simulation::Script> scripts;
          const auto sequence = world.next_sequence();
          for (int rank = 0; rank < p; ++rank) {
            memory.push_back(std::make_unique<RankData>(c, rank));
            memory.back()->operation.sequence = sequence;
            scripts.push_back({{&programs[static_cast<size_t>(rank)], &memory.back()->operation}});
          }
          const auto outcome = simulation::Run(world, scripts, order, random).to_end();
          CHECK(outcome.all_done(scripts), c.text(), ", seed ", kSeed, ": ", outcome.text());
          for (const auto& one : memory) CHECK(one->wrong().empty(), one->wrong());
        }
      }
    }
  }
}

TEST("fractions are rounded alike on all ranks, bit for bit") {
  std::mt19937_64 random(kSeed);
  std::uniform_real_distribution<float> values(-1, 1);
  for (const int p : {2, 3, 4, 6, 7, 8, 13}) {
    simulation::World world(p, 64);
    for (const auto name : algorithms_for(Collective::all_reduce)) {
      std::vector<std::vector<float>> tensors(static_cast<size_t>(p), std::vector<float>(333));
      std::vector<double> exact(333);
      std::vector<std::unique_ptr<Operation>> operations;
      std::vector<simulation::Script> scripts;
      const auto sequence = world.next_sequence();
      for (int rank = 0; rank < p; ++rank) {
        auto& tensor = tensors[static_cast<size_t>(rank)];
        for (size_t i = 0; i < tensor.size(); ++i) exact[i] += tensor[i] = values(random);
        operations.push_back(std::make_unique<Operation>());
        operations.back()->sequence = sequence;
        operations.back()->work = {{reinterpret_cast<std::byte*>(tensor.data()), tensor.size()}};
        scripts.push_back(
            {{&simulation::program_for(Collective::all_reduce, std::string(name), p, rank, 0),
              operations.back().get()}});
      }
      const auto outcome = simulation::Run(world, scripts, Order::random, random).to_end();
      CHECK(outcome.all_done(scripts), name, " on ", p, " ranks, seed ", kSeed, ": ",
            outcome.text());
      for (size_t i = 0; i < exact.size(); ++i) {
        CHECK(std::abs(tensors[0][i] - exact[i]) < 1e-5, name, " on ", p, " ranks, element ", i);
        for (const auto& tensor : tensors) {
          CHECK(std::memcmp(&tensor[i], &tensors[0][i], sizeof(float)) == 0, name, " on ", p,
                " ranks, element ", i, ", seed ", kSeed);
        }
      }
    }
  }
}

TEST("nobody leaves a barrier before everybody has entered it") {
  std::mt19937_64 random(kSeed);
  for (int p = 2; p <= 16; ++p) {
    simulation::World world(p, 64);
    for (int late = 0; late < p; ++late) {
      Operation operation;
      operation.collective = Collective::barrier;
      operation.sequence = world.next_sequence();
      std::vector<simulation::Script> scripts;
      for (int rank = 0; rank < p; ++rank) {
        scripts.push_back(
            {{&simulation::program_for(Collective::barrier, "dissemination", p, rank, 0),
              &operation}});
      }
      simulation::Run run(world, scripts, Order::round_robin, random);
      for (int i = 0; i < 100 * p; ++i) {
        const int rank = i % p;
        if (rank != late) run.step(rank);
      }
      for (const size_t done : run.outcome().done) CHECK(done == 0, "rank ", late, " of ", p);
      const auto outcome = run.to_end();
      CHECK(outcome.all_done(scripts), outcome.text());
    }
  }
}
