// SPDX-License-Identifier: MIT
#include <array>
#include <cstdlib>

#include "base/error.h"
#include "kernels/cpu_kernels.h"
#include "kernels/reduce.h"

namespace pycomm {
namespace {

constexpr std::array<std::string_view, 3> kLevels{"scalar", "avx2", "avx512"};

bool processor_has(CpuLevel level) {
#if defined(__x86_64__) || defined(__i386__)
  switch (level) {
    case CpuLevel::scalar:
      return true;
    case CpuLevel::avx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("f16c");
    case CpuLevel::avx512:
      return processor_has(CpuLevel::avx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
  }
#endif
  return level == CpuLevel::scalar;
}

const CpuKernels* compiled(CpuLevel level) {
  switch (level) {
    case CpuLevel::scalar:
      return scalar_kernels();
    case CpuLevel::avx2:
      return avx2_kernels();
    case CpuLevel::avx512:
      return avx512_kernels();
  }
  return nullptr;
}

void check(const ReduceTask& task) {
  PYCOMM_ASSERT(task.op != ReduceOp::premul_sum && supports(task.op, task.dtype), name_of(task.op),
                " of ", name_of(task.dtype));
  PYCOMM_ASSERT(task.source_count >= 1, task.source_count, " sources");
  PYCOMM_ASSERT(task.copy_count == 0 || (task.copy_count > 0 && task.copies), task.copy_count,
                " copies");
  PYCOMM_ASSERT(task.divisor == 1 ||
                    (task.divisor > 1 && (task.op == ReduceOp::sum || task.op == ReduceOp::avg)),
                "divisor ", task.divisor, " for ", name_of(task.op));
}

const CpuKernels& best_kernels() {
  static const CpuKernels& kernels = cpu_kernels_at(best_cpu_level());
  return kernels;
}

}  // namespace

std::string_view name_of(CpuLevel level) {
  const auto index = static_cast<size_t>(level);
  return index < kLevels.size() ? kLevels[index] : "unknown level";
}

CpuLevel hardware_cpu_level() {
  for (CpuLevel level : {CpuLevel::avx512, CpuLevel::avx2}) {
    if (processor_has(level) && compiled(level)) return level;
  }
  return CpuLevel::scalar;
}

CpuLevel chosen_cpu_level(std::string_view wanted, CpuLevel hardware) {
  if (wanted.empty()) return hardware;
  for (size_t i = 0; i < kLevels.size(); ++i) {
    if (wanted != kLevels[i]) continue;
    const auto level = static_cast<CpuLevel>(i);
    PYCOMM_USAGE(level <= hardware, "PYCOMM_CPU=", wanted, " but this machine and build have ",
                 name_of(hardware), " at most; unset PYCOMM_CPU or lower it");
    return level;
  }
  throw UsageError(
      str("PYCOMM_CPU=", wanted, " is unknown; use scalar, avx2 or avx512, or unset it"));
}

CpuLevel best_cpu_level() {
  static const CpuLevel level = [] {
    const char* wanted = std::getenv("PYCOMM_CPU");
    return chosen_cpu_level(wanted ? wanted : "", hardware_cpu_level());
  }();
  return level;
}

const CpuKernels& cpu_kernels_at(CpuLevel level) {
  const CpuLevel hardware = hardware_cpu_level();
  PYCOMM_USAGE(level <= hardware, "CPU level ", name_of(level), " asked for, but this machine and ",
               "build have ", name_of(hardware), " at most");
  return *compiled(level);
}

void reduce(const ReduceTask& task) {
  check(task);
  best_kernels().reduce(task);
}

void reduce_at(CpuLevel level, const ReduceTask& task) {
  check(task);
  cpu_kernels_at(level).reduce(task);
}

void scale(DType dtype, const void* in, void* out, size_t count, double factor) {
  PYCOMM_ASSERT(is_floating(dtype) || is_complex(dtype), "scale of ", name_of(dtype));
  best_kernels().scale(dtype, in, out, count, factor);
}

}  // namespace pycomm
