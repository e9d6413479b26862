#!/usr/bin/env bash
# Check and measure a GPU in one command, 25 minutes at most; needs CUDA, the project's requirements, 5 GB of disk:
#
#     bash bench/gpu.sh
#     DEVICE=cpu WEIGHTS=weights/toy bash bench/gpu.sh    the same steps on a CPU at a small size, to see that they run
#
# Every step has a limit and a log of its own, and one that fails stops no other. bench/gpu.py makes gpu_<name>.json and
# the table out of what they found. The last line says what failed; so does the exit code.
set -u
cd "$(dirname "$0")/.." || exit 2
DEVICE=${DEVICE:-cuda} PYTHON=${PYTHON:-python} OUT=${OUT:-bench} MINUTE=${MINUTE:-60}
WEIGHTS=${WEIGHTS:-${TMPDIR:-/tmp}/featviz_bench_sd14}
WORK=$(mktemp -d)
ALL=1500 STEPS=0 FAILED=""

step() {                                        # name, most seconds, command
    local name=$1 limit=$2 code began=$SECONDS left=$((ALL - 60 - SECONDS))     # 60: the report comes after all
    shift 2
    [ "$limit" -gt "$left" ] && limit=$left
    if [ "$limit" -lt 1 ]; then
        echo "no time is left" >"$WORK/$name.log"
        code=124
    else
        timeout --kill-after=10 "$limit" "$@" >"$WORK/$name.log" 2>&1
        code=$?
    fi
    STEPS=$((STEPS + 1))
    printf '%s\t%s\t%s\n' "$name" $((SECONDS - began)) "$code" >>"$WORK/steps.tsv"
    if [ "$code" -ne 0 ]; then
        FAILED="$FAILED${FAILED:+, }$name"
        echo "$name: failed with $code after $((SECONDS - began)) s: $(tail -n 1 "$WORK/$name.log")"
    else
        echo "$name: $((SECONDS - began)) s"
    fi
}

minute() {                                      # a command that may be stopped after a minute, as with Ctrl-C
    timeout --preserve-status --kill-after=20 --signal=INT "$MINUTE" "$@"
    local code=$?
    [ "$code" -eq 130 ] && return 0
    return "$code"
}
export -f minute
export MINUTE

card=$DEVICE quick=()
[ "$DEVICE" = cuda ] && card=cuda:0             # for two processes that share it
[ "$DEVICE" = cpu ] && quick=(--quick)
one=(--weights "$WEIGHTS" --device "$DEVICE")
ascent=("${one[@]}" --feature 0 --timestep 361 --prior noise --no-finish)

step weights 300 "$PYTHON" -m bench.gpu weights --weights "$WEIGHTS"
step parity 300 "$PYTHON" -m bench.gpu parity "${one[@]}" --work "$WORK"
step speed 540 "$PYTHON" bench/speed.py --full --only step "${quick[@]}" --folder "$WEIGHTS" --device "$DEVICE" \
    --out "$WORK"
step batches 240 "$PYTHON" -m bench.gpu batches "${one[@]}" "${quick[@]}" --work "$WORK"
step picture 180 "$PYTHON" featviz.py "${ascent[@]}" --seed 1 --out "$WORK/picture"
step check 180 "$PYTHON" featviz.py "${ascent[@]}" --seed 1 --check --out "$WORK/picture"
step torchrun 180 "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node 2 featviz.py \
    --weights "$WEIGHTS" --device "$card" --feature 0 1 --timestep 361 --prior noise --no-finish --num-steps 10 \
    --seed 1 --out "$WORK/two"
step both 20 "$PYTHON" -m bench.gpu both --work "$WORK"
step capture 120 bash -c 'minute "$@"' capture "$PYTHON" -m activity capture "${one[@]}" --out "$WORK/capture"
step probe 120 bash -c 'minute "$@"' probe "$PYTHON" featviz.py "${one[@]}" --feature 0 --timestep auto --seed 1 \
    --no-finish --out "$WORK/probe"
"$PYTHON" -m bench.gpu report --device "$DEVICE" --work "$WORK" --out "$OUT" || FAILED="$FAILED${FAILED:+, }report"

if [ -n "$FAILED" ]; then
    echo "gpu.sh: failed: $FAILED; logs in $WORK"
    exit 1
fi
rm -rf "$WORK"
echo "gpu.sh: all $STEPS steps passed"
