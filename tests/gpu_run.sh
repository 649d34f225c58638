#!/usr/bin/env bash
# Everything about CUDA that needs a device, by one command on a machine with one: bash tests/gpu_run.sh [REPORT]
#
# An environment with refdiff, its tests and a CuPy of the driver's CUDA; then, each with its own time and result in one
# report: the whole test suite with CuPy in its fixtures, the kernels against their layers, compute-sanitizer over small
# shapes, and the bench. A step that fails does not stop those after it; what was not run is said. The report is
# tests/gpu_reports/DATE-CARD.md unless another name is given.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

command -v nvidia-smi >/dev/null || { echo "no nvidia-smi: this needs a machine with a CUDA device" >&2; exit 1; }
card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
report=${1:-tests/gpu_reports/$(date +%F)-${card//[^A-Za-z0-9]/-}.md}
mkdir -p "$(dirname "$report")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0

say() { printf '%s\n' "$@" | tee -a "$report"; }

run() { # title, seconds, command...: run it, and put how it ended and its last lines into the report
    local title=$1 limit=$2 code started=$SECONDS
    shift 2
    echo "== $title" >&2
    timeout "$limit" "$@" >"$work/log" 2>&1
    code=$?
    say "" "## $title" "" "\`$*\`" "" "exit $code after $((SECONDS - started)) s" "" '```'
    tail -n "${LINES_KEPT:-25}" "$work/log" | tee -a "$report"
    say '```'
    [[ $code == 0 ]] || failed=1
}

python=${PYTHON:-python3}
if [[ -z ${GPU_RUN_HERE:-} ]]; then # GPU_RUN_HERE=1: use the Python that is there, with what it has
    cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p' | head -1)
    [[ ${cuda:-12} -ge 13 ]] && cupy='cupy-cuda13x[ctk]>=14' || cupy='cupy-cuda12x[ctk]>=14'
    "$python" -m venv "$work/venv" && python=$work/venv/bin/python
    "$python" -m pip install -q '.[test]' "$cupy" || { echo "pip could not install the tests and $cupy" >&2; exit 1; }
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

: >"$report"
say "# refdiff on $card, $(date -u +'%F %H:%M') UTC" ""
say "$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv)" ""
say "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ', with changes')"
say "$("$python" -c 'import cupy, numpy, sys
print("Python", sys.version.split()[0], "· NumPy", numpy.__version__, "· CuPy", cupy.__version__, "· CUDA", cupy.cuda.runtime.runtimeGetVersion())' 2>&1 | tail -1)"

if ! "$python" -c 'from refdiff import arrays; arrays.backend("cupy")' 2>"$work/log"; then
    say "" "CuPy does not answer: $(tail -1 "$work/log")" "" "Nothing else was run."
    exit 1
fi

tests=("$python" -m pytest -p no:cacheprovider -rs)
run "kernels against their layers" 900 "${tests[@]}" tests/backends/test_cupy_device.py -k kernel
run "the model, its text and its gradients on the device" 600 "${tests[@]}" tests/backends/test_cupy_device.py -k 'not kernel'
run "the layers, with CuPy among the places" 900 "${tests[@]}" tests/layers
run "all quick tests" 1800 "${tests[@]}"

if command -v compute-sanitizer >/dev/null; then
    small=("$python" -m pytest -p no:cacheprovider tests/backends/test_cupy_device.py -k "kernel and small")
    for tool in memcheck racecheck synccheck initcheck; do
        LINES_KEPT=12 run "compute-sanitizer: $tool" 1800 compute-sanitizer --tool "$tool" --error-exitcode 9 "${small[@]}"
    done
else
    say "" "## compute-sanitizer" "" "Not run: it is not on this machine."
fi

if "$python" -m refdiff bench --help 2>/dev/null | grep -q -- --backend; then
    LINES_KEPT=80 run "bench" 1800 "$python" -m refdiff bench --backend cupy
else
    say "" "## bench" "" "Not run: this version's bench does not know --backend."
fi

say "" "$([[ $failed == 0 ]] && echo 'All that was run passed.' || echo 'Something above failed.')"
echo "report: $report" >&2
exit "$failed"
