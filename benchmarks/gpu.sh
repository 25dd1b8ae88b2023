#!/usr/bin/env bash
# Everything worth knowing of an accelerator host, in one go of at most 9 minutes; run
# from the checkout.
#   bash benchmarks/gpu.sh OUT      (OUT: where logs and the profile go)
# Each part has its share of the time, and what one part fails at the next ones survive.
set -uo pipefail
out=${1:?usage: benchmarks/gpu.sh OUT}
mkdir -p "$out"
export JAX_COMPILATION_CACHE_DIR="$out/cache"

part() {  # part NAME SECONDS COMMAND...
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    timeout "$limit" "$@" >"$out/$name.log" 2>&1 || echo "($name ended with $?)"
    grep -vE 'WARNING|^W[0-9]|^I[0-9]|^E[0-9]' "$out/$name.log" | tail -25 | cut -c1-160
}

python -c 'import jax; print(jax.__version__, jax.devices())'
base=--config=configs/pretrain_base.py
step="python benchmarks/pretrain_step.py $base --steps=5 --groups=3"

part step 110 $step --size=small,base,large --batch=256,512,1024
part switches 60 $step --batch=512 --attention=xla,cudnn --remat=none,dots
part attention 30 python benchmarks/attention.py --batch=256
part parts 30 $step --batch=512 --parts --profile="$out/profile"
part levers 75 python benchmarks/levers.py $base --batch=256 --rounds=3
part race 75 python benchmarks/race.py $base --batch=256 --rounds=3 --compile
part input 40 python benchmarks/input_pipeline.py --copies=4096 --batch=256 \
    --keep="$out/records" --consumes=7000
# Fed by Grain from the records just written: the log says how long devices waited.
records="--config.data.dir=$out/records/none --config.data.eval_split=train"
part fed 60 python launch.py $base --workdir="$out/fed" $records \
    --config.data.allow_overlap=True --config.epochs=50 --config.batch_size=512 \
    --config.log_every=50 --config.eval_pairs=64
part quickstart 45 python launch.py --config=configs/quickstart.py \
    --workdir="$out/quickstart" --config.epochs=60 --config.log_every=1
JAX_PLATFORMS=cpu part quickstart_cpu 45 python launch.py \
    --config=configs/quickstart.py --workdir="$out/quickstart_cpu" \
    --config.epochs=60 --config.log_every=1
part agreement 10 python - "$out/quickstart" "$out/quickstart_cpu" <<'END'
import json, pathlib, sys

runs = [
    [json.loads(line) for line in (pathlib.Path(run) / "metrics.jsonl").open()]
    for run in sys.argv[1:]
]
here, cpu = ({r["step"]: r["loss"] for r in rows if "loss" in r} for rows in runs)
steps = sorted(here.keys() & cpu.keys())
apart = [abs(here[s] / cpu[s] - 1) for s in steps]
print(f"{len(steps)} losses, at most {max(apart):.1e} apart, the last {apart[-1]:.1e}")
END
# Also worth running, each beyond these minutes:
#   python benchmarks/probe.py --pairs=270000
#   python -m pytest      (on fake CPU devices, whatever the host has)
