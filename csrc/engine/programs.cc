// SPDX-License-Identifier: MIT
#include "engine/programs.h"

#include "base/error.h"
#include "engine/signature.h"
#include "engine/wire_choice.h"
#include "plan/algorithms.h"
#include "plan/check.h"
#include "plan/cost.h"
#include "plan/host_layout.h"

namespace pycomm {
namespace {

std::vector<std::vector<int>> group_by_host(const Mesh& mesh) {
  std::map<std::string, size_t> index;
  std::vector<std::vector<int>> hosts;
  for (int rank = 0; rank < mesh.world_size(); ++rank) {
    const auto [at, fresh] = index.emplace(mesh.address(rank).host_id, hosts.size());
    if (fresh) hosts.emplace_back();
    hosts[at->second].push_back(rank);
  }
  return hosts;
}

// "hierarchical", "hierarchical/direct"
bool is_hierarchical(const std::string& algorithm) { return algorithm.starts_with(kHierarchical); }

}  // namespace

Programs::Programs(const Mesh& mesh, AlgorithmChoices choices, bool check_plans, Wire wire)
    : mesh_(mesh),
      choices_(std::move(choices)),
      check_plans_(check_plans),
      figures_(parse_figures(mesh.address(0).figures)),
      size_factor_(size_factor(figures_)),
      hosts_(group_by_host(mesh)),
      wire_(wire) {}

std::pair<std::string, Wire> Programs::choose(const Question& question) const {
  const auto [collective, wire, root, bytes] = question;
  const int world = mesh_.world_size();
  if (wire != Wire::fp32 && world > 1) {
    const auto name = select_narrow_algorithm(collective, world, hosts_.size(), choices_);
    if (hosts_.size() > 1 || !is_hierarchical(name)) return {name, wire};
  }
  const bool one_host = hosts_.size() == 1;
  if (two_levels_pay(collective, bytes, world, hosts_.size(), choices_)) {
    return {kHierarchical, Wire::fp32};
  }
  const auto name = select_algorithm(collective, bytes, world, one_host, choices_, size_factor_);
  return {std::string(name), Wire::fp32};
}

std::pair<std::string, Wire> Programs::choose(Collective collective, size_t bytes) const {
  const auto blocks = static_cast<size_t>(moves_blocks(collective) ? mesh_.world_size() : 1);
  const Wire asked = may_narrow(collective, blocks * bytes) ? wire_ : Wire::fp32;
  return choose({collective, asked, 0, bytes});
}

std::string Programs::algorithm_for(Collective collective, size_t bytes) const {
  const auto [name, wire] = choose(collective, bytes);
  return labelled(name, wire);
}

// Between hosts only, where the plan has levels: within a host bytes cost less than rounding them.
NarrowLinks Programs::narrow_links(const std::string& algorithm, Wire wire) const {
  NarrowLinks links;
  if (wire == Wire::fp32) return links;
  links.codec = &codec_for(wire);
  links.peers.assign(static_cast<size_t>(mesh_.world_size()), true);
  if (!is_hierarchical(algorithm)) return links;
  for (const auto& host : hosts_) {
    if (place_in(host, mesh_.rank()) < 0) continue;
    for (const int mate : host) links.peers[static_cast<size_t>(mate)] = false;
  }
  return links;
}

Plan Programs::plan_of(Collective collective, const std::string& name, int rank, int root) const {
  if (name == kHierarchical) return make_hierarchical_plan(collective, hosts_, rank, root);
  if (is_hierarchical(name)) {
    const auto inter = name.substr(std::string_view(kHierarchical).size() + 1);
    return make_hierarchical_plan(hosts_, inter, rank);
  }
  if (name == kGrid) return make_grid_plan(collective, mesh_.world_size(), rank);
  return make_plan(collective, name, mesh_.world_size(), rank, root);
}

double Programs::predicted_s(Collective collective, size_t bytes) const {
  const auto [name, wire] = choose(collective, bytes);
  if (wire != Wire::fp32) bytes = codec_for(wire).wire_bytes(bytes / sizeof(float));
  PlanSet plans;
  for (int rank = 0; rank < mesh_.world_size(); ++rank) {
    plans.push_back(plan_of(collective, name, rank, 0));
  }
  return cost(plans, bytes, figures_.link).seconds;
}

const Program& Programs::for_operation(const Operation& operation) {
  // A block may differ from rank to rank, so collectives that move blocks may not choose by its
  // size.
  const bool sized = !moves_blocks(operation.collective) && !operation.work.empty();
  const Wire wanted = operation.wire.value_or(wire_);
  const Question question{operation.collective,
                          wanted != Wire::fp32 && may_narrow(operation) ? wanted : Wire::fp32,
                          is_rooted(operation.collective) ? operation.root : 0,
                          sized ? operation.work[0].count * size_of(operation.dtype) : 0};
  const size_t hash = question.bytes / 4 + question.bytes / 4096 +
                      static_cast<size_t>(question.root) + static_cast<size_t>(question.wire) +
                      5 * static_cast<size_t>(question.collective);
  Answer& answer = recent_[hash % recent_.size()];
  if (!answer.program || !(answer.question == question)) answer = {question, &find(question)};
  return *answer.program;
}

const Program& Programs::find(const Question& question) {
  const auto [collective, asked, root, bytes] = question;
  const auto [name, wire] = choose(question);
  auto& cached = programs_[{collective, name, wire, root}];
  if (!cached) {
    if (check_plans_) {
      PlanSet plans;
      for (int rank = 0; rank < mesh_.world_size(); ++rank)
        plans.push_back(plan_of(collective, name, rank, root));
      const auto wrong = check(plans);
      PYCOMM_ASSERT(wrong.empty(), wrong);
    }
    cached = std::make_unique<Program>(plan_of(collective, name, mesh_.rank(), root),
                                       narrow_links(name, wire));
  }
  return *cached;
}

}  // namespace pycomm
