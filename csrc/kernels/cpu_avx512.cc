// SPDX-License-Identifier: MIT
// 64-byte vectors. No FMA: a fused multiply-add would round differently from the other levels.
// Flags (CMakeFlags.cmake): -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mf16c
// -mprefer-vector-width=512 -ffp-contract=off Nothing here may have external linkage but the one
// function below, see small_floats.h.
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#define PYCOMM_VECTOR_BYTES 64
#include "kernels/codec_loops.h"
#include "kernels/cpu_kernels.h"
#include "kernels/cpu_table.h"

namespace pycomm {

const CpuKernels* avx512_kernels() {
  static constexpr CpuKernels kernels{reduce_any, scale_any, kCodecs};
  return &kernels;
}

}  // namespace pycomm
#else
#include "kernels/cpu_kernels.h"

namespace pycomm {
const CpuKernels* avx512_kernels() { return nullptr; }
}  // namespace pycomm
#endif
