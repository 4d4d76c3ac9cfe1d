// SPDX-License-Identifier: MIT
// The programs of one group: which algorithm carries out an operation, built at its first use,
// proved if that is wanted, and kept.
//
// A call that resembles an earlier one finds its program without a search. One thread at a time,
// but for algorithm_for(). Programs stay where they are for as long as this lives. The mesh belongs
// to others.
#pragma once

#include <array>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "engine/operation.h"
#include "engine/program.h"
#include "engine/select.h"
#include "engine/tuner.h"
#include "transport/mesh.h"

namespace pycomm {

class Programs {
 public:
  // `wire`: what float32 sums of the group travel as, see wire_choice.h.
  Programs(const Mesh& mesh, AlgorithmChoices choices, bool check_plans, Wire wire = Wire::fp32);

  const Program& for_operation(const Operation& operation);
  // Of a float32 sum, with the wire format where it is narrow: "direct", "direct as bf16".
  std::string algorithm_for(Collective collective, size_t bytes) const;
  Wire wire() const { return wire_; }
  // Before anybody else uses this.
  void set_wire(Wire wire) { wire_ = wire; }
  // What the whole group goes by.
  const Figures& figures() const { return figures_; }
  // The ranks of each host.
  const std::vector<std::vector<int>>& hosts() const { return hosts_; }
  // By plan/cost and these figures: seconds with a core for each rank. Makes all ranks' plans.
  double predicted_s(Collective collective, size_t bytes) const;

 private:
  // All that the choice depends on.
  struct Question {
    Collective collective = Collective::all_reduce;
    Wire wire = Wire::fp32;  // asked for
    int root = 0;
    size_t bytes = 0;
    bool operator==(const Question&) const = default;
  };
  struct Answer {
    Question question;
    const Program* program = nullptr;
  };
  const Program& find(const Question& question);
  // The algorithm, and what it really is carried out as: float32 where no link would be narrow.
  std::pair<std::string, Wire> choose(const Question& question) const;
  std::pair<std::string, Wire> choose(Collective collective, size_t bytes) const;
  NarrowLinks narrow_links(const std::string& algorithm, Wire wire) const;
  Plan plan_of(Collective collective, const std::string& name, int rank, int root) const;

  const Mesh& mesh_;
  const AlgorithmChoices choices_;
  const bool check_plans_;
  const Figures figures_;
  const double size_factor_;
  const std::vector<std::vector<int>> hosts_;
  Wire wire_;
  std::map<std::tuple<Collective, std::string, Wire, int>, std::unique_ptr<Program>> programs_;
  std::array<Answer, 16> recent_;  // by a hash of the question
};

}  // namespace pycomm
