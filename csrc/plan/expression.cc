// SPDX-License-Identifier: MIT
#include "plan/expression.h"

#include <algorithm>

#include "base/error.h"

namespace pycomm {
namespace {

uint64_t hash_of(std::span<const int> key) {
  uint64_t hash = 0xcbf29ce484222325;  // FNV-1a, a word at a time
  for (const int part : key) {
    hash = (hash ^ static_cast<uint32_t>(part)) * 0x100000001b3;
    hash ^= hash >> 29;
  }
  return hash;
}

}  // namespace

Expressions::Expressions(int world_size)
    : world_size_(world_size),
      words_((static_cast<size_t>(world_size) + 63) / 64),
      nodes_(2),
      sets_(2 * words_, 0) {}

int Expressions::intern(std::span<const int> key, const Node& node, bool* is_new) {
  const uint64_t hash = hash_of(key);
  const auto [begin, end] = ids_.equal_range(hash);
  for (auto found = begin; found != end; ++found) {
    const Node& other = nodes_[static_cast<size_t>(found->second)];
    const auto other_key = std::span(keys_).subspan(other.key_begin, other.key_size);
    if (std::ranges::equal(key, other_key)) return found->second;
  }
  *is_new = true;
  const int id = static_cast<int>(nodes_.size());
  nodes_.push_back(node);
  nodes_.back().key_begin = keys_.size();
  nodes_.back().key_size = key.size();
  keys_.insert(keys_.end(), key.begin(), key.end());
  sets_.resize(sets_.size() + words_, 0);
  ids_.emplace(hash, id);
  return id;
}

int Expressions::leaf(int rank, int piece) {
  const int key[] = {-1 - piece, rank};
  bool is_new = false;
  const int id = intern(key, {piece, 1, rank, 0, 0}, &is_new);
  const auto r = static_cast<size_t>(rank);
  sets_[static_cast<size_t>(id) * words_ + r / 64] |= uint64_t{1} << (r % 64);
  return id;
}

std::string Expressions::why_not_sum(std::span<const int> operands) const {
  std::vector<uint64_t> seen(words_, 0);
  for (const int operand : operands) {
    if (operand == kNothing) return "adds a chunk that holds nothing yet";
    if (piece(operand) != piece(operands[0])) {
      return str("adds ", describe(operand), " to ", describe(operands[0]));
    }
    const auto set = set_of(operand);
    for (size_t w = 0; w < words_; ++w) {
      if (seen[w] & set[w]) {
        const auto bit = static_cast<size_t>(__builtin_ctzll(seen[w] & set[w]));
        return str("adds the contribution of rank ", 64 * w + bit, " twice");
      }
      seen[w] |= set[w];
    }
  }
  return {};
}

int Expressions::sum(std::span<const int> operands) {
  if (operands.size() == 1) return operands[0];
  Node node{piece(operands[0]), 0, world_size_, 0, 0};
  for (const int operand : operands) {
    node.ranks += nodes_[static_cast<size_t>(operand)].ranks;
    node.lowest_rank = std::min(node.lowest_rank, lowest_rank(operand));
  }
  bool is_new = false;
  const int id = intern(operands, node, &is_new);
  for (const int operand : operands) {
    if (!is_new) break;
    for (size_t w = 0; w < words_; ++w) {
      sets_[static_cast<size_t>(id) * words_ + w] |=
          sets_[static_cast<size_t>(operand) * words_ + w];
    }
  }
  return id;
}

std::string Expressions::describe(int id) const {
  if (id == kNothing) return "nothing";
  if (id == kTokenValue) return "a token";
  const auto set = set_of(id);
  std::string ranks;
  for (size_t r = 0; r < static_cast<size_t>(world_size_); ++r) {
    if (set[r / 64] >> (r % 64) & 1) ranks += str(ranks.empty() ? "" : ",", r);
  }
  return str("piece ", piece(id), " of ", ranks.find(',') == std::string::npos ? "rank " : "ranks ",
             ranks);
}

}  // namespace pycomm
