// SPDX-License-Identifier: MIT
// Two-level plans: proved for ranks dealt to hosts at random, every root, and what crosses between
// hosts counted step by step. plan_check_test.cc proves the all_reduce with every inter algorithm.
#include <random>

#include "base/error.h"
#include "check.h"
#include "plan/algorithms.h"
#include "plan/check.h"
#include "plan/cost.h"
#include "plan/host_layout.h"
#include "plan/meaning.h"
#include "plan/validate.h"

using namespace pycomm;

namespace {

constexpr unsigned kSeed = 20240;
constexpr int kLayouts = 60;  // for each world size

constexpr Collective kTwoLevels[] = {Collective::all_reduce,     Collective::broadcast,
                                     Collective::reduce,         Collective::all_gather,
                                     Collective::reduce_scatter, Collective::barrier};

bool is_rooted(Collective collective) {
  return collective == Collective::broadcast || collective == Collective::reduce;
}

std::string to_text(const Hosts& hosts) {
  std::string text;
  for (const auto& host : hosts) {
    text += text.empty() ? "{" : " {";
    for (size_t i = 0; i < host.size(); ++i) text += str(i ? " " : "", host[i]);
    text += "}";
  }
  return text;
}

// Ranks dealt to up to `most` hosts; those that got none are left out.
Hosts random_hosts(int world_size, int most, std::mt19937& random) {
  Hosts hosts(1 + random() % static_cast<unsigned>(most));
  for (int r = 0; r < world_size; ++r) hosts[random() % hosts.size()].push_back(r);
  std::erase_if(hosts, [](const auto& host) { return host.empty(); });
  return hosts;
}

PlanSet two_levels(Collective collective, const Hosts& hosts, int root) {
  size_t ranks = 0;
  for (const auto& host : hosts) ranks += host.size();
  PlanSet plans;
  for (size_t r = 0; r < ranks; ++r) {
    plans.push_back(make_hierarchical_plan(collective, hosts, static_cast<int>(r), root));
  }
  return plans;
}

int host_of(const Hosts& hosts, int rank) {
  int host = 0;
  while (place_in(hosts[static_cast<size_t>(host)], rank) < 0) ++host;
  return host;
}

struct Crossings {
  int tokens = 0;
  // [piece][host]: data messages about a piece that arrive at, and that leave, a host.
  std::vector<std::vector<int>> into, out_of;
};

Crossings count_crossings(const PlanSet& plans, const Hosts& hosts) {
  const Meaning meaning(plans[0]);
  Crossings result;
  result.into.assign(static_cast<size_t>(meaning.pieces()), std::vector<int>(hosts.size(), 0));
  result.out_of = result.into;
  for (const Plan& plan : plans) {
    for (const Step& step : plan.steps) {
      if (step.op != Opcode::send) continue;
      const int from = host_of(hosts, plan.rank), to = host_of(hosts, step.peer);
      if (from == to) continue;
      const int piece = piece_of(plan, meaning, step.chunk);
      if (piece == kToken) {
        ++result.tokens;
        continue;
      }
      ++result.into[static_cast<size_t>(piece)][static_cast<size_t>(to)];
      ++result.out_of[static_cast<size_t>(piece)][static_cast<size_t>(from)];
    }
  }
  return result;
}

int log2_up(int n) {
  int result = 0;
  while ((1 << result) < n) ++result;
  return result;
}

void prove(const Hosts& hosts, const std::string& context) {
  const int p = [&] {
    size_t ranks = 0;
    for (const auto& host : hosts) ranks += host.size();
    return static_cast<int>(ranks);
  }();
  for (const auto collective : kTwoLevels) {
    for (int root = 0; root < (is_rooted(collective) ? p : 1); ++root) {
      const auto error = pycomm::check(two_levels(collective, hosts, root));
      CHECK(error.empty(), name_of(collective), ", root ", root, ", hosts ", to_text(hosts),
            context, ": ", error);
    }
  }
}

// body(hosts, context) for random layouts of every world size.
template <class Body>
void for_random_layouts(int ranks_max, const Body& body) {
  std::mt19937 random(kSeed);
  for (int p = 1; p <= ranks_max; ++p) {
    for (int k = 0; k < kLayouts; ++k) {
      body(random_hosts(p, 1 + k % 6, random), str(", seed ", kSeed, ", layout ", k));
    }
  }
}

}  // namespace

TEST("two levels are proved for ranks dealt to hosts at random, with every root") {
  for_random_layouts(12, prove);
}

TEST("two levels are proved for larger worlds, even and uneven") {
  prove({{0, 1, 2, 3, 4, 5, 6, 7}, {8, 9, 10, 11, 12, 13, 14, 15}}, "");
  prove({{0, 3, 6, 9, 12, 15, 18}, {1, 4, 7, 10, 13, 16}, {2, 5, 8, 11, 14, 17}}, "");
  std::mt19937 random(kSeed);
  for (const int p : {17, 24, 33}) {
    prove(random_hosts(p, 7, random), str(", seed ", kSeed));
  }
}

TEST("a tensor crosses to each host but the root's once, or from it") {
  for_random_layouts(12, [](const Hosts& hosts, const std::string& context) {
    const int rounds = log2_up(static_cast<int>(hosts.size()));
    for (const auto& root_host : hosts) {
      const int root = root_host.back();
      const auto down = count_crossings(two_levels(Collective::broadcast, hosts, root), hosts);
      const auto up = count_crossings(two_levels(Collective::reduce, hosts, root), hosts);
      for (size_t h = 0; h < hosts.size(); ++h) {
        const int expected = place_in(hosts[h], root) >= 0 ? 0 : 1;
        CHECK(down.into[0][h] == expected, to_text(hosts), ", root ", root, ", host ", h, context);
        CHECK(up.out_of[0][h] == expected, to_text(hosts), ", root ", root, ", host ", h, context);
      }
      const int tokens = static_cast<int>(hosts.size()) * rounds;
      CHECK(down.tokens == tokens && up.tokens == tokens, down.tokens, " and ", up.tokens,
            ", expected ", tokens, ", hosts ", to_text(hosts), context);
    }
  });
}

TEST("a block crosses once to each host that wants it, and a host's sum once to whose it is") {
  for_random_layouts(12, [](const Hosts& hosts, const std::string& context) {
    const auto gathered = count_crossings(two_levels(Collective::all_gather, hosts, 0), hosts);
    const auto scattered = count_crossings(two_levels(Collective::reduce_scatter, hosts, 0), hosts);
    for (size_t block = 0; block < gathered.into.size(); ++block) {
      const auto home = static_cast<size_t>(host_of(hosts, static_cast<int>(block)));
      for (size_t h = 0; h < hosts.size(); ++h) {
        const int expected = h == home ? 0 : 1;
        CHECK(gathered.into[block][h] == expected, "block ", block, " to host ", h, " of ",
              to_text(hosts), context);
        CHECK(scattered.out_of[block][h] == expected, "block ", block, " from host ", h, " of ",
              to_text(hosts), context);
      }
    }
    CHECK(gathered.tokens == 0 && scattered.tokens == 0);
  });
}

TEST("the ranks of a host share its crossings evenly") {
  const Hosts hosts{{0, 1, 2, 3}, {4, 5, 6, 7}, {8, 9, 10, 11}};
  for (const auto collective : {Collective::all_gather, Collective::reduce_scatter}) {
    for (const Plan& plan : two_levels(collective, hosts, 0)) {
      int sent = 0, received = 0;
      for (const Step& step : plan.steps) {
        if (step.peer < 0 || step.peer / 4 == plan.rank / 4) continue;
        ++(step.op == Opcode::send ? sent : received);
      }
      CHECK(sent == 2 && received == 2, to_string(plan));
    }
  }
}

TEST("only first ranks carry a barrier between hosts") {
  const Hosts hosts{{5, 2}, {0, 4, 6}, {1, 3}};
  const auto plans = two_levels(Collective::barrier, hosts, 0);
  CHECK(count_crossings(plans, hosts).tokens == 3 * 2);
  for (const Plan& plan : plans) {
    for (const Step& step : plan.steps) {
      if (step.peer < 0 || host_of(hosts, plan.rank) == host_of(hosts, step.peer)) continue;
      CHECK(plan.rank <= 2 && step.peer <= 2, to_string(plan));
    }
  }
}

TEST("what crosses between 2 hosts of 4 ranks, on one level and on two") {
  const Hosts hosts{{0, 1, 2, 3}, {4, 5, 6, 7}};
  struct Row {
    Collective collective;
    const char* one_level;
    int messages, tokens, messages_on_two, tokens_on_two;
  };
  const auto expect = [&](const PlanSet& plans, int messages, int tokens) {
    const auto crossings = count_crossings(plans, hosts);
    int found = 0;
    for (const auto& by_host : crossings.into) {
      for (const int count : by_host) found += count;
    }
    CHECK(found == messages && crossings.tokens == tokens, name_of(plans[0].collective), " ",
          plans[0].algorithm, ": ", found, " messages, ", crossings.tokens, " tokens");
  };
  for (const Row& row : {Row{Collective::broadcast, "direct", 4, 14, 1, 2},
                         {Collective::broadcast, "scatter_all_gather", 32, 14, 1, 2},
                         {Collective::reduce, "direct", 4, 14, 1, 2},
                         {Collective::all_gather, "direct", 32, 0, 8, 0},
                         {Collective::all_gather, "ring", 14, 0, 8, 0},
                         {Collective::reduce_scatter, "direct", 32, 0, 8, 0},
                         {Collective::reduce_scatter, "ring", 14, 0, 8, 0},
                         {Collective::barrier, "dissemination", 0, 14, 0, 2}}) {
    expect(make_plans(row.collective, row.one_level, 8), row.messages, row.tokens);
    expect(two_levels(row.collective, hosts, 0), row.messages_on_two, row.tokens_on_two);
  }
}

TEST("two levels cost what docs/algorithms.md says") {
  constexpr size_t kBytes = 1 << 20;
  struct Row {
    Collective collective;
    int per_host, steps;
    size_t sent, added;
  };
  for (const Row& row : {Row{Collective::broadcast, 2, 3, 2, 0},
                         {Collective::broadcast, 4, 5, 3, 0},
                         {Collective::reduce, 2, 3, 1, 2},
                         {Collective::reduce, 4, 5, 1, 3},
                         {Collective::all_gather, 2, 2, 3, 0},
                         {Collective::all_gather, 4, 2, 7, 0},
                         {Collective::reduce_scatter, 2, 2, 3, 3},
                         {Collective::reduce_scatter, 4, 2, 7, 7},
                         {Collective::barrier, 2, 3, 0, 0},
                         {Collective::barrier, 4, 5, 0, 0}}) {
    Hosts hosts(2);
    for (int r = 0; r < 2 * row.per_host; ++r) {
      hosts[static_cast<size_t>(r / row.per_host)].push_back(r);
    }
    const auto got = cost(two_levels(row.collective, hosts, 0), kBytes, {});
    CHECK(got.steps == row.steps && got.bytes_sent_max == row.sent * kBytes &&
              got.bytes_reduced_max == row.added * kBytes,
          name_of(row.collective), " on 2 hosts of ", row.per_host, ": ", got.steps, " steps, ",
          got.bytes_sent_max, " sent, ", got.bytes_reduced_max, " added");
  }
}
