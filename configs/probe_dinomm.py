r"""Probes an encoder about as DINO-MM did, to be laid beside older BigEarthNet tables.

    python launch.py --config=configs/probe_dinomm.py \
        --config.checkpoint=runs/pretrain_base --config.data.dir=data/bigearthnet

The global tokens of the last four blocks, one setting of SGD, 1 % and all of the
labels, and micro mAP of every 64 pairs, averaged. It reports on the validation split,
where those tables also chose their best epoch; here the last epoch counts and nothing
is chosen, so `val_split` only repeats the training pairs. Made for one accelerator, and
for encoders that were pretrained with `--config.model.global_token=decoders`.

What still differs: they used other lists of pairs, 8-bit images of 128 px, random crops
while training, and subsets drawn with replacement. docs/evaluation.md says what is
known of how much that matters; for results of your own use probe_bigearthnet.
"""

from configs import probe_bigearthnet


def get_config():
    c = probe_bigearthnet.get_config()
    c.methods = ("probe",)
    c.data.update(val_split="train", test_split="validation")
    c.baselines = ("random",)
    c.fractions, c.repeats = (0.01, 1.0), (1, 1)
    c.features.update(pool="global", blocks=4)
    c.score_per_batch = 64
    c.probe.norm = "none"
    c.probe.learning_rates, c.probe.weight_decays = (0.01,), (0.0,)
    return c
