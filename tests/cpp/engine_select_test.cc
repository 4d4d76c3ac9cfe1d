// SPDX-License-Identifier: MIT
// Which algorithm is chosen, and how PYCOMM_ALGO is understood.
#include <algorithm>

#include "base/error.h"
#include "check.h"
#include "engine/select.h"
#include "plan/algorithms.h"
#include "plan/check.h"
#include "plan/host_layout.h"

using namespace pycomm;

namespace {

std::string refusal(const std::string& text) {
  try {
    parse_algorithms(text);
  } catch (const UsageError& error) {
    return error.what();
  }
  return {};
}

}  // namespace

TEST("a bare name applies to every collective that has it") {
  const auto choices = parse_algorithms("ring");
  CHECK((choices == AlgorithmChoices{{Collective::all_reduce, "ring"},
                                     {Collective::all_gather, "ring"},
                                     {Collective::reduce_scatter, "ring"}}));
}

TEST("a pair applies to one collective, and the last word on it counts") {
  const auto choices = parse_algorithms("all_reduce=ring,broadcast=binomial_tree");
  CHECK((choices == AlgorithmChoices{{Collective::all_reduce, "ring"},
                                     {Collective::broadcast, "binomial_tree"}}));
  CHECK(parse_algorithms("ring,all_reduce=direct").at(Collective::all_reduce) == "direct");
  CHECK(parse_algorithms("").empty());
}

TEST("what is no algorithm is quoted and the choices are listed") {
  for (const std::string wrong :
       {"rnig", "all_reduce=rnig", "all_reduce=", "=ring", "all_gather=direct,allreduce=ring",
        "barrier=ring", "send=direct", "ring,,direct", " ring", "all_reduce=ring=ring"}) {
    const auto text = refusal(wrong);
    if (wrong == "=ring") continue;  // the part before '=' may be left out
    CHECK(text.find("PYCOMM_ALGO: '") == 0, wrong, ": ", text);
    CHECK(text.find("all_reduce=ring") != std::string::npos, wrong, ": ", text);
    CHECK(text.find("broadcast=binomial_tree") != std::string::npos, wrong, ": ", text);
  }
}

TEST("whatever is selected exists, for every size, world and layout, and is the same each time") {
  for (int code = 0; code < static_cast<int>(Collective::send); ++code) {
    const auto collective = static_cast<Collective>(code);
    const auto all = algorithms_for(collective);
    for (int p = 1; p <= 128; ++p) {
      for (size_t bytes = 0; bytes <= (size_t{1} << 32); bytes = bytes * 4 + 1) {
        for (const bool one_host : {false, true}) {
          const auto name = select_algorithm(collective, bytes, p, one_host, {});
          CHECK(std::find(all.begin(), all.end(), name) != all.end(), name);
          CHECK(select_algorithm(collective, bytes, p, one_host, {}) == name);
          if (p <= 32 && bytes <= 1) make_plan(collective, name, p, 0);
        }
      }
    }
  }
}

TEST("a choice overrides every rule and leaves other collectives alone") {
  const auto choices = parse_algorithms("all_reduce=double_binary_tree");
  for (const size_t bytes : {size_t{0}, size_t{100000}, size_t{1} << 30}) {
    CHECK(select_algorithm(Collective::all_reduce, bytes, 4, true, choices) ==
          "double_binary_tree");
    CHECK(select_algorithm(Collective::all_gather, bytes, 4, true, choices) ==
          select_algorithm(Collective::all_gather, bytes, 4, true, {}));
  }
}

TEST("two levels can be asked for by name, also on one host") {
  const auto choices = parse_algorithms("hierarchical");
  CHECK(choices.at(Collective::all_reduce) == kHierarchical && choices.count(Collective::barrier));
  CHECK(!choices.count(Collective::all_to_all));
  CHECK(refusal("all_to_all=hierarchical").find("PYCOMM_ALGO: '") == 0);
  CHECK(select_algorithm(Collective::all_reduce, 8, 4, true, choices) == kHierarchical);
  for (const auto& [collective, name] : choices) {
    for (const Hosts& hosts : {Hosts{{0}}, Hosts{{0, 1, 2, 3}}, Hosts{{0}, {1}, {2}}}) {
      PlanSet plans;
      size_t p = 0;
      for (const auto& host : hosts) p += host.size();
      for (size_t rank = 0; rank < p; ++rank) {
        plans.push_back(make_hierarchical_plan(collective, hosts, static_cast<int>(rank)));
      }
      const auto wrong = pycomm::check(plans);
      CHECK(wrong.empty(), name_of(collective), ": ", wrong);
    }
  }
}

TEST("two levels need several hosts, one of them with several ranks, and no other choice") {
  for (int code = 0; code < kCollectiveCount; ++code) {
    const auto collective = static_cast<Collective>(code);
    const bool exists = has_hierarchical_plan(collective);
    for (const size_t bytes : {size_t{1} << 15, size_t{1} << 30}) {
      CHECK(!two_levels_pay(collective, bytes, 8, 1, {}), name_of(collective));
      CHECK(two_levels_pay(collective, bytes, 8, 2, {}) == exists, name_of(collective));
      CHECK(two_levels_pay(collective, bytes, 8, 7, {}) == exists, name_of(collective));
      CHECK(!two_levels_pay(collective, bytes, 8, 8, {}), name_of(collective));
      CHECK(!two_levels_pay(collective, bytes, 8, 2, {{collective, "direct"}}));
    }
    // Ranks may hold blocks of different size, so that only a tensor's size may decide.
    CHECK(two_levels_pay(collective, 0, 8, 2, {}) ==
          (exists && collective != Collective::all_reduce));
  }
}
