"""The run that `kills.py` kills: a tiny model on procedural scenes, saved all the time.

python launch.py --config=tests/faults/killed_run.py
"""

from configs import pretrain_base

STEPS, EVAL_EVERY = 24, 12


def get_config():
    c = pretrain_base.get_config()
    c.batch_size, c.epochs = 16, STEPS // 3
    c.data.update(source="synthetic", count=48, size=24, threads=1)
    c.model.update(image_size=24, patch_size=6, dim=32, depth=2, num_heads=2)
    c.model.update(decoder_dim=16, decoder_depth=1, decoder_heads=2, dtype="float32")
    c.fsdp_min_size = 0
    c.log_every, c.eval_every, c.checkpoint_every = 1, EVAL_EVERY, 3
    c.keep_checkpoints, c.keep_every = 2, 0
    c.eval_pairs, c.eval_draws, c.figure_pairs = 8, 1, 1
    return c
