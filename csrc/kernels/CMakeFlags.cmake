# SPDX-License-Identifier: MIT
# Per-file compiler flags of csrc/kernels, for set_source_files_properties(... COMPILE_OPTIONS).
# -ffp-contract=off is needed by every file here: all levels must round alike.
set(PYCOMM_SCALAR_FLAGS -O2 -fno-tree-vectorize -ffp-contract=off)  # cpu_scalar.cc
set(PYCOMM_AVX2_FLAGS -O3 -mavx2 -mf16c -ffp-contract=off)          # cpu_avx2.cc
set(PYCOMM_AVX512_FLAGS                                             # cpu_avx512.cc
    -O3 -mavx512f -mavx512bw -mavx512vl -mavx512dq -mf16c -mprefer-vector-width=512
    -ffp-contract=off)
set(PYCOMM_HOST_KERNELS_FLAGS -O2 -ffp-contract=off)  # host_kernels.cc
# cuda_*.cu, compiled by nvcc and linked with cudart_static, so that it loads without a driver.
set(PYCOMM_NVCC_FLAGS -O3 -fmad=false -Werror=all-warnings -Xfatbin=-compress-all -Xcompiler=-fPIC,-ffp-contract=off)
