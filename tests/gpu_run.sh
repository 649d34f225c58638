#!/usr/bin/env bash
# Everything about CUDA that needs a device, by one command on a machine with one: bash tests/gpu_run.sh [REPORT]
#
# An environment with refdiff, its tests and a CuPy of the driver's CUDA; then, each with its own time and result in one
# report: the kernels against their layers, the model, the layers with CuPy among their places, compute-sanitizer over
# small shapes, a profile of decoding, the bench, and the whole test suite. A step
# that fails does not stop those after it, and makes the exit status 1; what was not run is said, and why. The report is
# tests/gpu_reports/DATE-CARD.md unless named; while a step runs, REPORT.log is what it has said so far.
#
#   GPU_RUN_ONLY=…    the steps to run, of kernels,model,layers,sanitizer,profile,bench,train,tests; sanitizer:memcheck
#                     is one tool of four, bench:bfloat16 one type of three. A report that is there is added to
#   GPU_RUN_ROWS=…    the rows of the bench, where time is short, such as decode:128,prefill:2048
#   GPU_RUN_LIKE=…    the model of the bench (default: kajuma/DiffLlama-0.3B-handcut, 4.94 GB on disk while it runs)
#   GPU_RUN_DRY=1     show the commands and run none; no device is needed
#   PYTHON=…          makes the environment (default: the first of python3.11 to 3.13 and python3 that can)
#   GPU_RUN_HERE=1    use the Python that is there (PYTHON, else python3) with what it has, and install nothing
#
# A machine that reaches no index needs, for GPU_RUN_HERE=1, a CuPy of its CUDA, cupy>=14, what refdiff needs:
#   array-api-compat huggingface_hub jinja2 ml_dtypes numpy safetensors threadpoolctl tokenizers tqdm
# and what its tests need:
#   array-api-strict hypothesis matplotlib mpmath pytest pytest-xdist
# Beside these compute-sanitizer, nsys for the profile, and torch and transformers>=5.24 to measure against.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

dry=${GPU_RUN_DRY:-} here=${GPU_RUN_HERE:-$dry} like=${GPU_RUN_LIKE:-kajuma/DiffLlama-0.3B-handcut}
python=${PYTHON:-${here:+python3}}

tools=(memcheck racecheck synccheck initcheck) types=(float32 float16 bfloat16)
steps=(kernels model layers sanitizer profile bench train tests "${tools[@]/#/sanitizer:}" "${types[@]/#/bench:}")
only=${GPU_RUN_ONLY:-}
only=${only// /}
for step in ${only//,/ }; do
    [[ " ${steps[*]} " == *" $step "* ]] || { echo "GPU_RUN_ONLY: $step is none of ${steps[*]}" >&2; exit 2; }
done

wanted() { # step [part]: whether it is to be run, or without a part named any part of it
    [[ -z $only || ,$only, == *,$1,* || ,$only, == *,$1:${2:-*},* ]]
}

work=$(mktemp -d) || exit 1
card="no card"
if [[ -n $dry ]]; then
    card="no card: a dry run" report=$work/report.md
else
    found=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null) && [[ -n $found ]] && card=${found%%$'\n'*}
    report=${1:-tests/gpu_reports/$(date +%F)-${card//[^A-Za-z0-9]/-}.md}
    mkdir -p "$(dirname "$report")" || exit 1
fi
log=$report.log
[[ -n $only ]] || rm -f "$report"
: >>"$report" || exit 1
trap 'rm -rf "$work" "$log"' EXIT
failed=0 waited="" started=0

say() { printf '%s\n' "$@" | tee -a "$report"; }

stop() { # why: nothing can be run
    say "" "Stopped: $1." "" "Nothing else was run."
    echo "$1" >&2
    exit 1
}

not_run() { # title, why
    say "" "## $1" "" "Not run: $2."
}

ended() { # how, lines: how what ran ended, and so many of its last lines
    say "" "$1" "" '```'
    tail -n "$2" "$log" | tee -a "$report"
    say '```'
}

# shellcheck disable=SC2329 # by the trap below
interrupted() { # the bench shows what it has measured, and pytest what has failed, if they are given the time
    trap '' TERM INT HUP
    if [[ ${!:-} != "$waited" ]]; then # $! is set with the fork, and a variable of ours a moment later
        kill -INT "$!"
        wait "$!"
        ended "interrupted after $((SECONDS - started)) s" 200
    fi
    say "" "A signal ended the run here; nothing else was run."
    exit 143
}
trap interrupted TERM INT HUP

logged() { # seconds, command...: run it beside this script, which hears signals meanwhile, with its words into the log
    started=$SECONDS
    set -m # else the shell would have it ignore an interrupt
    timeout --signal=INT --kill-after=10 "$@" >"$log" 2>&1 </dev/null &
    set +m
    wait "$!"
    local code=$?
    waited=$!
    return "$code"
}

run() { # title, seconds, command...: run it, and put how it ended and its last lines into the report
    local title=$1 limit=$2 code how command
    shift 2
    printf -v command '%q ' "$@"
    say "" "## $title" "" "\`${command//$work/\$work}\`"
    [[ -z $dry ]] || return 0
    logged "$limit" "$@"
    code=$?
    how="exit $code after $((SECONDS - started)) s"
    case $code in
        0) ended "$how" "${LINES_KEPT:-25}"; return ;;
        124 | 137) how+=" (its limit)" ;;
    esac
    failed=1
    ended "$how" 200
}

has() { # program: whether it is here, or would be looked for
    [[ -n $dry ]] || command -v "$1" >/dev/null
}

refusal() { # code: what Python says last where it fails; nothing where it does not
    [[ -n $dry ]] || "$python" -c "$1" >"$log" 2>&1 || echo "exit $?: $(tail -n 1 "$log")"
}

versions() { # what is installed, in a line; where that cannot be told, the last line of why
    "$python" -c 'import cupy, numpy, sys
from importlib.metadata import distributions
of = ("nvidia-", "torch", "transformers")
libraries = {f"{d.name} {d.version}" for d in distributions() if (d.name or "").startswith(of)}
print(f"Python {sys.version.split()[0]}", f"NumPy {numpy.__version__}", f"CuPy {cupy.__version__}",
      f"CUDA {cupy.cuda.runtime.runtimeGetVersion()}", *sorted(libraries), sep=" · ")' 2>&1 | tail -n 1
}

say "# refdiff on $card, $(date -u +'%F %H:%M') UTC${only:+: $only}" ""
if [[ -z $dry ]]; then
    [[ $card != "no card" ]] || stop "no nvidia-smi that names a card: this needs a machine with a CUDA device"
    say "$(nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm --format=csv)" ""
    changed=$(git diff --quiet HEAD 2>/dev/null || echo ", with changes")
    say "commit $(git rev-parse --short HEAD 2>/dev/null || echo unknown)$changed"
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1 # whose words would be pip's last
if [[ -z $here ]]; then
    without="; with what is there already: GPU_RUN_HERE=1"
    # newer ones say "CUDA UMD Version"
    cuda=$(nvidia-smi | sed -nE 's/.*CUDA (UMD )?Version: *([0-9]+).*/\2/p' | head -1)
    [[ ${cuda:-12} -ge 13 ]] && cupy='cupy-cuda13x[ctk]>=14' || cupy='cupy-cuda12x[ctk]>=14'
    if [[ -z $python ]]; then
        for python in python3.11 python3.12 python3.13 python3 ""; do
            "$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
        done
        [[ -n $python ]] || stop "no python3.11 to 3.13 and no python3 is Python 3.11 or newer with venv$without"
    fi
    logged 600 "$python" -m venv "$work/venv" || stop "$python makes no environment ($(tail -n 1 "$log"))$without"
    python=$work/venv/bin/python
    logged 1800 "$python" -m pip install -q '.[test]' "$cupy" ||
        stop "pip could not install the tests and $cupy ($(tail -n 1 "$log"))$without"
fi
# a test that would be left out without a device fails (tests/cuda/there.py)
export REFDIFF_NEED_CUDA=1 OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}

if [[ -z $dry ]]; then
    say "$(versions)"
    why=$(refusal 'from refdiff import arrays; arrays.backend("cupy")')
    [[ -z $why ]] || stop "CuPy does not answer: $why"
fi

tests=("$python" -m pytest -p no:cacheprovider -rs)
on_device=tests/backends/cupy/test_on_a_gpu.py
! wanted kernels || run "kernels against their layers" 900 "${tests[@]}" "$on_device" -k kernel
! wanted model || run "the model, its text and its gradients on the device" 600 "${tests[@]}" "$on_device" -k 'not kernel'
! wanted layers || run "the layers, with CuPy among the places" 900 "${tests[@]}" tests/layers

sanitizer=(compute-sanitizer)
if wanted sanitizer && [[ -z $here ]] && ! has compute-sanitizer; then
    # a package has it, for CUDA 12 in other folders and not executable
    [[ ${cuda:-12} -ge 13 ]] && package=nvidia-cuda-sanitizer-api || package=nvidia-cuda-sanitizer-api-cu12
    logged 600 "$python" -m pip install -q "$package" || say "" "pip could not install $package: $(tail -n 1 "$log")"
    program=$(find "$work/venv" -name compute-sanitizer -type f -size +1M | head -1)
    library=$(find "$work/venv" -name libsanitizer-collection.so | head -1)
    [[ -z $program ]] || chmod +x "$program"
    sanitizer=("${program:-compute-sanitizer}" --injection-path "${library%/*}")
fi
if wanted sanitizer && ! has "${sanitizer[0]}"; then
    not_run "compute-sanitizer" "it is not on this machine (it comes with CUDA's toolkit)"
elif wanted sanitizer; then
    # with memory from CUDA itself: in CuPy's pool an array has no end that a tool could see
    small=("$python" -m pytest -p no:cacheprovider "$on_device" -k small)
    # racecheck looks into the shared memory of one kernel at a time, so that others' kernels, CuPy's and cuBLAS's, can be
    # left out. From initcheck they cannot: of what they fill, it would say that nothing did
    ours=()
    if [[ -n $dry || $("${sanitizer[0]}" --help 2>/dev/null) == *"--kernel-name "* ]]; then
        for kernel in $(sed -nE 's/.*__global__ void (__launch_bounds__\([^)]*\) )?(\w+)\(.*/\2/p' \
            refdiff/backends/cupy/cuda/*.cu); do
            ours+=(--kernel-name "kne=$kernel")
        done
    fi
    for tool in "${tools[@]}"; do
        wanted sanitizer "$tool" || continue
        [[ $tool == racecheck ]] && only_ours=(${ours[@]+"${ours[@]}"}) || only_ours=()
        LINES_KEPT=12 run "compute-sanitizer: $tool" 1800 env REFDIFF_NO_POOL=1 "${sanitizer[@]}" --tool "$tool" \
            ${only_ours[@]+"${only_ours[@]}"} --error-exitcode 9 "${small[@]}"
    done
fi

# after the tests of the kernels, which are to run as with CuPy alone
no_torch="" no_peer="" against=(--against transformers)
if wanted bench || wanted train; then
    if [[ -z $here ]]; then
        # from 2.11 on it is built for CUDA 13 unless another index is asked, and sees no device by a driver of 12
        [[ ${cuda:-12} -ge 13 ]] && torch='torch>=2.6' || torch='torch>=2.6,<2.11'
        logged 1800 "$python" -m pip install -q "$torch" 'transformers>=5.24,<6' ||
            say "" "pip could not install torch and transformers: $(tail -n 1 "$log")"
        say "" "From here on, as torch may have replaced libraries of CUDA's:" "" "$(versions)"
    fi
    no_torch=$(refusal 'import sys, torch
torch.cuda.is_available() or sys.exit("torch sees no device")')
    no_peer=${no_torch:-$(refusal 'import sys, transformers
version = transformers.__version__
(5, 24) <= tuple(map(int, version.split(".")[:2])) < (6,) or sys.exit(f"the bench is of 5.24 to 5, not {version}")')}
fi

if wanted profile; then
    if has nsys; then
        LINES_KEPT=150 run "profile of 64 decoded tokens" 900 \
            nsys profile --output "$work/profile" --force-overwrite true --stats true --trace cuda \
            "$python" -m refdiff generate --backend cupy -m bundled -p Once -n 64 --temp 0 --quiet
    else
        not_run "profile of 64 decoded tokens" "nsys is not on this machine (Nsight Systems has it)"
    fi
fi

if [[ -n $no_peer ]] && { wanted bench || wanted train; }; then
    not_run "transformers beside refdiff" "$no_peer; the bench is of refdiff alone"
    against=()
fi
bench=("$python" -m refdiff bench --backend cupy --markdown ${against[@]+"${against[@]}"})
for type in "${types[@]}"; do
    wanted bench "$type" || continue
    LINES_KEPT=80 run "bench in $type" 3000 "${bench[@]}" --dtype "$type" --like "$like" \
        ${GPU_RUN_ROWS:+--rows "$GPU_RUN_ROWS"}
done
! wanted train || LINES_KEPT=40 run "bench of training" 1800 "${bench[@]}" --rows train:3m,train:30m

# last, because they take longest
if wanted tests; then
    all=("${tests[@]}" -m "")
    # a process for each core, which computes on one thread (tests/conftest.py); each has the card open, and room there
    [[ -n $(refusal 'import xdist') ]] || all=(env -u OMP_NUM_THREADS "${all[@]}" -n auto --maxprocesses 8)
    run "all tests" 7200 "${all[@]}"
fi

[[ -z $dry ]] || { say "" "Nothing was run: these are the commands."; exit 0; }
left=$(grep -cE '^(Not run|not measured): ' "$report")
say "" "Not run, or not measured: $left of the above." ""
say "$([[ $failed == 0 ]] && echo 'All that was run passed.' || echo 'Something above failed.')"
echo "report: $report" >&2
exit "$failed"
