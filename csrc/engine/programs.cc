// SPDX-License-Identifier: MIT
#include "engine/programs.h"

#include "base/error.h"
#include "engine/signature.h"
#include "plan/algorithms.h"
#include "plan/check.h"
#include "plan/cost.h"

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

}  // namespace

Programs::Programs(const Mesh& mesh, AlgorithmChoices choices, bool check_plans)
    : mesh_(mesh),
      choices_(std::move(choices)),
      check_plans_(check_plans),
      figures_(parse_figures(mesh.address(0).figures)),
      size_factor_(size_factor(figures_)),
      hosts_(group_by_host(mesh)) {}

std::string Programs::algorithm_for(Collective collective, size_t bytes) const {
  const int world = mesh_.world_size();
  const bool one_host = hosts_.size() == 1;
  if (two_levels_pay(collective, bytes, world, hosts_.size(), choices_)) return kHierarchical;
  return std::string(select_algorithm(collective, bytes, world, one_host, choices_, size_factor_));
}

Plan Programs::plan_of(Collective collective, const std::string& name, int rank, int root) const {
  return name == kHierarchical ? make_hierarchical_plan(collective, hosts_, rank, root)
                               : make_plan(collective, name, mesh_.world_size(), rank, root);
}

double Programs::predicted_s(Collective collective, size_t bytes) const {
  const auto name = algorithm_for(collective, bytes);
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
  const Question question{operation.collective,
                          is_rooted(operation.collective) ? operation.root : 0,
                          sized ? operation.work[0].count * size_of(operation.dtype) : 0};
  const size_t hash = question.bytes / 4 + question.bytes / 4096 +
                      static_cast<size_t>(question.root) +
                      5 * static_cast<size_t>(question.collective);
  Answer& answer = recent_[hash % recent_.size()];
  if (!answer.program || !(answer.question == question)) answer = {question, &find(question)};
  return *answer.program;
}

const Program& Programs::find(const Question& question) {
  const auto [collective, root, bytes] = question;
  const auto name = algorithm_for(collective, bytes);
  auto& cached = programs_[{collective, name, root}];
  if (!cached) {
    if (check_plans_) {
      PlanSet plans;
      for (int rank = 0; rank < mesh_.world_size(); ++rank)
        plans.push_back(plan_of(collective, name, rank, root));
      const auto wrong = check(plans);
      PYCOMM_ASSERT(wrong.empty(), wrong);
    }
    cached = std::make_unique<Program>(plan_of(collective, name, mesh_.rank(), root));
  }
  return *cached;
}

}  // namespace pycomm
