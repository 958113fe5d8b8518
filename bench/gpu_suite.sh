#!/usr/bin/env bash
# Everything that needs an NVIDIA GPU, in one command: bench/gpu_suite.sh OUTDIR [COMMIT]
#
# Builds for the GPU at hand, runs the GPU tests and a subset of them under compute-sanitizer, then the benchmarks
# against whichever rivals are installed. OUTDIR gets mamba2_verify.json (bench/gpu_results.py has the schema) and
# .txt, fold_every_W.json (one case at other W), compare.txt and .png, targets.txt, summary.txt and a log per stage. A
# stage that fails or outlasts its limit is reported and the next one runs; the exit status is 0 only if all passed.
# Under 8 minutes on 16 cores. COMMIT names the version where there is no git. Needed: torch, pytest, ninja, nvcc.
# PYTHON=... chooses the Python.
set -uo pipefail

python=${PYTHON:-python3}
pytest="-m pytest -q -p no:cacheprovider"
tests="$pytest tests/test_cuda_device.py tests/test_cursor.py tests/test_mamba2_*.py tests/test_gpu_bench.py tests/test_snapshot_triton.py --device cuda"
sanitized="$pytest tests/test_mamba2_verify.py tests/test_mamba2_matmul.py --device cuda -k chain"
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
rm -f "$results" "$out"/fold_every_*.json "$out/summary.txt"
failed=0
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} # the package is built in place, not installed
export PYTHONUNBUFFERED=1 # a stage that is killed has said what it had to say

report() { # name, status, seconds
    case $2 in
        0) verdict=passed ;;
        124 | 137) verdict="TIMED OUT" ;;
        skipped) verdict=skipped ;;
        *) verdict="FAILED (status $2)" ;;
    esac
    [ "$verdict" = passed ] || [ "$verdict" = skipped ] || failed=1
    printf '%-28s %-20s %5s s\n' "$1" "$verdict" "$3" | tee -a "$out/summary.txt"
}

stage() { # name, limit in seconds, command...: its output goes to OUTDIR/name.log
    local name=$1 limit=$2 start=$SECONDS status
    shift 2
    timeout -k 10 "$limit" "$@" >"$out/$name.log" 2>&1
    status=$?
    report "$name" "$status" $((SECONDS - start))
    [ "$status" = 0 ] || tail -n 5 "$out/$name.log" | sed 's/^/    /'
    return "$status"
}

contender() { # name, limit in seconds, pytest's -k: again from the next row after one that broke the device
    local name=$1 limit=$2 start=$SECONDS status=77 attempt left
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

# Correctness, all at once: nothing is timed here. Subshells report through files of their own.
checks() {
    stage tests 130 "$python" $tests &
    stage compile-peers 130 "$python" bench/gpu_compile_peers.py &
    if command -v compute-sanitizer >/dev/null; then
        # PyTorch's own kernels are not the question; without its cache, every tensor has bounds of its own.
        only=()
        for flag in --kernel-regex --kernel-name; do # before CUDA 12, and since
            compute-sanitizer --help 2>/dev/null | grep -c -e "^ *$flag " >/dev/null && only=("$flag" kns=llamba)
        done
        for tool in memcheck racecheck initcheck synccheck; do
            stage "$tool" 130 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" "${only[@]}" \
                --error-exitcode 9 "$python" $sanitized &
        done
    else
        report compute-sanitizer skipped 0
    fi
    wait
}
checks
grep -q -E 'FAILED|TIMED OUT' "$out/summary.txt" && failed=1

contender recurrent 70 recurrent
contender matmul 70 matmul
contender snapshot 60 snapshot
contender mamba_ssm 30 mamba_ssm
contender flashinfer 120 flashinfer

for fold_every in 2 8; do
    stage "bench-fold-every-$fold_every" 30 "$python" $bench --commit "$commit" --fold-every "$fold_every" \
        --results "$out/fold_every_$fold_every.json" -k "(recurrent or matmul) and h128 and b64 and k4 and not fp16"
done

stage table 30 "$python" bench/gpu_results.py "$results"; cp "$out/table.log" "$out/mamba2_verify.txt"
stage targets 30 "$python" bench/gpu_targets.py "$results"; cp "$out/targets.log" "$out/targets.txt"
stage compare 60 "$python" bench/compare.py "$results" --text "$out/compare.txt" --figure "$out/compare.png"
echo "took $SECONDS s" | tee -a "$out/summary.txt"
exit "$failed"
