#!/usr/bin/env bash
# What is worth knowing of a machine with a GPU, in at most nine minutes and without a
# network:
#   bash benchmarks/gpu.sh OUT              needs a GPU
#   bash benchmarks/gpu.sh OUT --rehearse   the same at tiny size on a CPU
#
# The most important parts come first. Each has a share of the time, in which it starts,
# compiles and tunes too, and what those before it left over; what one part fails at, or
# has no time for, the next ones survive. But nothing goes on after a failed smoke step.
# OUT holds at most eight files, written as the parts end. The exit status is the
# number of parts that failed or could not begin; a part that is skipped says why.
# What this Python lacks is taken from the folder wheels/, if there is one (WHEELS names
# another); benchmarks/wheels.py fills it.
set -uo pipefail
out=${1:-} rehearse=${2:-}
if [[ ! $out || $out == -* || ! $rehearse =~ ^(--rehearse)?$ || $# -gt 2 ]]; then
    echo "usage: benchmarks/gpu.sh OUT [--rehearse]" >&2
    exit 2
fi
mkdir -p "$out" && out=$(cd "$out" && pwd) && cd "$(dirname "$0")/.." || exit 2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/logs"
rm -f "$out"/{summary.md,{step,race,fed,attention,agreement}.txt,{logs,profile}.tar.gz}

# Nothing is compiled or tuned twice: neither by another process nor by another part.
export JAX_COMPILATION_CACHE_DIR=$work/cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES=xla_gpu_per_fusion_autotune_cache_dir
export TORCHINDUCTOR_CACHE_DIR=$work/inductor TRITON_CACHE_DIR=$work/triton
export PYTHONUNBUFFERED=1
export JAX_PLATFORMS=cuda,cpu # a GPU that cannot be used is an error

look=(nvidia-smi) size=() slack=1
batch=512 small=32 few=8 copies=4096 epochs=50 repeats=10 quick=60
if [[ $rehearse ]]; then
    export JAX_PLATFORMS=cpu
    export TORCH_COMPILE_DISABLE=1 # minutes of C++ that no GPU needs
    look=(echo "A rehearsal: no GPU is asked for.")
    size=(--config.model.{image_size=32,dim=32,depth=1,num_heads=2})
    size+=(--config.model.decoder_{dim=32,depth=1,heads=2})
    slack=4 # it is lines that are rehearsed, and the machine may have other work
    batch=4 small=2 few=2 copies=16 epochs=2 repeats=1 quick=3
fi
base=(--config=configs/pretrain_base.py "${size[@]}")
step=(python3 benchmarks/pretrain_step.py "${base[@]}" --batch="$batch")

due=0 failed=0
printf '%s\n' "| part | status | s | of at most | numbers |" "|---|---|---|---|---|" \
    >"$out/summary.md"

note() {  # note FILE NAME STATUS SECONDS LIMIT NUMBERS
    echo "| $2 | $3 | $4 | $5 | ${6//|/,} |" >>"$out/summary.md"
    { echo "== $2: $3" && cat "$work/logs/$2.log" && echo; } >>"$out/$1"
    tar -C "$work" -czf "$out/logs.tar.gz" logs
}

part() {  # part FILE NAME SECONDS COMMAND...
    local file=$1 name=$2 log=$work/logs/$2.log status=0 began=$SECONDS limit numbers
    due=$((due + $3 * slack))
    limit=$((due - began))
    shift 3
    echo "== $name, at most $limit s"
    if ((limit > 0)); then
        timeout -k 5 "$limit" "$@" >"$log" 2>&1 </dev/null || status=$?
        # A process that the system has killed ends with 137, too.
        ((status == 124 || status == 137 && SECONDS - began >= limit)) &&
            status="out of time"
    else
        echo "Not begun: no time was left." >"$log"
        status="not begun"
    fi
    numbers=$(python3 benchmarks/gpu_numbers.py "$name" "$log" 2>"$work/none") ||
        # Of a part that failed, this is no news.
        { [[ $status == 0 ]] && status="no numbers" && cat "$work/none" >>"$log"; }
    note "$file" "$name" "$status" $((SECONDS - began)) "$limit" "$numbers"
    [[ -z $numbers ]] || echo "$numbers"
    [[ $status == 0 ]] && return
    failed=$((failed + 1))
    echo "-- $name failed ($status). The end of what it said:"
    tail -n "${lines:-40}" "$log"
    return 1
}

skip() {  # skip FILE NAME REASON
    echo "== $2, skipped: $3"
    echo "$3" >"$work/logs/$2.log"
    note "$1" "$2" skipped 0 0 "$3"
}

gate() {  # gate NAME SECONDS COMMAND...: a part without which nothing makes sense
    lines=60 part step.txt "$@" || { echo "Stopped: nothing else was run." && exit 1; }
}

if [[ -d ${WHEELS:=wheels} ]]; then
    gate wheels 10 python3 benchmarks/wheels.py unpack "$WHEELS" "$work/site"
    export PYTHONPATH=$work/site${PYTHONPATH:+:$PYTHONPATH}
fi
gate look 5 "${look[@]}"
gate smoke 80 python3 benchmarks/losses.py "${base[@]}" --config.batch_size=$small

part step.txt step 65 "${step[@]}" --steps=5 --groups=3
part step.txt profile 25 "${step[@]}" --steps=3 --groups=1 --profile="$work/profile"
[[ ! -d $work/profile ]] || tar -C "$work" -czf "$out/profile.tar.gz" profile

find_torch='import importlib.util, sys; sys.exit(not importlib.util.find_spec("torch"))'
if python3 -c "$find_torch"; then
    part race.txt race 130 python3 benchmarks/race.py "${base[@]}" --batch=$batch \
        --dtype=bfloat16 --rounds=3 ${rehearse:+--steps=1} --compile
else
    skip race.txt race "There is no PyTorch here to race against."
    due=$((due + 130 * slack)) # for the others
fi

# The sample's pairs over and over, as many as an epoch has; then a training on them,
# whose log says how long the devices waited for data.
part fed.txt records 15 python3 -c "
import pathlib, sys
from benchmarks import input_pipeline
from data_pipeline import record_format, sources

out, count = pathlib.Path(sys.argv[1]), int(sys.argv[2])
plain = record_format.COMPRESSION['none']
input_pipeline.rewrite(sources.SAMPLE, 'train', count, out, plain)
size = sum(path.stat().st_size for path in out.iterdir())
print(f'{count} pairs, {size / 1e6:.0f} MB')
" "$work/records" $copies
part fed.txt fed 60 python3 launch.py "${base[@]}" --workdir="$work/fed" \
    --config.data.dir="$work/records" --config.data.eval_split=train \
    --config.data.allow_overlap=True --config.batch_size=$batch \
    --config.epochs=$epochs --config.log_every=$((epochs * copies / batch / 8)) \
    --config.eval_pairs=16 --config.eval_draws=1 --config.figure_pairs=2

part attention.txt attention 25 python3 benchmarks/attention.py --batch=$((batch / 2)) \
    --repeats=$repeats --nofillings

# The CPU's losses: in float32 while products are not rounded to TF32, and in bfloat16.
losses=(python3 benchmarks/losses.py --against_cpu)
JAX_DEFAULT_MATMUL_PRECISION=highest part agreement.txt agreement 30 "${losses[@]}" \
    --config=configs/quickstart.py "${size[@]}" --steps=$quick --within=1e-4
part agreement.txt agreement_bfloat16 45 "${losses[@]}" "${base[@]}" --steps=3 \
    --config.batch_size=$few --config.model.dtype=bfloat16 --within=1e-2

part fed.txt reading 30 python3 benchmarks/input_pipeline.py --dir="$work/records" \
    --batch=$batch --steps=$((copies / batch)) --consumes=8300

echo "== $failed parts failed; $SECONDS s in all"
ls -l "$out"
exit $failed
