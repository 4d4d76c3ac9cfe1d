// SPDX-License-Identifier: MIT
// Breaks proved plans at random, each time in a way that is certain to do harm, and expects the
// checker to notice every time and to name a rank and a step. Seeds are printed on failure.
#include <random>

#include "base/error.h"
#include "check.h"
#include "plan/algorithms.h"
#include "plan/builder.h"
#include "plan/check.h"
#include "plan/meaning.h"
#include "plan/validate.h"

using namespace pycomm;

namespace {

constexpr int kSeeds = 4000;  // for each kind of mutation

struct Random {
  explicit Random(unsigned seed) : engine(seed) {}
  // 0 .. count-1. Not std::uniform_int_distribution, whose results differ between libraries.
  size_t below(size_t count) { return engine() % count; }
  std::mt19937 engine;
};

struct Site {
  size_t rank;
  size_t step;
};

struct Case {
  PlanSet plans;
  std::string name;
  Step& at(Site site) { return plans[site.rank].steps[site.step]; }
};

Case random_case(Random& random) {
  const auto collective = static_cast<Collective>(random.below(9));
  const auto names = algorithms_for(collective);
  const auto name = names[random.below(names.size())];
  const int p = 2 + static_cast<int>(random.below(8));
  const int root = static_cast<int>(random.below(static_cast<size_t>(p)));
  if (has_hierarchical_plan(collective) && random.below(4) == 0) {
    std::vector<std::vector<int>> hosts(2 + random.below(2));
    for (int r = 0; r < p; ++r) hosts[static_cast<size_t>(r) % hosts.size()].push_back(r);
    if (hosts.back().empty()) hosts.pop_back();
    const bool sums_everywhere = collective == Collective::all_reduce;
    Case made{{}, str("hierarchical ", name_of(collective), " ", name, " p=", p, " root=", root)};
    for (int r = 0; r < p; ++r) {
      made.plans.push_back(sums_everywhere ? make_hierarchical_plan(hosts, name, r)
                                           : make_hierarchical_plan(collective, hosts, r, root));
    }
    return made;
  }
  return {make_plans(collective, name, p, root),
          str(name_of(collective), " ", name, " p=", p, " root=", root)};
}

bool is_token(const Plan& plan, ChunkRef chunk) {
  return chunk.buffer == Buffer::scratch &&
         plan.scratch_like[static_cast<size_t>(chunk.index)] == kToken;
}
bool adds(const Step& step) { return step.op == Opcode::recv_reduce || step.op == Opcode::reduce; }

template <class Wanted>
std::vector<Site> sites(const Case& c, Wanted wanted) {
  std::vector<Site> found;
  for (size_t r = 0; r < c.plans.size(); ++r) {
    for (size_t i = 0; i < c.plans[r].steps.size(); ++i) {
      if (wanted(c.plans[r], i)) found.push_back({r, i});
    }
  }
  return found;
}

// `mutate` returns what it did, or nothing where the case offers no occasion.
template <class Mutate>
void reject_all(Mutate mutate) {
  int done = 0;
  for (unsigned seed = 0; seed < kSeeds; ++seed) {
    Random random(seed);
    Case c = random_case(random);
    const std::string what = mutate(c, random);
    if (what.empty()) continue;
    ++done;
    const auto error = pycomm::check(c.plans);
    CHECK(!error.empty(), "seed ", seed, ", ", c.name, ": accepted although ", what);
    CHECK(error.find("rank ") != std::string::npos && error.find("step") != std::string::npos,
          "seed ", seed, ", ", c.name, ": no rank or step in: ", error);
  }
  CHECK(done >= kSeeds / 20, "only ", done, " occasions");
}

template <class Wanted, class Change>
void reject_all_at(Wanted wanted, Change change) {
  reject_all([&](Case& c, Random& random) -> std::string {
    const auto found = sites(c, wanted);
    if (found.empty()) return {};
    const Site site = found[random.below(found.size())];
    const std::string before = describe(c.plans[site.rank], site.step);
    return change(c, random, site) ? before + " was changed" : std::string();
  });
}

// A work chunk of another piece, in which a wrong send stays well formed; false when there is none.
bool other_chunk(const Plan& plan, Random& random, ChunkRef* chunk) {
  const Meaning meaning(plan);
  std::vector<int> others;
  for (int c = 0; c < plan.work_chunks; ++c) {
    if (!meaning.is_input(plan.rank, c) && !meaning.is_output(plan.rank, c)) continue;
    if (meaning.piece(plan.rank, c) != piece_of(plan, meaning, *chunk)) others.push_back(c);
  }
  if (others.empty()) return false;
  *chunk = work(others[random.below(others.size())]);
  return true;
}

}  // namespace

TEST("a dropped step is rejected") {
  reject_all_at(
      [](const Plan& plan, size_t i) {
        const Step& step = plan.steps[i];
        return step.peer >= 0 || !is_token(plan, step.chunk);
      },
      [](Case& c, Random&, Site site) {
        auto& steps = c.plans[site.rank].steps;
        steps.erase(steps.begin() + static_cast<std::ptrdiff_t>(site.step));
        return true;
      });
}

TEST("a repeated step is rejected") {
  reject_all_at([](const Plan& plan, size_t i) { return plan.steps[i].op != Opcode::copy; },
                [](Case& c, Random&, Site site) {
                  auto& steps = c.plans[site.rank].steps;
                  const Step step = steps[site.step];
                  steps.insert(steps.begin() + static_cast<std::ptrdiff_t>(site.step), step);
                  return true;
                });
}

TEST("a send of the wrong chunk is rejected") {
  reject_all_at(
      [](const Plan& plan, size_t i) {
        return plan.steps[i].op == Opcode::send && !is_token(plan, plan.steps[i].chunk);
      },
      [](Case& c, Random& random, Site site) {
        return other_chunk(c.plans[site.rank], random, &c.at(site).chunk);
      });
}

// Both ends agree on the wrong chunk, so that only the sums can tell.
TEST("a message about the wrong chunk at both ends is rejected") {
  reject_all([](Case& c, Random& random) -> std::string {
    if (c.plans[0].collective != Collective::all_reduce || c.plans[0].work_chunks < 2) return {};
    const auto sends = sites(c, [](const Plan& plan, size_t i) {
      return plan.steps[i].op == Opcode::send && plan.steps[i].chunk.buffer == Buffer::work;
    });
    const Site send = sends[random.below(sends.size())];
    const int peer = c.at(send).peer;
    size_t nth = 0;
    for (size_t i = 0; i < send.step; ++i) {
      const Step& step = c.plans[send.rank].steps[i];
      if (step.op == Opcode::send && step.peer == peer) ++nth;
    }
    for (Step& step : c.plans[static_cast<size_t>(peer)].steps) {
      const bool receives = step.op == Opcode::recv || step.op == Opcode::recv_reduce;
      if (!receives || step.peer != static_cast<int>(send.rank) || nth-- != 0) continue;
      const std::string what = describe(c.plans[send.rank], send.step);
      if (step.chunk != c.at(send).chunk) return {};
      if (!other_chunk(c.plans[send.rank], random, &c.at(send).chunk)) return {};
      step.chunk = c.at(send).chunk;
      return what + " and its partner were changed";
    }
    return {};
  });
}

TEST("a wrong peer is rejected") {
  reject_all_at(
      [](const Plan& plan, size_t i) { return plan.steps[i].peer >= 0 && plan.world_size > 2; },
      [](Case& c, Random& random, Site site) {
        const size_t p = c.plans.size();
        const auto old = static_cast<size_t>(c.at(site).peer);
        size_t peer = old;
        while (peer == old || peer == site.rank) peer = random.below(p);
        c.at(site).peer = static_cast<int>(peer);
        return true;
      });
}

TEST("a send moved before the addition that it should carry is rejected") {
  const auto carrier = [](const Plan& plan, size_t i) {
    if (!adds(plan.steps[i])) return size_t{0};
    for (size_t j = i + 1; j < plan.steps.size(); ++j) {
      const Step& later = plan.steps[j];
      if (later.op == Opcode::send && later.chunk == plan.steps[i].chunk) return j;
    }
    return size_t{0};
  };
  reject_all_at([&](const Plan& plan, size_t i) { return carrier(plan, i) != 0; },
                [&](Case& c, Random&, Site site) {
                  const size_t later = carrier(c.plans[site.rank], site.step);
                  std::swap(c.at(site), c.plans[site.rank].steps[later]);
                  return true;
                });
}

TEST("a misplaced completes is rejected") {
  reject_all_at([](const Plan& plan, size_t i) { return adds(plan.steps[i]); },
                [](Case& c, Random&, Site site) {
                  c.at(site).completes = !c.at(site).completes;
                  return true;
                });
}

TEST("scratch that overwrites a chunk in use is rejected") {
  reject_all([](Case& c, Random& random) -> std::string {
    // Everything one rank does in a data scratch chunk is done in a work chunk instead.
    const size_t rank = random.below(c.plans.size());
    Plan& plan = c.plans[rank];
    std::vector<int> data;
    for (size_t s = 0; s < plan.scratch_like.size(); ++s) {
      if (plan.scratch_like[s] != kToken) data.push_back(static_cast<int>(s));
    }
    if (data.empty()) return {};
    const int chosen = data[random.below(data.size())];
    const ChunkRef target = work(plan.scratch_like[static_cast<size_t>(chosen)]);
    for (Step& step : plan.steps) {
      if (step.chunk == scratch(chosen)) step.chunk = target;
      if (step.peer < 0 && step.source == scratch(chosen)) step.source = target;
    }
    return str("rank ", rank, " uses work for scratch[", chosen, "]");
  });
}

TEST("a copy from the wrong chunk is rejected") {
  reject_all_at(
      [](const Plan& plan, size_t i) {
        return plan.steps[i].op == Opcode::copy && !is_token(plan, plan.steps[i].chunk);
      },
      [](Case& c, Random& random, Site site) {
        return other_chunk(c.plans[site.rank], random, &c.at(site).source);
      });
}
