#!/usr/bin/env bash
# A base model and a chat model on the 4 GPUs of one machine, one rank each. Run it again after an
# interruption: every stage goes on where it stopped; with SUPERVISE=1 it does so by itself.
#   runs/speedrun_4gpu.sh              into runs/out/speedrun_4gpu
#   runs/speedrun_4gpu.sh DIR          into DIR
#   DATA="a.parquet b.parquet" TALKS=chat.jsonl runs/speedrun_4gpu.sh    none: the starter corpus
#   DRY_RUN=1 runs/speedrun_4gpu.sh    what would be started
#   RANKS=2 DEVICE=cpu DEPTH=2 STEPS=10 MORE="--max-seq-len 64" runs/speedrun_4gpu.sh    a try without GPUs
set -euo pipefail
cd "$(dirname "$0")/.."

run=${1:-runs/out/speedrun_4gpu}
ranks=${RANKS:-4}
device=${DEVICE:-cuda}
read -r -a data <<<"${DATA:+--data $DATA}"
read -r -a talks <<<"${TALKS:+--data $TALKS}"
read -r -a more <<<"${MORE:-}"
read -r -a steps <<<"${STEPS:+--num-iterations $STEPS}"
supervise=()
[ -z "${SUPERVISE:-}" ] || supervise=(--supervise)
say() { printf '%s ' "$@"; echo; }
if [ -n "${DRY_RUN:-}" ]; then
    nanochat() { say nanochat "$@"; }
elif [ -n "${NANOCHAT:-}" ]; then
    nanochat() { "$NANOCHAT" "$@"; }
else
    cargo build --release --quiet
    nanochat() { target/release/nanochat "$@"; }
fi

# 1. Text to ids.
if [ ! -e "$run/tokenizer/tokenizer.json" ]; then
    nanochat tokenizer train "${data[@]}" --vocab-size "${VOCAB:-32768}" --out "$run/tokenizer"
fi

# 2. A base model on all ranks: gradients are summed, each rank keeps its share of the optimizer.
nanochat launch --nproc "$ranks" --device "$device" -- train base --run "$run" --resume "${supervise[@]}" \
    "${data[@]}" --device "$device" --depth "${DEPTH:-20}" "${steps[@]}" "${more[@]}" \
    --async-save --save-every 250

# 3. A chat model, from the base model's weights and moments.
nanochat launch --nproc "$ranks" --device "$device" -- train sft --run "$run" --resume "${supervise[@]}" \
    "${talks[@]}" --device "$device" "${steps[@]}" --save-every 250

# 4. How good it is, and a question: one process is enough.
nanochat eval bpb --model "$run" --source base --split-tokens 65536
nanochat report build --run "$run"
nanochat chat --run "$run" --prompt "Why is the sky blue?"
