#!/usr/bin/env bash
# Builds, questions, checks and times everything CUDA on the machine it runs on, in under ten minutes.
# Needs a GPU, nvcc, cmake and ninja (or make); for the second half Python with torch for CUDA, pytest,
# pytest-timeout, hypothesis and ninja. Leaves in OUT (default: build/gpu): questions.txt, gpu_kernels.json,
# gpu_ranks.json, torch.txt, gpt.txt, doctor.txt, torch_operations.json, sanitizer.txt, summary.json. What
# fails does not stop the rest; the exit status says whether all passed.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-build/gpu}
if ! nvidia-smi -L > /dev/null 2>&1; then
  echo "tests/gpu/run.sh needs an NVIDIA GPU and its driver: nvidia-smi -L lists none" >&2
  exit 2
fi
if ! command -v nvcc > /dev/null && [ ! -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ]; then
  echo "tests/gpu/run.sh needs nvcc: install the CUDA toolkit or set CUDA_HOME" >&2
  exit 2
fi
mkdir -p "$OUT" build/gpu
commit=$(git rev-parse --short HEAD 2> /dev/null || echo unknown)
failed=()
# A part that hangs costs the parts after it no more than its own limit; all of them, with the
# build, end within BUDGET seconds.
BUDGET=${BUDGET:-570}
limit() {
  local left=$((BUDGET - SECONDS))
  echo $((left < 1 ? 1 : left < $1 ? left : $1))
}
# step NAME SECONDS OUTPUT COMMAND...: runs it with its output in OUTPUT and here.
step() {
  local name=$1 seconds=$2 output=$3
  shift 3
  echo "== $name"
  timeout -k 5 "$(limit "$seconds")" "$@" 2>&1 | tee "$output"
  local status=${PIPESTATUS[0]}
  [ "$status" = 0 ] || { failed+=("$name"); echo "== $name: FAILED with status $status"; }
}
# json NAME SECONDS OUTPUT COMMAND...: its standard output is a record.
json() {
  local name=$1 seconds=$2 output=$3
  shift 3
  echo "== $name"
  timeout -k 5 "$(limit "$seconds")" "$@" > "$output" || { failed+=("$name"); echo "== $name: FAILED"; }
  cat "$output"
}

# torch's half builds beside the other one, into this folder and build/gpu/egg.
PYTHON=${PYTHON:-python3}
with_torch=false
if "$PYTHON" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
  with_torch=true
  PYCOMM_CUDA=ON timeout -k 5 "$(limit 300)" "$PYTHON" setup.py -q build_ext --inplace \
    > "$OUT/extension.log" 2>&1 &
  extension=$!
fi
generator=()
command -v ninja > /dev/null && generator=(-G Ninja)
cmake "${generator[@]}" -S . -B build/gpu -DPYCOMM_TESTS=ON -DPYCOMM_CUDA=ON > "$OUT/configure.log" 2>&1 &&
  timeout -k 5 "$(limit 300)" cmake --build build/gpu -j "$(nproc)" --target gpu_kernels gpu_ranks > "$OUT/build.log" 2>&1 || {
  tail -n 30 "$OUT/configure.log" "$OUT/build.log"
  echo "the build failed" >&2
  exit 1
}
step "questions" 60 "$OUT/questions.txt" build/gpu/gpu_ranks question
step "kernels" 90 "$OUT/kernels.txt" build/gpu/gpu_kernels check
step "ranks on one GPU" 90 "$OUT/ranks.txt" build/gpu/gpu_ranks check
json "rates of kernels" 60 "$OUT/gpu_kernels.json" build/gpu/gpu_kernels measure "$commit"
json "times of ranks on one GPU" 90 "$OUT/gpu_ranks.json" build/gpu/gpu_ranks measure "$commit"
if command -v compute-sanitizer > /dev/null; then
  # Not the kernels that wait for one another: so slowed down, their waits would end.
  step "compute-sanitizer" 120 "$OUT/sanitizer.txt" \
    compute-sanitizer --error-exitcode 1 build/gpu/gpu_kernels check alone
fi
if $with_torch; then
  mkdir -p build/gpu/egg
  if wait $extension && "$PYTHON" setup.py -q egg_info --egg-base build/gpu/egg >> "$OUT/extension.log" 2>&1; then
    export PYTHONPATH=$PWD:$PWD/build/gpu/egg OMP_NUM_THREADS=1
    step "torch: the tests of devices" 180 "$OUT/torch.txt" env PYCOMM_TEST_DEVICE=cuda "$PYTHON" -m pytest \
      -q -p no:cacheprovider tests/*/test_device_*.py
    gpt() { # NAME RANKS
      "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node "$2" examples/ddp_unchanged.py \
        --backend pycomm --device cuda --steps 30 --out "$OUT/$1"
    }
    export -f gpt
    export OUT PYTHON
    step "torch: the GPT example with DDP, 2 ranks on one GPU and 1 process" 90 "$OUT/gpt.txt" bash -c \
      'gpt gpt_1 1 && gpt gpt_2 2 && "$PYTHON" examples/compare_runs.py "$OUT/gpt_1" "$OUT/gpt_2"'
    step "torch: doctor" 60 "$OUT/doctor.txt" "$PYTHON" -m pycomm doctor --world 2
    json "torch: rates of its own operations" 60 "$OUT/torch_operations.txt" "$PYTHON" \
      benchmarks/gpu_torch_operations.py --symmetric-memory --json "$OUT/torch_operations.json"
  else
    failed+=("extension")
    tail -n 30 "$OUT/extension.log"
  fi
else
  failed+=("torch: $PYTHON has no torch that sees the GPU")
fi
list=""
for name in "${failed[@]}"; do list+="${list:+, }\"$name\""; done
cat > "$OUT/summary.json" << RECORD
{"commit": "$commit",
 "hardware": "$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)",
 "driver": "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -1)",
 "gpus": $(nvidia-smi -L | wc -l),
 "failed": [$list]}
RECORD
cat "$OUT/summary.json"
[ ${#failed[@]} = 0 ]
