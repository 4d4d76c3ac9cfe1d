// SPDX-License-Identifier: MIT
#include "base/dtype.h"

#include <array>

namespace pycomm {
namespace {

struct DTypeInfo {
  std::string_view name;
  size_t size;
};
constexpr std::array<DTypeInfo, kDTypeCount> kDTypes{{
    {"uint8", 1},          {"int8", 1},        {"int16", 2},           {"int32", 4},
    {"int64", 8},          {"uint16", 2},      {"uint32", 4},          {"uint64", 8},
    {"bool", 1},           {"float16", 2},     {"bfloat16", 2},        {"float32", 4},
    {"float64", 8},        {"complex32", 4},   {"complex64", 8},       {"complex128", 16},
    {"float8_e4m3fn", 1},  {"float8_e5m2", 1}, {"float8_e4m3fnuz", 1}, {"float8_e5m2fnuz", 1},
    {"float8_e8m0fnu", 1},
}};
constexpr std::array<std::string_view, kReduceOpCount> kOps{
    "sum", "avg", "product", "min", "max", "band", "bor", "bxor", "premul_sum"};
constexpr std::array<std::string_view, kCollectiveCount> kCollectives{
    "all_reduce",     "broadcast",  "reduce",  "all_gather", "gather", "scatter",
    "reduce_scatter", "all_to_all", "barrier", "send",       "recv"};

template <class Table, class Code>
auto lookup(const Table& table, Code code) -> decltype(&table[0]) {
  const auto index = static_cast<size_t>(code);
  return index < table.size() ? &table[index] : nullptr;
}

}  // namespace

size_t size_of(DType dtype) {
  const auto* info = lookup(kDTypes, dtype);
  return info ? info->size : 0;
}
// Codes arrive from the network, so an unknown one prints instead of reading past the table.
std::string_view name_of(DType dtype) {
  const auto* info = lookup(kDTypes, dtype);
  return info ? info->name : "unknown dtype";
}
std::string_view name_of(ReduceOp op) {
  const auto* name = lookup(kOps, op);
  return name ? *name : "unknown op";
}
std::string_view name_of(Collective collective) {
  const auto* name = lookup(kCollectives, collective);
  return name ? *name : "unknown collective";
}

bool is_floating(DType dtype) {
  return (dtype >= DType::float16 && dtype <= DType::float64) || dtype >= DType::float8_e4m3fn;
}
bool is_complex(DType dtype) { return dtype >= DType::complex32 && dtype <= DType::complex128; }

bool supports(ReduceOp op, DType dtype) {
  switch (op) {
    case ReduceOp::sum:
    case ReduceOp::product:
      return true;
    case ReduceOp::avg:
      return dtype != DType::boolean;
    case ReduceOp::min:
    case ReduceOp::max:
      return !is_complex(dtype);
    case ReduceOp::band:
    case ReduceOp::bor:
    case ReduceOp::bxor:
      return !is_floating(dtype) && !is_complex(dtype);
    case ReduceOp::premul_sum:
      return is_floating(dtype) || is_complex(dtype);
  }
  return false;
}

}  // namespace pycomm
