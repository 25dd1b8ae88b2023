#!/usr/bin/env bash
# Everything worth knowing of an accelerator host, in one go; run from the checkout.
#   bash benchmarks/gpu.sh OUT      (OUT: where logs and the profile go)
set -uo pipefail
out=${1:?usage: benchmarks/gpu.sh OUT}
mkdir -p "$out"
python -c 'import jax; print(jax.__version__, jax.devices())'
# The tests run on fake CPU devices everywhere; the rest below runs on the real ones.
python -m pytest -q 2>&1 | tee "$out/tests.log" | tail -5
for config in small base large; do
    echo "== pretrain_$config"
    python benchmarks/pretrain_step.py --config=configs/pretrain_$config.py \
        --batch=256,512,1024 2>&1 | tee "$out/step_$config.log" |
        grep -E '^ *(batch|[0-9]+ )|RESOURCE_EXHAUSTED' | cut -c1-200
done
python benchmarks/pretrain_step.py --config=configs/pretrain_base.py --batch=512 \
    --steps=5 --profile="$out/profile" | tail -1
python benchmarks/input_pipeline.py --copies=4096 --batch=256 \
    --config=configs/pretrain_base.py | tee "$out/input.log"
python benchmarks/probe.py --pairs=270000 | tee "$out/probe.log"
python launch.py --config=configs/pretrain_base.py --workdir="$out/run" \
    --config.data.source=synthetic --config.data.count=2000 --config.epochs=20 \
    --config.batch_size=256 --config.log_every=10 2>&1 | tail -15
python launch.py --config=configs/probe_bigearthnet.py --workdir="$out/scores" \
    --config.checkpoint="$out/run" --config.data.source=synthetic \
    --config.data.count=2000 --config.fractions="(1.0,)" --config.repeats="(1,)" 2>&1 |
    tail -20
