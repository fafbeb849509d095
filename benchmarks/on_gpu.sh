#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one: builds against the torch that is there, runs the
# tests on the device, the sanitizer on a small set, then the benchmarks. No network; under 9 minutes.
#
#   benchmarks/on_gpu.sh [OUT]
#
# OUT (default build/on_gpu) gets summary.txt, a log of every step, env.txt, and the table and JSON of the
# benchmarks. A step that fails or runs out of time does not stop the others; the exit status says whether
# all went well. Variables:
#   PYTHON   the interpreter whose torch is used (python3)
#   DEVICE   cuda, cuda:1, ...; cpu tries the script out where there is no GPU
#   MINUTES  after these, no further step begins (8)
#   CXR_FAST_COMMIT  what was measured, where the folder is no git repository
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:-build/on_gpu}")
device=${DEVICE:-cuda}
venv=$(realpath -m build/on_gpu_venv)
python="$venv/bin/python"
mkdir -p "$out"
: >"$out/summary.txt"
failed=0
export PYTHONUNBUFFERED=1 OPENCV_LOG_LEVEL=ERROR

say() { echo "$*" | tee -a "$out/summary.txt"; }

# step NAME SECONDS COMMAND...: with a limit, its output in OUT/NAME.log, the end of it here if it fails.
step() {
  local name=$1 limit=$2 start=$SECONDS status
  shift 2
  if ((SECONDS > ${MINUTES:-8} * 60)); then
    say "$(printf '%-22s not begun: out of time' "$name")"
    failed=1
    return 1
  fi
  timeout --kill-after=10 "$limit" "$@" >"$out/$name.log" 2>&1
  status=$?
  say "$(printf '%-22s %4d s  %s' "$name" $((SECONDS - start)) \
    "$( ((status == 0)) && echo ok || echo "FAILED ($status)")")"
  if ((status != 0)); then
    failed=1
    tail -n 25 "$out/$name.log"
  fi
  return $status
}

build() {
  "${PYTHON:-python3}" -m venv --system-site-packages "$venv" &&
    "$python" -m pip install --quiet --no-index --no-build-isolation --no-deps --editable .
}

environment() {
  "$python" -m cxr_fast.cli env
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem --format=csv || true
  "$python" -m pip list 2>/dev/null | grep -iE "^(torch|triton|numpy|cupy|kornia|opencv|scipy|scikit)" || true
}

# As many workers as help; a test run by one worker shares the GPU with the others.
tests() { "$python" -m pytest -p no:cacheprovider -n "$(nproc --ignore=2 2>/dev/null || echo 2)" "$@"; }

sanitize() { compute-sanitizer --tool "$1" --error-exitcode 1 "$python" tests/cuda/small_set.py; }

bench() { "$python" -m cxr_fast.cli bench --device "$device" --out "$out" "$@"; }

export -f build environment tests sanitize bench
export python venv out device
run() { local name=$1 limit=$2; shift 2; step "$name" "$limit" bash -c '"$@"' -- "$@"; }

run build 150 build || exit 1
run env 60 environment
cp "$out/env.log" "$out/env.txt"
cat "$out/env.txt"

if [[ $device == cuda* ]]; then
  run tests-gpu 150 tests tests/cuda
  run tests-operators 150 tests tests/ops --device "$device"
  run tests-nvrtc 60 env CXR_FAST_CUDA=nvrtc "$python" -m pytest -q -p no:cacheprovider tests/cuda/test_on_gpu.py -k "slowly or agree"
  run tests-triton 60 env CXR_FAST_CUDA=triton "$python" -m pytest -q -p no:cacheprovider tests/cuda/test_on_gpu.py -k "agree"
  if command -v compute-sanitizer >/dev/null; then
    run memcheck 90 sanitize memcheck
    run racecheck 90 sanitize racecheck
  else
    say "compute-sanitizer is not here"
  fi
  run bench-operators 240 bench --seconds 1 --only "not pipeline and not training"
  run bench-training 60 bench --seconds 1 --only training
  run tests-rest 150 tests tests --ignore tests/ops --ignore tests/cuda
else
  run tests-operators 300 tests tests/cuda
  run bench 200 bench --quick
fi
say "$((SECONDS)) s in all"
exit $failed
