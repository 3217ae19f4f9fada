#!/usr/bin/env bash
# Everything that only a GPU can show, in one command (not run yet):
#
#   tests/perf/gpu.sh CONFIGS OUT [PART ...]
#
# CONFIGS holds the config.json of each base as CONFIGS/Qwen3-0.6B/config.json, CONFIGS/Qwen3-1.7B/... and
# CONFIGS/Qwen3-8B/...; weights are random. Tables are printed; all figures are kept as OUT/*.json, output as OUT/*.log.
# PARTs, all by default: exact compare-0.6b compare-1.7b levers memory profile fit-8b. One that fails does not stop the
# others. TRL is needed for compare-*: pip install -e .[bench,gpu].
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
[[ $# -ge 2 ]] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
configs=$(realpath "$1") out=$(realpath -m "$2")
shift 2
parts=("$@")
[[ $# -gt 0 ]] || parts=(exact compare-0.6b compare-1.7b levers memory profile fit-8b)
mkdir -p "$out"
python=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}

perf() { # NAME SCRIPT ARGUMENT...: run a script of this folder, its output on screen and in NAME.log
    local name=$1 script=$2
    shift 2
    "$python" "tests/perf/$script.py" "json=$out/$name.json" "out=$out/$name" "$@" 2>&1 | tee "$out/$name.log"
    rm -rf "$out/$name" # weights and checkpoints; the figures are in NAME.json
}

mix=(lengths=lognormal:250/350 max_length=8192 precision=bf16 warmup_steps=1)
small=("model=$configs/Qwen3-0.6B/config.json" "${mix[@]}")
for part in "${parts[@]}"; do
    echo "=== $part ($(date +%T))"
    case "$part" in
        exact) GPU_TESTS=1 "$python" -m pytest -q tests/models 2>&1 | tee "$out/exact.log" ;;
        compare-0.6b) perf "$part" compare "${small[@]}" pairs=1024 pairs_per_step=256 ;;
        compare-1.7b) perf "$part" compare "model=$configs/Qwen3-1.7B/config.json" "${mix[@]}" pairs=512 \
            pairs_per_step=128 rounds=1 trl_settings=batch=8,gradient_checkpointing=false,attention=sdpa ;;
        levers) perf "$part" levers "${small[@]}" pairs=768 pairs_per_step=256 rounds=1 levers="
            model.liger=never; model.attention=torch_varlen; model.attention=flash; model.attention=fa3;
            model.attention=fa4; data.share_prefix=false;
            engine.gradient_checkpointing=true; engine.gradient_checkpointing=true,engine.checkpointed_layers=14;
            engine.zero_stage=1; engine.deepspeed.zero_optimization.overlap_comm=false;
            engine.deepspeed.zero_optimization.reduce_bucket_size=500000000;
            engine.deepspeed.zero_optimization.memory_efficient_linear=false;
            data.pack_tokens=8192; data.pack_tokens=32768" ;;
        memory) perf "$part" memory "${small[@]}" max_length=4096 pairs=128 pairs_per_step=64 packs=8192,16384 ;;
        profile)
            "$python" tests/perf/profile_step.py "out=$out/profile" "${small[@]}" pairs=512 pairs_per_step=256 2>&1 |
                tee "$out/profile.log"
            rm -rf "$out/profile" ;;
        fit-8b) perf "$part" compare "model=$configs/Qwen3-8B/config.json" "${mix[@]}" sides=ours pairs=192 \
            pairs_per_step=64 rounds=1 ours_settings=engine.gradient_checkpointing=true ;;
        *) echo "no such part: $part" >&2 ;;
    esac
done
