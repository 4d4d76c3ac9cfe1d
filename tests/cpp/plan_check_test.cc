// SPDX-License-Identifier: MIT
// The checker proves every algorithm at every world size, and rejects hand-made plans with one
// known defect each. plan_mutation_test.cc does the latter at random.
#include <set>

#include "check.h"
#include "plan/algorithms.h"
#include "plan/builder.h"
#include "plan/check.h"

using namespace pycomm;

namespace {

constexpr int kWorldSizeMax = 64;

bool is_rooted(Collective c) {
  return c == Collective::broadcast || c == Collective::reduce || c == Collective::gather ||
         c == Collective::scatter;
}

void prove(Collective collective, std::string_view algorithm, int world_size, int root) {
  const auto error = pycomm::check(make_plans(collective, algorithm, world_size, root));
  CHECK(error.empty(), name_of(collective), " ", algorithm, " p=", world_size, " root=", root, ": ",
        error);
}

PlanSet hierarchical(const std::vector<std::vector<int>>& hosts, std::string_view inter) {
  PlanSet plans;
  size_t ranks = 0;
  for (const auto& host : hosts) ranks += host.size();
  for (size_t r = 0; r < ranks; ++r) {
    plans.push_back(make_hierarchical_plan(hosts, inter, static_cast<int>(r)));
  }
  return plans;
}

void prove_hierarchical(const std::vector<std::vector<int>>& hosts) {
  for (const auto inter : algorithms_for(Collective::all_reduce)) {
    const auto error = pycomm::check(hierarchical(hosts, inter));
    CHECK(error.empty(), hosts.size(), " hosts, ", inter, ": ", error);
  }
}

// Hosts with consecutive ranks, `sizes[i]` of them.
std::vector<std::vector<int>> consecutive(const std::vector<int>& sizes) {
  std::vector<std::vector<int>> hosts;
  int next = 0;
  for (const int size : sizes) {
    hosts.emplace_back();
    for (int i = 0; i < size; ++i) hosts.back().push_back(next++);
  }
  return hosts;
}

std::vector<PlanBuilder> builders(Collective collective, int world_size, int work_chunks,
                                  int root = 0) {
  std::vector<PlanBuilder> result;
  for (int r = 0; r < world_size; ++r) {
    result.emplace_back(collective, "test", Place{world_size, r, root}, work_chunks);
  }
  return result;
}
std::string check_all(std::vector<PlanBuilder> plans) {
  PlanSet set;
  for (auto& plan : plans) set.push_back(std::move(plan).build());
  return pycomm::check(set);
}
void expect_error(const std::string& error, const std::string& part) {
  CHECK(error.find(part) != std::string::npos, "\"", error, "\" lacks \"", part, "\"");
}

}  // namespace

TEST("every algorithm is proved at every world size") {
  for (int c = 0; c < kCollectiveCount; ++c) {
    const auto collective = static_cast<Collective>(c);
    for (const auto algorithm : algorithms_for(collective)) {
      for (int p = 1; p <= kWorldSizeMax; ++p) {
        const std::set<int> roots =
            is_rooted(collective) ? std::set<int>{0, p > 1 ? 1 : 0, p - 1} : std::set<int>{0};
        for (const int root : roots) prove(collective, algorithm, p, root);
      }
    }
  }
}

TEST("sets of ranks may be larger than one machine word") {
  for (const int p : {65, 100, 129}) {
    for (const auto algorithm : algorithms_for(Collective::all_reduce)) {
      prove(Collective::all_reduce, algorithm, p, 0);
    }
    prove(Collective::barrier, "dissemination", p, 0);
  }
}

TEST("two levels are proved for hosts of equal size") {
  for (const int hosts : {1, 2, 3, 4, 5, 8, 16}) {
    for (const int per_host : {1, 2, 3, 4, 8}) {
      if (hosts * per_host > kWorldSizeMax) continue;
      prove_hierarchical(consecutive(std::vector<int>(static_cast<size_t>(hosts), per_host)));
    }
  }
}

TEST("two levels are proved for hosts of different size, and ranks dealt in any order") {
  for (const std::vector<int>& sizes : {std::vector<int>{1, 2},
                                        {3, 1},
                                        {4, 2, 1},
                                        {1, 1, 5},
                                        {2, 3, 4, 5},
                                        {8, 8, 7, 8, 1},
                                        {16, 15, 17, 16}}) {
    prove_hierarchical(consecutive(sizes));
  }
  prove_hierarchical({{0, 2, 4}, {1, 3, 5}});
  prove_hierarchical({{5, 0}, {3, 4}, {2, 1}});
  prove_hierarchical({{6, 1, 3}, {0}, {5, 2, 4, 7}});
}

TEST("a grid is proved at every world size, and between hosts") {
  for (const auto collective : {Collective::all_reduce, Collective::reduce_scatter}) {
    for (int p = 1; p <= kWorldSizeMax; ++p) {
      PlanSet plans;
      for (int r = 0; r < p; ++r) plans.push_back(make_grid_plan(collective, p, r));
      const auto error = pycomm::check(plans);
      CHECK(error.empty(), name_of(collective), " on ", p, " ranks: ", error);
    }
  }
  for (const int per_host : {1, 2}) {
    PlanSet plans;
    const auto hosts = consecutive(std::vector<int>(12, per_host));
    for (int r = 0; r < 12 * per_host; ++r) {
      plans.push_back(make_hierarchical_plan(hosts, kGrid, r));
    }
    const auto error = pycomm::check(plans);
    CHECK(error.empty(), error);
  }
}

TEST("adding into a chunk that is still to be sent is a deadlock") {
  auto plans = builders(Collective::all_reduce, 2, 1);
  for (int r = 0; r < 2; ++r) {
    plans[static_cast<size_t>(r)].send(1 - r, work(0));
    plans[static_cast<size_t>(r)].recv_reduce(1 - r, work(0), true);
  }
  expect_error(check_all(plans),
               "deadlock without buffering: rank 0 step 0 (send work[0] to 1), "
               "rank 1 step 0 (send work[0] to 0) wait for ever");
}

// Own value first: a+b+c on one rank, b+a+c on another. With p = 2 addition commutes.
TEST("ranks that add in different orders are rejected from three ranks on") {
  for (int p = 2; p <= 6; ++p) {
    auto plans = builders(Collective::all_reduce, p, 1);
    for (int r = 0; r < p; ++r) {
      PlanBuilder& plan = plans[static_cast<size_t>(r)];
      std::vector<ChunkRef> incoming;
      for (int q = 0; q < p; ++q) incoming.push_back(plan.add_scratch(0));
      for (int q = 0; q < p; ++q) {
        if (q == r) continue;
        plan.send(q, work(0));
        plan.recv(q, incoming[static_cast<size_t>(q)]);
      }
      int added = 1;
      for (int q = 0; q < p; ++q) {
        if (q != r) plan.reduce(incoming[static_cast<size_t>(q)], work(0), ++added == p);
      }
    }
    const auto error = check_all(plans);
    if (p == 2) {
      CHECK(error.empty(), error);
    } else {
      expect_error(error, "order of addition");
    }
  }
}

// The root fetches everything before it adds, so all its scratch chunks are in use at once.
PlanSet fetch_then_add(int p) {
  PlanSet plans;
  for (int r = 0; r < p; ++r) {
    PlanBuilder plan(Collective::all_reduce, "test", {p, r}, 1);
    if (r > 0) {
      plan.send(0, work(0));
      plan.recv(0, work(0));
    } else {
      for (int q = 1; q < p; ++q) plan.recv(q, plan.add_scratch(0));
      for (int q = 1; q < p; ++q) plan.reduce(scratch(q - 1), work(0), q == p - 1);
      for (int q = 1; q < p; ++q) plan.send(q, work(0));
    }
    plans.push_back(std::move(plan).build());
  }
  return plans;
}

TEST("one scratch chunk for two values that are both needed is rejected") {
  for (int p = 3; p <= 9; ++p) {
    const PlanSet proved = fetch_then_add(p);
    CHECK(pycomm::check(proved).empty(), pycomm::check(proved));
    for (int kept = 0; kept < p - 1; ++kept) {
      for (int merged = 0; merged < p - 1; ++merged) {
        if (merged == kept) continue;
        PlanSet plans = proved;
        for (Step& step : plans[0].steps) {
          if (step.chunk == scratch(merged)) step.chunk = scratch(kept);
          if (step.source == scratch(merged)) step.source = scratch(kept);
        }
        expect_error(pycomm::check(plans), "twice");
      }
    }
  }
}

TEST("one scratch chunk for partial sums of different size is rejected") {
  for (int p = 4; p <= 9; ++p) {
    PlanSet plans = make_plans(Collective::reduce_scatter, "ring", p);
    for (Step& step : plans[1].steps) {
      if (step.chunk == scratch(1)) step.chunk = scratch(0);
    }
    expect_error(pycomm::check(plans), "size");
  }
}

TEST("a broadcast without a barrier lets its root run ahead") {
  auto plans = builders(Collective::broadcast, 2, 1);
  plans[0].send(1, work(0));
  plans[1].recv(0, work(0));
  expect_error(check_all(plans),
               "rank 0 step 0 (send work[0] to 1) is the last: the rank can "
               "finish before rank 1 has begun");
}

TEST("a barrier that forgets its earlier rounds is rejected") {
  const int p = 8;
  auto plans = builders(Collective::barrier, p, 0);
  for (int r = 0; r < p; ++r) {
    PlanBuilder& plan = plans[static_cast<size_t>(r)];
    ChunkRef token = plan.add_scratch(kToken);
    for (int distance = 1; distance < p; distance *= 2) {
      plan.send((r + distance) % p, token);
      token = plan.add_scratch(kToken);
      plan.recv((r + p - distance) % p, token);
    }
  }
  expect_error(check_all(plans), "can finish before rank");
}

TEST("malformed steps are named") {
  auto plans = make_plans(Collective::all_reduce, "ring", 4);
  const auto with = [&](auto change) {
    auto changed = plans;
    change(changed);
    return pycomm::check(changed);
  };
  expect_error(with([](PlanSet& s) { s[2].steps[1].peer = 4; }),
               "rank 2 step 1 (recv_reduce work[0] from 4): no such peer");
  expect_error(with([](PlanSet& s) { s[2].steps[1].peer = 2; }), "not its own peer");
  expect_error(with([](PlanSet& s) { s[1].steps[0].chunk.index = 9; }), "no such chunk");
  expect_error(with([](PlanSet& s) { s[1].steps[0].chunk.buffer = Buffer::scratch; }),
               "no such chunk");
  expect_error(with([](PlanSet& s) { s[1].steps[0].completes = true; }), "can complete a sum");
  expect_error(with([](PlanSet& s) { s[3].work_chunks = 5; }), "rank 3: work_chunks is 5");
  expect_error(with([](PlanSet& s) { s[3].rank = 0; }), "rank 3: rank is 0");
  expect_error(with([](PlanSet& s) { s[1].collective = Collective::reduce; }), "collective");
  expect_error(with([](PlanSet& s) { s.pop_back(); }), "world_size is 4");
  expect_error(with([](PlanSet& s) { s[1].scratch_like = {7}; }), "work[7]");
  expect_error(pycomm::check({}), "no plans");
}

TEST("input chunks and other ranks' outputs may not be written") {
  auto plans = make_plans(Collective::reduce_scatter, "direct", 3);
  plans[1].steps.push_back({Opcode::copy, -1, work(0), work(3), false});
  expect_error(pycomm::check(plans), "writes an input chunk");
  plans = make_plans(Collective::gather, "direct", 3);
  plans[1].steps.push_back({Opcode::copy, -1, work(1), work(3), false});
  expect_error(pycomm::check(plans), "no such chunk on this rank");
}
