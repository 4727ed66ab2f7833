#!/usr/bin/env bash
# Everything that is measured on one NVIDIA GPU, in one command and at most 8 minutes.
#   runs/gpu_bench.sh                       into runs/out/gpu
#   OUT=DIR runs/gpu_bench.sh               into DIR
#   NANOCHAT=path runs/gpu_bench.sh         with a program that is built already
#   runs/gpu_bench.sh --only a,d,f          some steps, by letter or by name; --list names them
#   MINUTES=4 runs/gpu_bench.sh             less time: steps that do not fit are left out
#   PYTHON=path                             the Python that has torch, for the peers (python3)
# Out: $OUT/gpu_bench.md, with predictions beside measurements; gpu_bench.json, the same and more;
# gpu_bench.log, what the steps printed. They are written anew after every step. A step that fails
# or runs out of time does not stop the others.
set -uo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
# A path that is given is seen from here.
[ -z "${NANOCHAT:-}" ] || NANOCHAT=$(realpath "$NANOCHAT") || exit 1
cd "$root" || exit 1
# CUDA's own tools are often beside the path.
export PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin

out=${OUT:-runs/out/gpu}
python=${PYTHON:-python3}
minutes=${MINUTES:-8}
only=""
list=no
while [ $# -gt 0 ]; do
    case $1 in
        --only) only=${2:?--only wants letters or names with commas}; shift 2 ;;
        --only=*) only=${1#*=}; shift ;;
        --list) list=yes; shift ;;
        *) echo "unknown: $1 (see the head of $0)" >&2; exit 2 ;;
    esac
done

# The sizes that upstream trains with, and the batches of the published table.
sizes="--head-dim 128 --window-pattern SSSL --max-seq-len 2048 --vocab-size 32768"
batches="1,4,8,16,32,64,93"
prompt="--prompts 50 --new-tokens 200"

# letter | name | seconds at most | command, in bash. A step's figures are the JSON object in its last
# line of standard output, or in the file $parts/NAME.json where the command writes one. Steps are
# run in this order. $nanochat is the program.
steps() {
    cat <<STEPS
a | card            | 15  | nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv,noheader
b | binary          | 900 | binary
c | doctor          | 30  | \$nanochat doctor
d | kernels         | 90  | \$nanochat bench gpu
f | train-d12       | 40  | \$nanochat bench train --device cuda --depth 12 $sizes --device-batch-size 32 --steps 15
f | train-d20       | 60  | \$nanochat bench train --device cuda --depth 20 $sizes --device-batch-size 16 --steps 10
f | train-d12-524k  | 40  | \$nanochat bench train --device cuda --depth 12 $sizes --device-batch-size 32 --total-batch-size 524288 --steps 4
f | train-d20-524k  | 60  | \$nanochat bench train --device cuda --depth 20 $sizes --device-batch-size 16 --total-batch-size 524288 --steps 3
g | infer-d12       | 60  | \$nanochat bench infer --device cuda --depth 12 $sizes --batch-sizes $batches $prompt --budget 1
g | infer-seed-d12  | 45  | \$nanochat bench infer --device cuda --model seed-d12 --max-seq-len 2048 --batch-sizes $batches $prompt --budget 0.5
g | batch-size      | 30  | \$nanochat bench batch-size --device cuda --depth 12 $sizes --total-batch-size 524288 --sweep --rounds 2 --no-batch-size-cache
e | sanitizer       | 60  | compute-sanitizer --tool memcheck --report-api-errors no --error-exitcode 9 \$nanochat bench gpu --small
h | torch-infer     | 100 | torch gpu_torch_infer.py --depth 12 $prompt --batch-sizes 1,8,32,93 --seconds 85
h | torch-train-d12 | 140 | torch gpu_torch_train.py --depth 12 --seconds 120
h | torch-train-d20 | 170 | torch gpu_torch_train.py --depth 20 --seconds 150
STEPS
}

if [ $list = yes ]; then steps; exit 0; fi

mkdir -p "$out" && out=$(cd "$out" && pwd) || exit 1
parts=$(mktemp -d)
trap 'rm -rf "$parts"' EXIT
nanochat=${NANOCHAT:-$root/target/release/nanochat}
table=$parts/steps.tsv
: >"$table"

# The program: as given, or built.
binary() {
    if [ -z "${NANOCHAT:-}" ]; then
        command -v cargo >/dev/null || { [ -x "$nanochat" ] && echo "no cargo: $nanochat as it is"; } ||
            { echo "no cargo: give NANOCHAT=path" >&2; return 1; }
        ! command -v cargo >/dev/null || cargo build --release --locked --package nanochat || return 1
    fi
    [ -x "$nanochat" ] || { echo "$nanochat is not there" >&2; return 1; }
    "$nanochat" --version
    sha256sum "$nanochat"
}

# A peer, where there is a torch; it looks for the GPU itself, as importing torch takes seconds.
torch() {
    "$python" -c 'import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))' ||
        { echo "left out: $python has no torch"; return 77; }
    exec "$python" "bench/peers/$1" "${@:2}" --json "$parts/$name.json"
}

# A function that `timeout` can end, with everything it started.
export -f binary torch
export parts nanochat python NANOCHAT="${NANOCHAT:-}"

wanted() {
    [ -z "$only" ] || [[ ",$only," == *",$1,"* ]] || [[ ",$only," == *",$2,"* ]]
}

summary() {
    command -v "$python" >/dev/null || { cp "$parts"/* "$out"/; return; }
    "$python" bench/peers/gpu_summary.py --parts "$parts" --out "$out"
}

# Building does not count: how long it takes says nothing about the GPU.
start=$SECONDS
while IFS='|' read -r letter name limit command; do
    letter=${letter// /} name=${name// /} limit=${limit// /} command=${command# }
    wanted "$letter" "$name" || continue
    left=$((60 * minutes - (SECONDS - start)))
    if [ "$letter" = b ]; then left=$limit; fi
    if [ "$left" -lt 10 ]; then
        printf '%s\t%s\t-\t0\tno time left\n' "$letter" "$name" >>"$table"
        printf '\n== %s %s: left out, no time left\n' "$letter" "$name"
        continue
    fi
    printf '\n== %s %s: %s\n' "$letter" "$name" "$command"
    printf '%s\n' "$command" >"$parts/$name.command"
    before=$(date +%s.%N)
    name=$name timeout -k 5 "$((limit < left ? limit : left))" bash -c "$command" \
        >"$parts/$name.out" 2>"$parts/$name.err" </dev/null
    rc=$?
    took=$(awk -v a="$before" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')
    if [ "$letter" = b ]; then start=$((start + ${took%.*})); fi
    case $rc in
        0) note=ok ;;
        77) note="left out" ;;
        124 | 137) note="out of time" ;;
        127) note="not there" ;;
        *) note="failed" ;;
    esac
    printf '%s\t%s\t%s\t%s\t%s\n' "$letter" "$name" "$rc" "$took" "$note" >>"$table"
    # Long lines are JSON: they are in the files.
    tail -n 40 "$parts/$name.out" | cut -c 1-200
    [ $rc = 0 ] || tail -n 15 "$parts/$name.err" | cut -c 1-300
    printf -- '-- %s: %s (%s), %s s\n' "$name" "$note" "$rc" "$took"
    summary >/dev/null || echo "no summary" >&2
done < <(steps)

printf '\n== steps\n'
awk -F'\t' '{ printf "%s  %-16s rc %-4s %7.1f s  %s\n", $1, $2, $3, $4, $5 }' "$table"
printf '\n'
summary
echo "$((SECONDS - start)) s, the build not counted; $out/gpu_bench.md, .json and .log"
