#!/usr/bin/env bash
# Everything worth knowing of an accelerator host, in one go of at most 9 minutes; run
# from the checkout.
#   bash benchmarks/gpu.sh OUT      (OUT: where logs and the profile go)
# Each part has its share of the time, the most important first; what one part fails at,
# or has no time for, the next ones survive.
set -uo pipefail
out=${1:?usage: benchmarks/gpu.sh OUT}
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export JAX_COMPILATION_CACHE_DIR=$work/cache PYTHONUNBUFFERED=1

part() {  # part NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout -k 5 "$limit" "$@" >"$out/$name.log" 2>&1 || echo "($name ended with $?)"
    grep -vE 'WARNING|^[WIE][0-9]' "$out/$name.log" | tail -25 | cut -c1-160
}

base=--config=configs/pretrain_base.py
step="python benchmarks/pretrain_step.py --steps=5 --groups=3 $base"

part devices 20 python -c 'import jax; print(jax.__version__, jax.devices())'
part step_base 60 $step --batch=512,1024
part race 110 python benchmarks/race.py $base --batch=512 --rounds=3 --compile
# Fed by Grain from records on disk: the log says how long the devices waited.
part input 30 python benchmarks/input_pipeline.py --copies=4096 --batch=256 --steps=10 \
    --keep="$work/records" --consumes=8300
part fed 60 python launch.py $base --workdir="$work/fed" --config.epochs=50 \
    --config.data.dir="$work/records/none" --config.data.eval_split=train \
    --config.data.allow_overlap=True --config.batch_size=512 --config.log_every=50 \
    --config.eval_pairs=64
part profile 25 $step --batch=512 --profile="$out/profile"
part step_large 45 $step --size=large --batch=512
part step_small 35 $step --size=small --batch=1024
part attention 35 python benchmarks/attention.py --batch=256 --repeats=10
# The same losses as on a CPU, once float32 products are not rounded to TF32.
quick="--config=configs/quickstart.py --config.epochs=60 --config.log_every=1"
JAX_DEFAULT_MATMUL_PRECISION=highest part quickstart 30 \
    python launch.py $quick --workdir="$work/here"
JAX_PLATFORMS=cpu part quickstart_cpu 30 python launch.py $quick --workdir="$work/cpu"
part agreement 5 python - "$work/here" "$work/cpu" <<'END'
import json, pathlib, sys

runs = [
    [json.loads(line) for line in (pathlib.Path(run) / "metrics.jsonl").open()]
    for run in sys.argv[1:]
]
here, cpu = ({r["step"]: r["loss"] for r in rows if "loss" in r} for rows in runs)
steps = sorted(here.keys() & cpu.keys())
apart = [abs(here[step] / cpu[step] - 1) for step in steps]
print(f"{len(steps)} losses, at most {max(apart):.1e} apart, the last {apart[-1]:.1e}")
END
part levers 50 python benchmarks/levers.py $base --batch=256 --rounds=3 \
    --only='queries,remat,residuals,predict'
# Worth running too, beyond these minutes: benchmarks/probe.py --pairs=270000, and the
# tests (on fake CPU devices, whatever the host has): python -m pytest
