// SPDX-License-Identifier: MIT
// Steps and bytes of each algorithm against the formulas of docs/algorithms.md.
#include <bit>
#include <cmath>

#include "check.h"
#include "plan/algorithms.h"
#include "plan/cost.h"

using namespace pycomm;

namespace {

// Divisible by every world size up to 10, so that formulas hold to the byte.
constexpr size_t kBytes = 2520 * 4;

PlanCost cost_of(Collective collective, std::string_view algorithm, int p) {
  return cost(make_plans(collective, algorithm, p), kBytes, {});
}

void expect(Collective collective, std::string_view algorithm, int p, int steps, size_t sent,
            size_t reduced) {
  const PlanCost got = cost_of(collective, algorithm, p);
  CHECK(got.steps == steps && got.bytes_sent_max == sent && got.bytes_reduced_max == reduced,
        name_of(collective), " ", algorithm, " p=", p, ": ", got.steps, " steps, ",
        got.bytes_sent_max, " sent, ", got.bytes_reduced_max, " reduced; expected ", steps, ", ",
        sent, ", ", reduced);
}

int log2_up(int p) { return std::bit_width(static_cast<unsigned>(p - 1)); }

}  // namespace

TEST("all_reduce costs what the formulas say") {
  for (int p = 2; p <= 10; ++p) {
    const auto n = kBytes, others = static_cast<size_t>(p - 1), share = n / (others + 1) * others;
    expect(Collective::all_reduce, "one_shot", p, 1, others * n, others * n);
    expect(Collective::all_reduce, "direct", p, 2, 2 * share, share);
    expect(Collective::all_reduce, "ring", p, 2 * (p - 1), 2 * share, share);
  }
  for (const int p : {2, 4, 8}) {
    const int rounds = log2_up(p);
    const auto n = kBytes, k = static_cast<size_t>(rounds), ranks = static_cast<size_t>(p);
    const size_t share = n / ranks * (ranks - 1);
    expect(Collective::all_reduce, "recursive_doubling", p, rounds, k * n, k * n);
    expect(Collective::all_reduce, "halving_doubling", p, 2 * rounds, 2 * share, share);
  }
}

// Hand-over, rounds, return. With p = 6 no chain has all of them: the pairs start late, the others
// have nobody to return to.
TEST("off powers of two, halving and doubling pay one exchange more") {
  const auto n = kBytes;
  expect(Collective::all_reduce, "recursive_doubling", 6, 3, 3 * n, 3 * n);
  expect(Collective::all_reduce, "recursive_doubling", 7, 4, 3 * n, 3 * n);
  expect(Collective::all_reduce, "halving_doubling", 7, 6, n + 2 * (n / 4 * 3), n + n / 4 * 3);
}

TEST("the double binary tree is shallow and moves each half up and down once") {
  for (int p = 2; p <= 64; ++p) {
    const PlanCost got = cost_of(Collective::all_reduce, "double_binary_tree", p);
    CHECK(got.steps <= 2 * log2_up(p), "p=", p, " steps ", got.steps);
    CHECK(got.bytes_sent_max <= 2 * kBytes, "p=", p, " sent ", got.bytes_sent_max);
    CHECK(got.bytes_reduced_max <= kBytes, "p=", p, " reduced ", got.bytes_reduced_max);
  }
}

TEST("the other collectives cost what the formulas say") {
  for (int p = 2; p <= 10; ++p) {
    const auto n = kBytes, others = static_cast<size_t>(p - 1), share = n / (others + 1) * others;
    const int barrier = log2_up(p);
    expect(Collective::all_gather, "direct", p, 1, others * n, 0);
    expect(Collective::all_gather, "ring", p, p - 1, others * n, 0);
    expect(Collective::reduce_scatter, "direct", p, 1, others * n, others * n);
    expect(Collective::reduce_scatter, "ring", p, p - 1, others * n, others * n);
    expect(Collective::all_to_all, "direct", p, 1, others * n, 0);
    expect(Collective::barrier, "dissemination", p, barrier, 0, 0);
    expect(Collective::broadcast, "direct", p, barrier, others * n, 0);
    expect(Collective::reduce, "direct", p, barrier, n, others * n);
    expect(Collective::gather, "direct", p, barrier, n, 0);
    expect(Collective::scatter, "direct", p, barrier, others * n, 0);
    expect(Collective::broadcast, "scatter_all_gather", p, p == 2 ? 1 : std::max(2, barrier),
           2 * share, 0);
    const auto k = static_cast<size_t>(barrier);
    expect(Collective::broadcast, "binomial_tree", p, barrier, k * n, 0);
    expect(Collective::reduce, "binomial_tree", p, barrier, n, k * n);
  }
}

TEST("time is latency on the longest chain plus the busiest rank's bytes") {
  const LinkCost link{1e-5, 1e-9, 1e-10};
  const PlanCost got = cost(make_plans(Collective::all_reduce, "ring", 4), 4000000, link);
  const double expected = 6 * 1e-5 + 6e6 * 1e-9 + 3e6 * 1e-10;
  CHECK(std::abs(got.seconds - expected) < 1e-12, got.seconds, " expected ", expected);
}

TEST("uneven chunks are counted to the byte") {
  const PlanCost got = cost(make_plans(Collective::all_reduce, "direct", 3), 10, {});
  // Chunks of 4, 3 and 3 bytes: rank 0 sends 3 + 3, then 4 twice.
  CHECK(got.bytes_sent_max == 14, got.bytes_sent_max);
  CHECK(got.bytes_reduced_max == 8, got.bytes_reduced_max);
}

TEST("two levels send each byte between hosts once per host") {
  PlanSet plans;
  const std::vector<std::vector<int>> hosts{{0, 1, 2, 3}, {4, 5, 6, 7}};
  for (int r = 0; r < 8; ++r) plans.push_back(make_hierarchical_plan(hosts, "direct", r));
  size_t chunks_between = 0;
  for (const Plan& plan : plans) {
    for (const Step& step : plan.steps) {
      if (step.op == Opcode::send && plan.rank / 4 != step.peer / 4) ++chunks_between;
    }
  }
  // 8 chunks, 2(h-1) crossings each.
  CHECK(plans[0].work_chunks == 8 && chunks_between == 16, chunks_between);
  CHECK(cost(plans, kBytes, {}).steps == 4);
}
