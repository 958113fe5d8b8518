#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one command: bench/gpu_suite.sh OUTDIR [COMMIT]
#
# Builds for the GPU at hand, runs the GPU tests and a subset of them under compute-sanitizer, then the benchmarks
# against whichever rivals are installed. OUTDIR gets mamba2_verify.json (bench/gpu_results.py has the schema) and
# .txt, mamba1_verify.json and .txt, fold_every_W.json (one case at other W), compare.txt and .png, targets.txt,
# missing.txt (rows not measured), summary.txt and a log per stage. A stage that fails or outlasts its limit is reported and the next one runs; the exit
# status is 0 only if all passed. After LLAMBA_SUITE_SECONDS (480) only the reports are still written, which takes
# less than 100 s more. COMMIT names the version where there is no git. Needed: torch, pytest, ninja, nvcc. PYTHON=...
# chooses the Python.
set -uo pipefail

python=${PYTHON:-python3}
deadline=${LLAMBA_SUITE_SECONDS:-480}
pytest="-m pytest -q -p no:cacheprovider"
tests="$pytest tests/test_cuda_device.py tests/test_cursor.py tests/test_mamba2_*.py"
tests="$tests tests/test_mamba1_verify.py tests/test_mamba1_device.py tests/test_gpu_bench.py"
tests="$tests tests/test_snapshot_triton.py --device cuda"
sanitized="$pytest tests/test_mamba2_verify.py tests/test_mamba2_matmul.py tests/test_mamba1_verify.py --device cuda"
all="chain"
few="chain and (base or 128 or bf16-chain) and not of_64" # for the tools that watch every access: they are slower
bench="$pytest bench/bench_mamba2_verify_gpu.py --benchmark --resume"

if [ $# -lt 1 ]; then
    echo "usage: bench/gpu_suite.sh OUTDIR [COMMIT]" >&2
    exit 2
fi
mkdir -p "$1" || exit 2
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/.." || exit 2
commit=${2:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
results=$out/mamba2_verify.json
rm -f "$results" "$out"/mamba1_verify.* "$out"/fold_every_*.json "$out/summary.txt"
failed=0
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # the package is built in place, not installed
export PYTHONUNBUFFERED=1 # a stage that is killed has said what it had to say

report() { # name, status, seconds
    case $2 in
        0) verdict=passed ;;
        124 | 137) verdict="TIMED OUT" ;;
        skipped) verdict=skipped ;;
        late) verdict="NOT RUN (too late)" ;;
        *) verdict="FAILED (status $2)" ;;
    esac
    [ "$verdict" = passed ] || [ "$verdict" = skipped ] || failed=1
    printf '%-28s %-20s %5s s\n' "$1" "$verdict" "$3" | tee -a "$out/summary.txt"
}

within() { # limit in seconds: that, or what is left until the deadline
    local left=$((deadline - SECONDS))
    echo $((left < $1 ? left : $1))
}

stage() { # name, limit in seconds, command...: its output goes to OUTDIR/name.log
    local name=$1 limit start=$SECONDS status
    limit=$(within "$2")
    shift 2
    [ "$limit" -gt 0 ] || { report "$name" late 0; return 1; }
    timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    report "$name" "$status" $((SECONDS - start))
    [ "$status" = 0 ] || tail -n 5 "$out/$name.log" | sed 's/^/    /'
    return "$status"
}

contender() { # name, limit in seconds, pytest's -k: again from the next row after one that broke the device
    local name=$1 limit start=$SECONDS status=77 attempt left
    limit=$(within "$2")
    [ "$limit" -gt 0 ] || { report "bench-$name" late 0; return; }
    : >"$out/bench-$name.log"
    for attempt in 1 2 3 4 5 6; do
        left=$((limit - SECONDS + start))
        [ "$left" -gt 0 ] || status=124
        [ "$status" = 77 ] || break
        timeout -k 10 "$left" "$python" $bench --results "$results" --commit "$commit" -k "$3" \
            >>"$out/bench-$name.log" 2>&1
        status=$?
    done
    report "bench-$name" "$status" $((SECONDS - start))
    [ "$status" = 0 ] || grep -E "^(FAILED|ERROR)|Exit" "$out/bench-$name.log" | head -n 5 | sed 's/^/    /'
}

arch=$("$python" -c 'import torch; a, b = torch.cuda.get_device_capability(); print(f"{a}{b}" + "a" * (a == 9))') || {
    echo "gpu_suite: torch must see a CUDA device; got none" | tee -a "$out/summary.txt"
    exit 1
}
gpu=$("$python" -c 'import torch; print(torch.cuda.get_device_name())')
echo "$gpu, sm_$arch, $commit" | tee -a "$out/summary.txt"

stage build 130 env LLAMBA_CUDA=1 LLAMBA_CUDA_ARCHS="$arch" "$python" setup.py -q build_ext --inplace
stage env 60 "$python" -c 'from llamba_kernels.env import describe
for name, value in describe().items(): print(name, value, sep=": ")'

sanitize() { # tool, limit in seconds, pytest's -k: without PyTorch's cache, every tensor has bounds of its own
    stage "$1" "$2" env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$1" "${only[@]}" \
        --error-exitcode 9 "$python" $sanitized -k "$3"
}

# Correctness, all at once: nothing is timed here. What fails in a subshell is found in the summary.
checks() {
    stage tests 130 "$python" $tests &
    stage compile-peers 130 "$python" bench/gpu_compile_peers.py &
    if command -v compute-sanitizer >/dev/null; then
        only=() # PyTorch's own kernels are not the question
        for flag in --kernel-regex --kernel-name; do # before CUDA 12, and since
            compute-sanitizer --help 2>/dev/null | grep -c -e "^ *$flag " >/dev/null && only=("$flag" kns=llamba)
        done
        sanitize memcheck 130 "$all" &
        sanitize synccheck 130 "$all" &
        sanitize racecheck 150 "$few" &
        sanitize initcheck 150 "$few" &
    else
        report compute-sanitizer skipped 0
    fi
    wait
}
checks
grep -q -E 'FAILED|TIMED OUT|NOT RUN' "$out/summary.txt" && failed=1

# A row takes about half a second, the snapshot's with its search twice that; a rival may have to compile.
contender recurrent 100 recurrent
contender matmul 100 matmul
contender snapshot 100 snapshot
contender flashinfer 160 flashinfer
contender mamba_ssm 70 mamba_ssm

for fold_every in 2 8; do
    stage "bench-fold-every-$fold_every" 40 "$python" $bench --commit "$commit" --fold-every "$fold_every" \
        --results "$out/fold_every_$fold_every.json" -k "(recurrent or matmul) and h128 and b64 and k4 and not fp16"
done

stage bench-mamba1 60 "$python" $pytest bench/bench_mamba1_verify_gpu.py --benchmark --commit "$commit" \
    --results "$out/mamba1_verify.json"
[ -e "$out/mamba1_verify.json" ] && "$python" bench/gpu_results.py "$out/mamba1_verify.json" >"$out/mamba1_verify.txt"

deadline=$((SECONDS + 1000)) # the reports are written whatever the time
stage table 15 "$python" bench/gpu_results.py "$results"; cp "$out/table.log" "$out/mamba2_verify.txt"
stage targets 15 "$python" bench/gpu_targets.py "$results"; cp "$out/targets.log" "$out/targets.txt"
stage compare 30 "$python" bench/compare.py "$results" --text "$out/compare.txt" --figure "$out/compare.png"
stage missing 25 "$python" bench/gpu_rows.py "$results"; cp "$out/missing.log" "$out/missing.txt"
echo "took $SECONDS s" | tee -a "$out/summary.txt"
exit "$failed"
