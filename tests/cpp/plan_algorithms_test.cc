// SPDX-License-Identifier: MIT
// The catalogue, how plans print, how they concatenate, and the shapes that the headers promise.
#include <algorithm>
#include <set>

#include "base/error.h"
#include "check.h"
#include "plan/algorithms.h"
#include "plan/builder.h"
#include "plan/tree.h"

using namespace pycomm;

namespace {

template <class Body>
std::string usage_error(Body body) {
  try {
    body();
  } catch (const UsageError& error) {
    return error.what();
  }
  return "no error";
}

}  // namespace

TEST("a ring of four prints as a table") {
  const std::string expected =
      "all_reduce ring, rank 0 of 4, work chunks: 4\n"
      "   0  send         work[3] to 1\n"
      "   1  recv_reduce  work[2] from 3\n"
      "   2  send         work[2] to 1\n"
      "   3  recv_reduce  work[1] from 3\n"
      "   4  send         work[1] to 1\n"
      "   5  recv_reduce  work[0] from 3, completes\n"
      "   6  send         work[0] to 1\n"
      "   7  recv         work[3] from 3\n"
      "   8  send         work[3] to 1\n"
      "   9  recv         work[2] from 3\n"
      "  10  send         work[2] to 1\n"
      "  11  recv         work[1] from 3\n";
  const auto text = to_string(make_plan(Collective::all_reduce, "ring", 4, 0));
  CHECK(text == expected, text);
}

TEST("scratch, tokens, roots and local steps print too") {
  const std::string expected =
      "reduce binomial_tree, rank 1 of 4, root 3, work chunks: 1, scratch chunks like: work[0] "
      "token token token\n"
      "   0  copy         work[0] to scratch[0]\n"
      "   1  recv_reduce  scratch[0] from 2\n"
      "   2  send         scratch[0] to 3\n"
      "   3  send         scratch[1] to 2\n"
      "   4  recv         scratch[2] from 0\n"
      "   5  copy         scratch[2] to scratch[1]\n"
      "   6  send         scratch[1] to 3\n"
      "   7  recv         scratch[3] from 3\n";
  const auto text = to_string(make_plan(Collective::reduce, "binomial_tree", 4, 1, 3));
  CHECK(text == expected, text);
  const Step reduce{Opcode::reduce, -1, work(0), scratch(1), true};
  CHECK(to_string(reduce) == "reduce scratch[1] into work[0], completes", to_string(reduce));
}

TEST("the catalogue lists all_reduce algorithms, the default first") {
  const std::vector<std::string_view> expected{
      "one_shot", "direct", "ring", "recursive_doubling", "halving_doubling", "double_binary_tree"};
  CHECK(algorithms_for(Collective::all_reduce) == expected);
  CHECK(algorithms_for(Collective::send).empty());
  for (int c = 0; c < static_cast<int>(Collective::send); ++c) {
    CHECK(!algorithms_for(static_cast<Collective>(c)).empty(), c);
  }
}

TEST("plans carry what they were made for") {
  const Plan plan = make_plan(Collective::broadcast, "scatter_all_gather", 5, 3, 2);
  CHECK(plan.collective == Collective::broadcast);
  CHECK(plan.algorithm == "scatter_all_gather", plan.algorithm);
  CHECK(plan.world_size == 5 && plan.rank == 3 && plan.root == 2 && plan.work_chunks == 5);
}

TEST("wrong requests name the choices") {
  const auto text = usage_error([] { make_plan(Collective::broadcast, "ring", 4, 0); });
  CHECK(text ==
            "broadcast has no algorithm \"ring\"; choose one of: direct, binomial_tree, "
            "scatter_all_gather",
        text);
  CHECK(usage_error([] { make_plan(Collective::reduce, "direct", 4, 4); }) ==
        "reduce: rank is 4, expected 0..3");
  CHECK(usage_error([] { make_plan(Collective::reduce, "direct", 4, 0, -1); }) ==
        "reduce: root is -1, expected 0..3");
  CHECK(usage_error([] { make_plans(Collective::barrier, "dissemination", 0); }) ==
        "barrier: world_size is 0, expected at least 1");
  CHECK(usage_error([] { make_plan(Collective::send, "direct", 2, 0); }) ==
        "send has no algorithm \"direct\"; choose one of: none");
  CHECK(usage_error([] { make_hierarchical_plan({{0, 1}, {1, 2}}, "ring", 0); }) ==
        "two-level plan: hosts must list every rank 0..3 exactly once");
  CHECK(usage_error([] { make_hierarchical_plan({{0}, {}}, "ring", 0); }) ==
        "two-level plan: a host without ranks");
  CHECK(usage_error([] { make_hierarchical_plan({{0}, {1}}, "ring", 2); }) ==
        "two-level plan: rank 2 is not among the 2 ranks of the hosts");
  CHECK(usage_error([] { make_hierarchical_plan(Collective::reduce, {{0}, {1}}, 0, 2); }) ==
        "reduce: root is 2, expected 0..1");
  CHECK(usage_error([] { make_hierarchical_plan(Collective::gather, {{0}, {1}}, 0); }) ==
        "gather has no two-level plan");
}

TEST("a single rank needs at most copies") {
  for (int c = 0; c < static_cast<int>(Collective::send); ++c) {
    const auto collective = static_cast<Collective>(c);
    for (const auto algorithm : algorithms_for(collective)) {
      for (const Step& step : make_plan(collective, algorithm, 1, 0).steps) {
        CHECK(step.op == Opcode::copy, algorithm, ": ", to_string(step));
      }
    }
  }
}

TEST("concatenation renumbers the second plan's scratch") {
  PlanBuilder first(Collective::all_reduce, "first", {2, 0}, 2);
  first.copy(work(0), first.add_scratch(0));
  PlanBuilder second(Collective::all_reduce, "second", {2, 0}, 2);
  second.add_scratch(kToken);
  second.reduce(second.add_scratch(1), work(1), false);
  const Plan both = concatenate(std::move(first).build(), std::move(second).build());
  CHECK(both.algorithm == "first", both.algorithm);
  CHECK((both.scratch_like == std::vector<int>{0, kToken, 1}));
  CHECK(to_string(both.steps[0]) == "copy work[0] to scratch[0]");
  CHECK(to_string(both.steps[1]) == "reduce scratch[2] into work[1]", to_string(both.steps[1]));
}

TEST("the double binary tree makes no rank an inner node twice and stays shallow") {
  for (int p = 2; p <= 130; ++p) {
    int log2_up = 0;
    while ((1 << log2_up) < p) ++log2_up;
    std::vector<int> inner_in(static_cast<size_t>(p), 0);
    for (int tree = 0; tree < 2; ++tree) {
      int roots = 0, edges = 0;
      for (int r = 0; r < p; ++r) {
        TreeNode node = double_binary_tree_node(tree, p, r);
        CHECK(node.children.size() <= 2, "p=", p, " rank ", r);
        if (!node.children.empty()) ++inner_in[static_cast<size_t>(r)];
        for (const int child : node.children) {
          CHECK(double_binary_tree_node(tree, p, child).parent == r, "p=", p, " child ", child);
          ++edges;
        }
        int depth = 0;
        for (; node.parent >= 0 && depth <= p; ++depth) {
          node = double_binary_tree_node(tree, p, node.parent);
        }
        roots += depth == 0;
        CHECK(depth <= log2_up, "p=", p, " rank ", r, " depth ", depth);
      }
      CHECK(roots == 1 && edges == p - 1, "p=", p, " roots ", roots, " edges ", edges);
    }
    CHECK(std::ranges::count(inner_in, 2) == 0, "p=", p);
  }
}

TEST("direct folds are one run, right behind the copy that starts them") {
  for (const auto& [collective, algorithm] :
       {std::pair{Collective::all_reduce, "one_shot"}, {Collective::reduce_scatter, "direct"}}) {
    const auto steps = make_plan(collective, algorithm, 4, 1).steps;
    size_t first = 0;
    while (steps[first].op != Opcode::recv_reduce) ++first;
    CHECK(steps[first - 1].op == Opcode::copy && steps[first - 1].chunk == steps[first].chunk);
    std::set<int> peers;
    for (size_t i = first; i < first + 3; ++i) {
      CHECK(steps[i].op == Opcode::recv_reduce && steps[i].chunk == steps[first].chunk);
      CHECK(steps[i].completes == (i == first + 2));
      peers.insert(steps[i].peer);
    }
    CHECK((peers == std::set<int>{0, 2, 3}));
  }
}

TEST("two levels: one host is direct, one rank a host is the inter algorithm") {
  CHECK(make_hierarchical_plan({{0, 1, 2}}, "ring", 1).steps ==
        make_plan(Collective::all_reduce, "direct", 3, 1).steps);
  CHECK(make_hierarchical_plan({{0}, {1}, {2}}, "ring", 1).steps ==
        make_plan(Collective::all_reduce, "ring", 3, 1).steps);
  const Plan plan = make_hierarchical_plan({{2, 3}, {0, 1}}, "ring", 3);
  CHECK(plan == make_hierarchical_plan({{0, 1}, {3, 2}}, "ring", 3), "hosts are sorted");
  CHECK(plan.algorithm == "hierarchical/ring" && plan.work_chunks == 4, to_string(plan));
}
