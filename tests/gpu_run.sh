#!/usr/bin/env bash
# Everything about CUDA that needs a device, by one command on a machine with one: bash tests/gpu_run.sh [REPORT]
#
# An environment with refdiff, its tests and a CuPy of the driver's CUDA; then, each with its own time and result in one
# report: the kernels against their layers, the model, the whole test suite with CuPy in its fixtures, compute-sanitizer
# over small shapes, a profile of decoding, and the bench. A step that fails does not stop those after it, and makes the
# exit status 1; what was not run is said, and why. The report is tests/gpu_reports/DATE-CARD.md unless named.
#
#   GPU_RUN_DRY=1     show the commands and run none; no device is needed
#   GPU_RUN_HERE=1    use the Python that is there (PYTHON, else python3) with what it has, and install nothing
#   PYTHON=…          the one to make an environment with (default: the first of python3.11 to 3.13 and python3 that can)
#   GPU_RUN_LIKE=…    the model of the bench (default: kajuma/DiffLlama-0.3B-handcut, 4.94 GB on disk while it runs)
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry=${GPU_RUN_DRY:-} here=${GPU_RUN_HERE:-$dry} like=${GPU_RUN_LIKE:-kajuma/DiffLlama-0.3B-handcut}
python=${PYTHON:-${here:+python3}}
if [[ -n $dry ]]; then
    card="no card: a dry run" report=/dev/null
else
    command -v nvidia-smi >/dev/null || { echo "no nvidia-smi: this needs a machine with a CUDA device" >&2; exit 1; }
    card=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1)
    report=${1:-tests/gpu_reports/$(date +%F)-${card//[^A-Za-z0-9]/-}.md}
    mkdir -p "$(dirname "$report")" || exit 1
fi
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failed=0

say() { printf '%s\n' "$@" | tee -a "$report"; }

not_run() { # title, why
    say "" "## $1" "" "Not run: $2."
}

run() { # title, seconds, command...: run it, and put how it ended and its last lines into the report
    local title=$1 limit=$2 code started=$SECONDS kept=${LINES_KEPT:-25}
    shift 2
    local command
    printf -v command '%q ' "$@"
    say "" "## $title" "" "\`${command//$work/\$work}\`"
    [[ -z $dry ]] || return 0
    timeout "$limit" "$@" >"$work/log" 2>&1
    code=$?
    [[ $code == 0 ]] || { failed=1; kept=200; }
    say "" "exit $code after $((SECONDS - started)) s$([[ $code != 124 ]] || echo " (its limit)")" "" '```'
    tail -n "$kept" "$work/log" | tee -a "$report"
    say '```'
}

has() { # program: whether it is here, or would be looked for
    [[ -n $dry ]] || command -v "$1" >/dev/null
}

if [[ -z $here ]]; then
    cuda=$(nvidia-smi | sed -n 's/.*CUDA Version: \([0-9]*\).*/\1/p' | head -1)
    [[ ${cuda:-12} -ge 13 ]] && cupy='cupy-cuda13x[ctk]>=14' || cupy='cupy-cuda12x[ctk]>=14'
    if [[ -z $python ]]; then
        for python in python3.11 python3.12 python3.13 python3 ""; do
            "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
        done
        [[ -n $python ]] || { echo "no python3.11 to 3.13 and no python3 is Python 3.11 or newer with venv" >&2; exit 1; }
    fi
    "$python" -m venv "$work/venv" || exit 1
    python=$work/venv/bin/python
    "$python" -m pip install -q '.[test]' "$cupy" || { echo "pip could not install the tests and $cupy" >&2; exit 1; }
fi
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

: >"$report"
say "# refdiff on $card, $(date -u +'%F %H:%M') UTC" ""
if [[ -z $dry ]]; then
    say "$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv)" ""
    say "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ', with changes')"
    say "$("$python" -c 'import cupy, numpy, sys
print("Python", sys.version.split()[0], "· NumPy", numpy.__version__, "· CuPy", cupy.__version__, "· CUDA", cupy.cuda.runtime.runtimeGetVersion())' 2>&1 | tail -1)"
    if ! "$python" -c 'from refdiff import arrays; arrays.backend("cupy")' 2>"$work/log"; then
        say "" "CuPy does not answer: $(tail -1 "$work/log")" "" "Nothing else was run."
        exit 1
    fi
fi

tests=("$python" -m pytest -p no:cacheprovider -rs)
run "kernels against their layers" 900 "${tests[@]}" tests/backends/test_cupy_device.py -k kernel
run "the model, its text and its gradients on the device" 600 "${tests[@]}" tests/backends/test_cupy_device.py -k 'not kernel'
run "the layers, with CuPy among the places" 900 "${tests[@]}" tests/layers
run "all tests" 7200 "${tests[@]}" -m ""

sanitizer=(compute-sanitizer)
if [[ -z $here ]] && ! has compute-sanitizer; then # a package has it, for CUDA 12 in other folders and not executable
    [[ ${cuda:-12} -ge 13 ]] && package=nvidia-cuda-sanitizer-api || package=nvidia-cuda-sanitizer-api-cu12
    "$python" -m pip install -q "$package" || echo "pip could not install $package" >&2
    program=$(find "$work/venv" -name compute-sanitizer -type f -size +1M | head -1)
    library=$(find "$work/venv" -name libsanitizer-collection.so | head -1)
    [[ -z $program ]] || chmod +x "$program"
    sanitizer=("${program:-compute-sanitizer}" --injection-path "${library%/*}")
fi
if has "${sanitizer[0]}"; then
    # with memory from CUDA itself: in CuPy's pool an array has no end that a tool could see
    small=("$python" -m pytest -p no:cacheprovider tests/backends/test_cupy_device.py -k small)
    for tool in memcheck racecheck synccheck initcheck; do
        LINES_KEPT=12 run "compute-sanitizer: $tool" 1800 \
            env REFDIFF_NO_POOL=1 "${sanitizer[@]}" --tool "$tool" --error-exitcode 9 "${small[@]}"
    done
else
    not_run "compute-sanitizer" "it is not on this machine (it comes with CUDA's toolkit)"
fi

# Host synchronisations stand in the table of calls: one small copy a token, and none a layer.
if has nsys; then
    LINES_KEPT=60 run "profile of 64 decoded tokens" 900 nsys profile --output "$work/profile" --force-overwrite true \
        --stats true --trace cuda "$python" -m refdiff generate --backend cupy -m bundled -p Once -n 64 --temp 0 --quiet
else
    not_run "profile of decoding" "nsys is not on this machine"
fi

# after the tests, which are to run as with CuPy alone
[[ -n $here ]] || "$python" -m pip install -q 'torch>=2.6' 'transformers>=5.24,<6' || echo "pip could not install torch" >&2
against=(--against transformers)
if [[ -z $dry ]] && ! "$python" -c 'import torch, transformers; assert torch.cuda.is_available()' 2>/dev/null; then
    not_run "transformers beside refdiff" "there is no torch that sees the device, so that the bench is of refdiff alone"
    against=()
fi
bench=("$python" -m refdiff bench --backend cupy)
for dtype in float32 float16 bfloat16; do
    LINES_KEPT=80 run "bench in $dtype" 3000 "${bench[@]}" --dtype "$dtype" --like "$like" --folder "$work/$dtype" \
        --markdown ${against[@]+"${against[@]}"}
    rm -rf "${work:?}/$dtype"
done
LINES_KEPT=40 run "bench of training" 1800 "${bench[@]}" --train --markdown ${against[@]+"${against[@]}"}

[[ -z $dry ]] || { say "" "Nothing was run: these are the commands."; exit 0; }
say "" "$([[ $failed == 0 ]] && echo 'All that was run passed.' || echo 'Something above failed.')"
echo "report: $report" >&2
exit "$failed"
