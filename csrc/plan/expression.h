// SPDX-License-Identifier: MIT
// What a chunk holds, as a formula: a rank's input, or a sum of formulas in a given order. Equal
// formulas have equal ids, so ranks that hold the same id hold the same bits. One proof owns one;
// not synchronised.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

namespace pycomm {

class Expressions {
 public:
  static constexpr int kNothing = 0;  // never written
  static constexpr int kTokenValue = 1;

  explicit Expressions(int world_size);

  // Rank's own contribution to a piece.
  int leaf(int rank, int piece);
  // The operands added in this order. Precondition: why_not_sum says nothing.
  int sum(std::span<const int> operands);
  // Why these cannot be added: one is missing, pieces differ, or a rank would count twice. Else
  // empty.
  std::string why_not_sum(std::span<const int> operands) const;

  int piece(int id) const { return nodes_[static_cast<size_t>(id)].piece; }
  bool is_whole(int id) const { return nodes_[static_cast<size_t>(id)].ranks == world_size_; }
  // The lowest contributing rank; orders the operands of a `reduce`.
  int lowest_rank(int id) const { return nodes_[static_cast<size_t>(id)].lowest_rank; }
  std::string describe(int id) const;

 private:
  struct Node {
    int piece = -1;
    int ranks = 0;
    int lowest_rank = -1;
    size_t key_begin = 0;
    size_t key_size = 0;
  };

  // The id of the node with this key: an existing one, or a new one with `node`'s data.
  int intern(std::span<const int> key, const Node& node, bool* is_new);
  std::span<const uint64_t> set_of(int id) const {
    return std::span(sets_).subspan(static_cast<size_t>(id) * words_, words_);
  }

  int world_size_;
  size_t words_;                // of a set of ranks
  std::vector<Node> nodes_;     // by id
  std::vector<uint64_t> sets_;  // by id: contributing ranks
  std::vector<int> keys_;       // operands of sums; (-1 - piece, rank) of leaves
  std::unordered_multimap<uint64_t, int> ids_;
};

}  // namespace pycomm
