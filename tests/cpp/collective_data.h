// SPDX-License-Identifier: MIT
// Memory for one collective on one rank, filled with small whole numbers, and what must be in it
// afterwards, written down without a look at any plan.
#pragma once

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "base/error.h"
#include "engine/operation.h"
#include "engine/signature.h"

namespace data {

using namespace pycomm;

// gather and scatter take blocks of one size, as in PyTorch.
inline bool may_be_uneven(Collective collective) {
  return collective == Collective::all_gather || collective == Collective::reduce_scatter ||
         collective == Collective::all_to_all;
}

struct Case {
  Collective collective = Collective::all_reduce;
  int world_size = 1;
  int root = 0;
  ReduceOp op = ReduceOp::sum;
  DType dtype = DType::float32;
  size_t count = 0;     // elements of the tensor or of a block
  bool uneven = false;  // blocks of different sizes
  int salt = 0;         // makes operations in a row differ

  size_t block(int from, int to) const {
    return uneven ? (count + static_cast<size_t>(3 * from + 5 * to)) % (count + 4) : count;
  }
  std::string text() const {
    return str(name_of(collective), " ", name_of(dtype), "[", count, uneven ? ", uneven" : "", "] ",
               name_of(op), ", root ", root, ", world size ", world_size);
  }
};

template <class T>
void store_value(std::byte* at, double value) {
  const T converted = static_cast<T>(value);
  std::memcpy(at, &converted, sizeof(T));
}
inline void store(DType dtype, std::byte* at, double value) {
  switch (dtype) {
    case DType::float32:
      return store_value<float>(at, value);
    case DType::float64:
      return store_value<double>(at, value);
    case DType::int32:
      return store_value<int32_t>(at, value);
    case DType::int64:
      return store_value<int64_t>(at, value);
    case DType::uint8:
      return store_value<uint8_t>(at, value);
    default:
      throw std::logic_error("no such test data");
  }
}

// Element `i` of what `from` contributes to the block `to`.
inline double input(const Case& c, int from, int to, size_t i) {
  const auto mixed =
      static_cast<int>((static_cast<size_t>(5 * from + 3 * to + c.salt) + 7 * i) % 11);
  if (c.op == ReduceOp::product) return mixed % 3 == 0 ? -1 : mixed % 3;
  const bool plain = c.dtype == DType::uint8 || c.op >= ReduceOp::band;
  return plain ? mixed : mixed - 4;
}

inline double combine(ReduceOp op, double a, double b) {
  const auto x = static_cast<int64_t>(a), y = static_cast<int64_t>(b);
  switch (op) {
    case ReduceOp::product:
      return a * b;
    case ReduceOp::min:
      return std::min(a, b);
    case ReduceOp::max:
      return std::max(a, b);
    case ReduceOp::band:
      return static_cast<double>(x & y);
    case ReduceOp::bor:
      return static_cast<double>(x | y);
    case ReduceOp::bxor:
      return static_cast<double>(x ^ y);
    default:
      return a + b;
  }
}

inline double reduced(const Case& c, int to, size_t i) {
  double value = input(c, 0, to, i);
  for (int from = 1; from < c.world_size; ++from)
    value = combine(c.op, value, input(c, from, to, i));
  if (c.op != ReduceOp::avg) return value;
  value /= c.world_size;
  return is_floating(c.dtype) ? value : std::trunc(value);
}

// One rank's tensors with guards around each; check() compares every byte.
class RankData {
 public:
  RankData(const Case& c, int rank) : case_(c), rank_(rank) {
    operation.collective = c.collective;
    operation.op = c.op;
    operation.dtype = c.dtype;
    operation.root = c.root;
    lay_out();
    for (auto& block : blocks_) {
      const size_t bytes = block.count * size_of(c.dtype);
      block.memory.assign(bytes + 2 * kGuard, kUntouched);
      block.expected = block.memory;
      for (size_t i = 0; i < block.count; ++i) {
        const size_t at = kGuard + i * size_of(c.dtype);
        if (block.before) store(c.dtype, block.memory.data() + at, block.before(i));
        const auto& after = block.after ? block.after : block.before;
        if (after) store(c.dtype, block.expected.data() + at, after(i));
      }
      operation.work.push_back({block.memory.data() + kGuard, block.count});
    }
  }
  RankData(const RankData&) = delete;
  RankData& operator=(const RankData&) = delete;

  // Empty when every byte is what it must be.
  std::string wrong() const {
    for (size_t b = 0; b < blocks_.size(); ++b) {
      const auto& block = blocks_[b];
      for (size_t i = 0; i < block.memory.size(); ++i) {
        if (block.memory[i] == block.expected[i]) continue;
        return str(case_.text(), ": rank ", rank_, ", region ", b, ", byte ",
                   static_cast<long>(i) - static_cast<long>(kGuard), " is ",
                   static_cast<int>(block.memory[i]), ", expected ",
                   static_cast<int>(block.expected[i]));
      }
    }
    return {};
  }

  Operation operation;

 private:
  static constexpr size_t kGuard = 40;  // not a multiple of a vector register
  static constexpr std::byte kUntouched{0xa5};
  using Value = std::function<double(size_t)>;
  struct Block {
    size_t count;
    Value before, after;  // empty: holds nothing of interest; stays as it was
    std::vector<std::byte> memory, expected;
  };

  void add(size_t count, Value before, Value after) {
    blocks_.push_back({count, std::move(before), std::move(after), {}, {}});
  }
  Value in(int from, int to) const {
    return [c = case_, from, to](size_t i) { return input(c, from, to, i); };
  }
  Value sum(int to) const {
    return [c = case_, to](size_t i) { return reduced(c, to, i); };
  }

  void lay_out() {
    const int p = case_.world_size, root = case_.root;
    const bool is_root = rank_ == root;
    switch (case_.collective) {
      case Collective::all_reduce:
        return add(case_.count, in(rank_, 0), sum(0));
      case Collective::reduce:
        return add(case_.count, in(rank_, 0), is_root ? sum(0) : Value());
      case Collective::broadcast:
        return add(case_.count, in(rank_, 0), in(root, 0));
      case Collective::all_gather:
      case Collective::gather:
        for (int q = 0; q < p; ++q) {
          const bool has = is_root || case_.collective == Collective::all_gather;
          add(has ? case_.block(q, 0) : 0, {}, in(q, 0));
        }
        return add(case_.block(rank_, 0), in(rank_, 0), {});
      case Collective::scatter:
        for (int q = 0; q < p; ++q) add(is_root ? case_.block(q, 0) : 0, in(root, q), {});
        return add(case_.block(rank_, 0), {}, in(root, rank_));
      case Collective::reduce_scatter:
        for (int q = 0; q < p; ++q) add(case_.block(q, 0), in(rank_, q), {});
        return add(case_.block(rank_, 0), {}, sum(rank_));
      case Collective::all_to_all:
        for (int q = 0; q < p; ++q) add(case_.block(rank_, q), in(rank_, q), {});
        for (int q = 0; q < p; ++q) add(case_.block(q, rank_), {}, in(q, rank_));
        return;
      default:
        return;
    }
  }

  Case case_;
  int rank_;
  std::vector<Block> blocks_;
};

// Ops and dtypes worth a run: every op once, whole numbers and fractions.
struct Arithmetic {
  ReduceOp op;
  DType dtype;
};
inline std::vector<Arithmetic> arithmetic_for(Collective collective) {
  if (!is_reduction(collective)) {
    return {{ReduceOp::sum, DType::float32}, {ReduceOp::sum, DType::uint8}};
  }
  return {{ReduceOp::sum, DType::float32}, {ReduceOp::avg, DType::float32},
          {ReduceOp::avg, DType::int32},   {ReduceOp::max, DType::int64},
          {ReduceOp::min, DType::float64}, {ReduceOp::product, DType::float32},
          {ReduceOp::bxor, DType::uint8},  {ReduceOp::band, DType::int32}};
}

}  // namespace data
