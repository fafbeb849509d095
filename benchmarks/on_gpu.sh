#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one: builds against the torch that is there, runs the
# tests on the device, the sanitizer on a small set, then the benchmarks. No network; under 9 minutes.
#
#   benchmarks/on_gpu.sh [OUT]
#
# OUT (default build/on_gpu) gets summary.txt, a log of every step, env.txt, and in operators/ and
# training/ the table and JSON of the benchmarks. A step that fails or runs out of time does not stop the
# others; the exit status says whether all went well. Variables:
#   PYTHON   the interpreter whose torch is used (python3)
#   DEVICE   cuda, cuda:1, ...; cpu tries the script out where there is no GPU
#   CXR_FAST_COMMIT  what was measured, where the folder is no git repository
set -uo pipefail
cd "$(dirname "$0")/.."
export out device venv python
out=$(realpath -m "${1:-build/on_gpu}")
device=${DEVICE:-cuda}
venv=$(realpath -m build/on_gpu_venv)
python="$venv/bin/python"
mkdir -p "$out"
: >"$out/summary.txt"
export PYTHONUNBUFFERED=1 PATH="$PATH:/usr/local/cuda/bin"

say() { echo "$*" | tee -a "$out/summary.txt"; }

# step NAME SECONDS COMMAND...: with a limit, its output in OUT/NAME.log, the end of it here if it fails.
step() {
  local name=$1 limit=$2 start=$SECONDS status verdict=ok
  shift 2
  timeout --kill-after=10 "$limit" bash -c '"$@"' -- "$@" >"$out/$name.log" 2>&1
  status=$?
  ((status == 0)) || verdict="FAILED ($status)"
  say "$(printf '%-16s %4d s  %s' "$name" $((SECONDS - start)) "$verdict")"
  ((status == 0)) || tail -n 25 "$out/$name.log"
  return $status
}

build() {
  # The interpreter may be a virtual environment itself, whose packages another one does not see.
  "${PYTHON:-python3}" -m venv --without-pip --system-site-packages "$venv" &&
    "${PYTHON:-python3}" -c "import torch, pathlib; print(pathlib.Path(torch.__file__).parents[1])" \
      >"$("$python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")/torch_of_python.pth" &&
    "$python" -m pip install --quiet --no-index --no-build-isolation --no-deps --editable .
}

environment() {
  "$python" -m cxr_fast.cli env
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv || true
  "$python" -m pip list 2>/dev/null | grep -iE "^(torch|triton|numpy|cupy|kornia|opencv|scipy|scikit)" || true
}

# tests WORKERS ARGUMENTS...: side by side where pytest-xdist is there.
tests() {
  local workers=$1
  shift
  "$python" -c "import xdist" 2>/dev/null && set -- -n "$workers" "$@"
  "$python" -m pytest -p no:cacheprovider "$@"
}

# by WAY EXPRESSION: the tests that only a GPU can run, on what CXR_FAST_CUDA leaves.
by() { CXR_FAST_CUDA=$1 "$python" -m pytest -p no:cacheprovider tests/cuda/test_on_gpu.py -k "$2"; }

# Without torch's cache of memory every tensor is an allocation, whose end the sanitizer knows.
memcheck() {
  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck --report-api-errors no \
    --error-exitcode 1 "$python" tests/cuda/small_set.py
}

synccheck() { compute-sanitizer --tool synccheck --error-exitcode 1 "$python" tests/cuda/small_set.py; }

# It also reports what union-find does on purpose, parents in shared memory that are read while others
# lower them (union_find.cuh): its log is to be read.
racecheck() { compute-sanitizer --tool racecheck "$python" tests/cuda/small_set.py --without-triton; }

bench() { "$python" -m cxr_fast.cli bench --device "$device" "$@"; }

export -f build environment tests by memcheck synccheck racecheck bench

step build 150 build || exit 1
step env 60 environment
cp "$out/env.log" "$out/env.txt"
cat "$out/env.txt"

if [[ $device == cuda* ]]; then
  # What is only right or wrong shares the machine; what is timed has it alone.
  step tests-gpu 200 tests 3 tests/cuda &
  step tests-operators 200 tests 5 tests/ops tests/kernels --device "$device" &
  step tests-rest 200 tests 4 tests --ignore tests/ops --ignore tests/cuda --ignore tests/kernels &
  if command -v compute-sanitizer >/dev/null; then
    for tool in memcheck synccheck racecheck; do step $tool 200 $tool & done
  else
    say "compute-sanitizer is not here: no memcheck, no racecheck"
  fi
  wait
  step by-nvrtc 60 by nvrtc "slowly or agree" &
  step by-triton 60 by triton agree &
  wait
  step training 80 bench --seconds 1 --only "training or backbone" --out "$out/training"
  step operators 260 bench --seconds 1 --only "not training and not backbone and not pipeline" \
    --out "$out/operators"
else
  step tests-gpu 300 tests 2 tests/cuda
  step operators 200 bench --quick --out "$out/operators"
fi
say "$SECONDS s in all"
! grep -q FAILED "$out/summary.txt"
