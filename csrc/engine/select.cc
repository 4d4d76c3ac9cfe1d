// SPDX-License-Identifier: MIT
#include "engine/select.h"

#include <algorithm>
#include <sstream>

#include "base/error.h"
#include "plan/algorithms.h"

namespace pycomm {
namespace {

// Up to here every rank sends its whole tensor to all others: one step, but p - 1 times the bytes.
constexpr size_t kOneShotBytes = 4 * 1024;
constexpr int kOneShotRanks = 8;
// Up to here log2(p) exchanges of the whole tensor beat cutting it into p pieces; between two ranks
// of one host they never beat both one_shot and direct.
constexpr size_t kDoublingBytes = 16 * 1024;
// Direct exchange opens p - 1 lanes at once; beyond this many ranks that is too many.
constexpr int kDirectRanks = 32;
// From here a broadcast's root sends pieces that the others pass on, instead of everything to each:
// faster with 3 and 4 ranks on 2 cores, and it does not depend on whose core the root shares. To
// compare: `python -m pycomm bench broadcast --world 4`, with and without
// PYCOMM_ALGO=broadcast=direct.
constexpr size_t kScatterBytes = 256 * 1024;
// Between hosts a tree's 2 log2(p) steps win up to here, the ring's full pipes beyond.
constexpr size_t kTreeBytes = 256 * 1024;

bool has(Collective collective, std::string_view algorithm) {
  if (algorithm == kHierarchical) return has_hierarchical_plan(collective);
  const auto all = algorithms_for(collective);
  return std::find(all.begin(), all.end(), algorithm) != all.end();
}

}  // namespace

AlgorithmChoices parse_algorithms(const std::string& text) {
  AlgorithmChoices choices;
  std::stringstream in(text);
  std::string item;
  while (std::getline(in, item, ',')) {
    const auto split = item.find('=');
    const std::string collective = split == std::string::npos ? "" : item.substr(0, split);
    const std::string algorithm = split == std::string::npos ? item : item.substr(split + 1);
    bool applied = false;
    for (int code = 0; code < kCollectiveCount; ++code) {
      const auto one = static_cast<Collective>(code);
      if (split != std::string::npos && collective != name_of(one)) continue;
      if (!has(one, algorithm)) continue;
      choices[one] = algorithm;
      applied = true;
    }
    if (applied) continue;
    std::string known;
    for (int code = 0; code < kCollectiveCount; ++code) {
      const auto one = static_cast<Collective>(code);
      for (const auto name : algorithms_for(one)) known += str(" ", name_of(one), "=", name);
      if (has_hierarchical_plan(one)) known += str(" ", name_of(one), "=", kHierarchical);
    }
    throw UsageError("PYCOMM_ALGO: '" + item +
                     "' is no algorithm; expected a comma-separated list of:" + known +
                     " (the part before '=' may be left out)");
  }
  return choices;
}

std::string_view select_algorithm(Collective collective, size_t bytes, int world_size,
                                  bool one_host, const AlgorithmChoices& choices,
                                  double size_factor) {
  if (const auto chosen = choices.find(collective); chosen != choices.end()) return chosen->second;
  const auto preferred = algorithms_for(collective).front();
  const auto sized = [&](size_t found) {
    return one_host ? static_cast<size_t>(static_cast<double>(found) * size_factor) : found;
  };
  if (collective == Collective::all_reduce) {
    if (bytes <= sized(kOneShotBytes) && world_size <= kOneShotRanks) return "one_shot";
    if (bytes <= sized(kDoublingBytes) && (world_size > 2 || !one_host)) {
      return "recursive_doubling";
    }
    if (one_host && world_size <= kDirectRanks) return "direct";
    if (bytes <= kTreeBytes) return "double_binary_tree";
    return one_host || bytes / static_cast<size_t>(world_size) >= 4096 ? "ring"
                                                                       : "halving_doubling";
  }
  if (collective == Collective::broadcast && world_size > 2 && bytes >= sized(kScatterBytes)) {
    return "scatter_all_gather";
  }
  if (world_size > kDirectRanks) {
    if (collective == Collective::all_gather || collective == Collective::reduce_scatter)
      return "ring";
    if (collective == Collective::broadcast || collective == Collective::reduce) {
      return "binomial_tree";
    }
  }
  return preferred;
}

bool two_levels_pay(Collective collective, size_t bytes, int world_size, size_t hosts,
                    const AlgorithmChoices& choices) {
  if (hosts < 2 || hosts >= static_cast<size_t>(world_size) || choices.count(collective)) {
    return false;
  }
  if (collective == Collective::all_reduce && bytes <= kDoublingBytes) return false;
  return has_hierarchical_plan(collective);
}

bool can_narrow(std::string_view algorithm) {
  return algorithm == "direct" || algorithm == kHierarchical;
}

std::string select_narrow_algorithm(Collective collective, int world_size, size_t hosts,
                                    const AlgorithmChoices& choices) {
  const auto chosen = choices.find(collective);
  const bool between_hosts = chosen == choices.end()
                                 ? hosts > 1 && hosts < static_cast<size_t>(world_size)
                                 : chosen->second == kHierarchical;
  if (between_hosts) {
    if (collective != Collective::all_reduce) return kHierarchical;
    return str(kHierarchical, "/", hosts > kDirectRanks ? kGrid : "direct");
  }
  return chosen == choices.end() && world_size > kDirectRanks ? kGrid : "direct";
}

}  // namespace pycomm
