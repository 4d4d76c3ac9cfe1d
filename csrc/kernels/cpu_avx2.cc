// SPDX-License-Identifier: MIT
// 32-byte vectors. No FMA: a fused multiply-add would round differently from the other levels.
// Flags (CMakeFlags.cmake): -O3 -mavx2 -mf16c -ffp-contract=off
// Nothing here may have external linkage but the one function below, see small_floats.h.
#if defined(__AVX2__) && defined(__F16C__)
#define PYCOMM_VECTOR_BYTES 32
#include "kernels/codec_loops.h"
#include "kernels/cpu_kernels.h"
#include "kernels/cpu_table.h"

namespace pycomm {

const CpuKernels* avx2_kernels() {
  static constexpr CpuKernels kernels{reduce_any, scale_any, kCodecs};
  return &kernels;
}

}  // namespace pycomm
#else
#include "kernels/cpu_kernels.h"

namespace pycomm {
const CpuKernels* avx2_kernels() { return nullptr; }
}  // namespace pycomm
#endif
