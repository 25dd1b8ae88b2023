"""Configs that cannot work, and what is said of each.

A row is the name of a config, what is changed in it, and a part of the sentence that
refuses it, as a pattern. GONE takes a field away, as from a user's copy.
"""

import functools
import importlib
import math

import ml_collections

import launch

GONE = object()

# What has to be passed to a config of each task before it can work.
PASSED = {
    "pretrain": {"data.dir": "DIR"},
    "reconstruct": {"checkpoint": "runs/quickstart"},
    "reconstruct_scene": {"checkpoint": "runs/quickstart", "out": "OUT", "s1": "a.tif"},
    "predict": {
        **{"checkpoint": "runs/quickstart", "evaluation": "runs/probe"},
        **{"out": "OUT", "s2": "a.tif"},
    },
    "embed": {"checkpoint": "runs/quickstart", "out": "OUT", "data.dir": "DIR"},
    "report": {"run": "runs/quickstart"},
    "evaluate": {"checkpoint": "runs/quickstart", "data.dir": "DIR"},
    "change": {"checkpoint": "runs/quickstart", "data.dir": "DIR"},
    "prepare": {"source": "DIR", "out": "OUT"},
    "export": {"checkpoint": "runs/quickstart", "out": "OUT"},
    "compare": {},
}


def load(name: str, changes: dict):
    """A config that would work, changed; types are as in a config file of one's own."""
    config = shipped(name).to_dict()
    passed = dict(PASSED[config["task"]])
    if config.get("data", {}).get("source") != "records":
        passed.pop("data.dir", None)
    for field, value in (passed | changes).items():
        *groups, key = field.split(".")
        place = config
        for group in groups:
            place = place[group]
        if value is GONE:
            del place[key]
        else:
            place[key] = value
    return ml_collections.ConfigDict(config, type_safe=False).lock()


def check(name: str, changes: dict) -> None:
    """Refuses it as `launch.py` does."""
    config = load(name, changes)
    launch.task_of(config).check(config)


@functools.cache
def shipped(name: str) -> ml_collections.ConfigDict:
    """A config as it comes."""
    return importlib.import_module(f"configs.{name}").get_config()


PRETRAINING = [
    # Fields that there are not.
    ({"epoch": 100}, r"no use for epoch; did you mean epochs\?"),
    ({"model.dims": 64}, r"no use for model.dims; did you mean model.dim\?"),
    ({"dim": 64}, r"no use for dim; did you mean model.dim\?"),
    ({"colour": "red"}, "no use for colour; take it out"),
    # What methods share is no method; each has fields of its own.
    ({"method": "reconstruction"}, r"method is 'recon.*; choose one of \['croma'"),
    ({"method": "mae"}, "is a field of .*fusmae, and method is mae; .*quickstart:mae"),
    ({"model.dim": GONE}, "no field model.dim; give it a whole .*pretrain_base.py"),
    ({"judge": GONE}, "no field judge.every; give it"),
    ({"model": 7}, "model is 7; it must be a group of the fields model.image_size"),
    # Other types.
    ({"epochs": "100"}, "epochs is '100'; it must be a whole number of at least 1"),
    ({"epochs": 1.5}, "epochs is 1.5; it must be a whole number"),
    ({"epochs": True}, "epochs is True; it must be a whole number"),
    ({"seed": None}, "seed is None; it must be a whole number of at least 0"),
    ({"view.turn": 1}, "view.turn is 1; it must be True or False"),
    ({"optim.b1": "0.9"}, "optim.b1 is '0.9'; it must be a number"),
    ({"optim.clip_norm": False}, "optim.clip_norm is False; it must be a number"),
    ({"data.classes": ["a"]}, r"data.classes is \['a'\]; it must be a tuple"),
    ({"data.classes": "a"}, r"data.classes is 'a'; .* such as \('a',\)"),
    ({"bands.s1": "VV"}, r"bands.s1 is 'VV'; it must be a tuple of at least 1"),
    ({"data.dir": 5}, "data.dir is 5; it must be a path"),
    ({"data.dir": "a\0b"}, "data.dir is .*; it must be a path"),
    # Out of range.
    ({"batch_size": 0}, "batch_size is 0; .* at least 1"),
    ({"batch_size": 2**40}, "batch_size is 1099511627776; it must be a whole number"),
    ({"seed": -1}, "seed is -1"),
    ({"seed": 2**32}, "seed is 4294967296; .* at most 4294967295"),
    ({"optim.base_lr": math.nan}, "optim.base_lr is nan"),
    ({"optim.weight_decay": math.inf}, "optim.weight_decay is inf"),
    ({"optim.b2": 1.0}, "optim.b2 is 1.0; it must be a number of at least 0 and below"),
    ({"mask.ratio": 1.0}, "mask.ratio is 1.0; .* above 0 and below 1"),
    ({"mask.drop_sensor": 1.1}, "mask.drop_sensor is 1.1; .* of at most 1"),
    ({"data.fraction": 0.0}, "data.fraction is 0.0; .* above 0 and of at most 1"),
    ({"data.weights": (1.0, -1.0)}, "data.weights is .*; .* each a number above 0"),
    ({"view.crop_scale": (0.5,)}, "view.crop_scale is .*; it must be a tuple of 2"),
    ({"model.dtype": "bf16"}, r"model.dtype is 'bf16'; .*did you mean 'bfloat16'\?"),
    ({"mask.mode": "Consistent"}, r"mask.mode is .*did you mean 'consistent'\?"),
    ({"model.remat": "all"}, r"model.remat is 'all'; choose one of \['none', 'dots'"),
    ({"model.attention": "flash"}, "model.attention is 'flash'; choose one of"),
    ({"loss.normalize": True}, "loss.normalize is True; choose one of"),
    ({"bands.s2": ("B02", "B8a", "B3")}, r"bands.s2 is .*did you mean 'B8A'\?"),
    ({"bands.s2": ("B2",)}, r"bands.s2 is .*did you mean 'B02'\?"),
    ({"bands.s2": ("B02", "B02")}, "bands.s2 is .*none of them twice"),
    ({"bands.s1": ()}, r"bands.s1 is \(\); .* at least 1"),
    # Contradictory.
    ({"optim.warmup_epochs": 100}, "optim.warmup_epochs is 100; .* below epochs=100"),
    ({"model.patch_size": 9}, "image_size=112, model.patch_size=9: .*not a whole"),
    ({"model.image_size": 8, "mask.ratio": 0.9}, "mask.ratio=0.9: .*1 of 1 patches"),
    ({"model.num_heads": 7}, "model.dim=768, model.num_heads=7: .* not divide"),
    ({"model.dim": 30, "model.num_heads": 2}, "model.dim=30: .* multiple of 4"),
    ({"model.decoder_heads": 7}, "model.decoder_dim=256, model.decoder_heads=7: "),
    ({"model.decoder_dim": 6}, "model.decoder_dim=6: .* multiple of 4"),
    ({"view.crop_scale": (1.0, 0.2)}, r"view.crop_scale=\(1.0, 0.2\).* least to great"),
    ({"view.crop_ratio": (0.0, 1.0)}, r"view.crop_ratio=\(0.0, 1.0\).* above 0"),
    ({"loss.weight_s1": 0.0, "loss.weight_s2": 0}, "are both 0.0, so that nothing"),
    ({"accumulate": 3}, "batch_size=1024 does not divide into accumulate=3"),
    ({"keep_every": 1_500}, "keep_every is 1500; .* checkpoint_every=1000"),
    ({"init_from": "gs://runs/base"}, "init_from is 'gs://runs/base'; .* mounted"),
    ({"data.dir": ""}, "name one: .*--config.data.dir=DIR"),
    ({"data.dir": "A,B,A"}, "data.dir is 'A,B,A'; name each dataset once"),
    ({"data.source": "sample"}, "data.dir is 'DIR', but data.source=sample reads no"),
    ({"data.weights": (1.0, 2.0)}, r"data.weights \[1.0, 2.0\] must be 1 positive"),
    ({"data.eval_split": "train"}, "data.eval_split is 'train', which is data.split"),
    (
        {"data.eval_split": "train", "data.allow_overlap": True, "data.eval_dir": "B"},
        "data.eval_dir is 'B', but only split train is wanted",
    ),
    (
        {"data.source": "synthetic", "data.dir": "", "data.size": 100},
        "100 px at 10 m is not whole at 60 m",
    ),
    (
        {"model.attention": "cudnn", "model.dtype": "float32"},
        "model.attention=cudnn needs model.dtype=bfloat16, and that is float32",
    ),
    (
        {"model.attention": "cudnn", "model.num_heads": 64},
        "model.attention=cudnn takes heads of 8, .*model.num_heads=64",
    ),
]

EVALUATION = [
    ({"method": ("knn",)}, r"no use for method; did you mean methods\?"),
    ({"methods": "knn"}, r"methods is 'knn'; .* such as \('knn',\)"),
    ({"methods": ()}, r"methods is \(\); .* at least 1"),
    ({"methods": ("knn", "prob")}, r"methods is .*did you mean 'probe'\?"),
    ({"methods": ("knn", "knn")}, "methods is .*none of them twice"),
    ({"baselines": ("statistic",)}, r"baselines is .*did you mean 'statistics'\?"),
    ({"sensors": ("S1",)}, r"sensors is .*did you mean 's1'\?"),
    ({"fractions": (0.0, 0.1, 1.0)}, "fractions is .* above 0 and of at most 1"),
    ({"fractions": (0.1,)}, r"fractions \(0.1,\) and repeats \(5, 1, 1\) must be as"),
    ({"repeats": (5, 0, 1)}, "repeats is .* at least 1"),
    ({"repeats": (5, 1, 2)}, "can be drawn in one way only"),
    ({"normalize": "dataset"}, r"normalize is 'dataset'; choose one of \['run', 'dat"),
    ({"data.statistics": "computed"}, "data.statistics is 'computed', but normalize"),
    ({"checkpoint": ""}, "checkpoint="),
    ({"single_label": True, "score_per_batch": 64}, "score_per_batch is 64, but"),
    ({"data.test_split": "train"}, "'train' would be tested on and learnt from"),
    ({"data.val_split": "dev"}, r"data.val_split is 'dev'; choose one of"),
    ({"data.fraction": 0.5}, r"no use for data.fraction; did you mean fractions\?"),
    ({"features.pool": "cls"}, "features.pool is 'cls'; choose one of"),
    ({"features.pool": "sensors"}, "retrieval across them compares nothing"),
    ({"knn.temperature": 0.0}, "knn.temperature is 0.0; it must be a number above 0"),
    ({"retrieval.ks": (1, 0)}, r"retrieval.ks is \(1, 0\); .* at least 1"),
    ({"probe.learning_rates": (0.0,)}, "probe.learning_rates is .* above 0"),
    ({"probe.weight_decays": ()}, "probe.weight_decays is .* at least 1"),
    ({"finetune.warmup_epochs": 100}, "finetune says, warmup_epochs is 100;"),
    ({"finetune.crop_scale": (1.0, 0.5)}, r"Crop scale \(1.0, 0.5\)"),
    ({"finetune.drop_path": 1.0}, "finetune.drop_path is 1.0"),
    ({"finetune.remat": "all"}, r"finetune.remat is 'all'; choose one of \['none', 'd"),
    ({"finetune.accumulate": 3}, "batch_size=128 does not divide into accumulate=3"),
    ({"scratch.accumulate": 5}, "With what scratch says, batch_size=128"),
    ({"scratch.epochs": 3}, "With what scratch says, warmup_epochs is 5"),
    ({"scratch.rate": 3}, "no use for scratch.rate"),
    ({"dense.heads": ("conv",)}, "dense.heads is .*'linear', 'upsample'"),
    ({"dense.blocks": 0}, "dense.blocks is 0"),
    ({"dense.encoders": ()}, r"dense.encoders is \(\); .* at least 1"),
    ({"dense.encoders": ("fine",)}, "dense.encoders is .*'frozen', 'tuned'"),
]

PREPARATION = [
    ("prepare_bigearthnet", {"source": ""}, "Pass source=DIR"),
    ("prepare_bigearthnet", {"out": "DIR"}, "must be different folders"),
    ("prepare_bigearthnet", {"out": "a,b"}, "out is 'a,b'; .* no comma"),
    ("prepare_bigearthnet", {"out": "a "}, "out is 'a '; .* no space at its ends"),
    ("prepare_bigearthnet", {"archive": "so2sat"}, "no field read.speckle; give it"),
    ("prepare_bigearthnet", {"archive": "so2satt"}, r"did you mean 'so2sat'\?"),
    ("prepare_bigearthnet", {"holdout_share": 1.0}, "holdout_share is 1.0"),
    ("prepare_bigearthnet", {"holdout_share": -0.1}, "holdout_share is -0.1"),
    ("prepare_bigearthnet", {"holdout_tiles": "33UUP"}, r"such as \('33UUP',\)"),
    ("prepare_bigearthnet", {"compression": "zstd"}, r"did you mean 'zstd:3'\?"),
    ("prepare_bigearthnet", {"pairs_per_shard": 0}, "pairs_per_shard is 0"),
    ("prepare_bigearthnet", {"workers": -1}, "workers is -1"),
    ("prepare_bigearthnet", {"strict": "yes"}, "strict is 'yes'; .* True or False"),
    ("prepare_bigearthnet", {"runner_options": ("--a=1",)}, "there is no runner"),
    ("prepare_bigearthnet", {"read.maps": True}, "no use for read.maps; take it out"),
    ("prepare_bigearthnet", {"download": "D"}, "download and source are .* pass one"),
    ("prepare_bigearthnet", {"download": "s3://D"}, "download is 's3://D'; .* mounted"),
    (
        "prepare_bigearthnet",
        {"download": "OUT", "source": ""},
        "out=OUT .* none of them one to download into",
    ),
    (
        "prepare_bigearthnet",
        {"download": "D", "source": "", "download_parts": ("S3",)},
        r"download_parts is \('S3',\); it must be .*'splits', 'S1', 'S2'",
    ),
    ("prepare_bigearthnet", {"download_parts": ("S1",)}, "set download=DIR too"),
    ("prepare_bigearthnet_v2", {"download_parts": "S1"}, r"such as \('S1',\)"),
    ("prepare_so2sat", {"download": "D", "source": ""}, "so2sat .*how TFDS prepares"),
    ("prepare_pairs", {"download": "D"}, "no use for download; take it out"),
    ("prepare_bigearthnet_v2", {"read.maps": "no"}, "read.maps is 'no'"),
    ("prepare_bigearthnet_v2", {"read": 3}, "read is 3; it must be a group of the"),
    (
        "prepare_sen12ms",
        {"splits": "x"},
        "splits='x' and holdout_share=0.05 are 2 ways",
    ),
    ("prepare_so2sat", {"read.speckle": "Lee"}, r"did you mean 'lee'\?"),
    ("prepare_ssl4eo", {"read.s2_offset": 0}, "read.s2_offset is 0; choose one of"),
    ("prepare_ssl4eo", {"read.level": "L2a"}, r"did you mean 'L2A'\?"),
    ("prepare_pairs", {"read.name": "My pairs"}, "read.name is 'My pairs'; .* letter"),
    ("prepare_pairs", {"read.s1_unit": "db"}, r"did you mean 'dB'\?"),
    ("prepare_pairs", {"read.s2_unit": "dn"}, r"did you mean 'DN'\?"),
    ("prepare_pairs", {"read.s2_level": "L2"}, "s2_level is 'L2'; choose .*L2A.*L1C"),
    ("prepare_pairs", {"read.s2_offset": "500"}, "s2_offset is '500'; choose one of"),
    ("prepare_pairs", {"read.size": -1}, "read.size is -1"),
    ("prepare_pairs", {"read.s1_files": "S1/*.tif"}, "s1_files is .* of {id} and perh"),
    ("prepare_pairs", {"read.s2_files": "/s2/{id}.tif"}, "s2_files is .* below the so"),
    ("prepare_pairs", {"read.s2_files": "../{id}.tif"}, "s2_files is .* below the sou"),
    ("prepare_pairs", {"read.s2_files": "{id}/{date}.tif"}, "s2_files .* perhaps {t"),
    ("prepare_pairs", {"read.s2_files": "**/{id}.tif"}, r"s2_files is '\*\*/"),
    ("prepare_pairs", {"read.mask_files": "{id}/"}, "mask_files .* without / at its"),
    ("prepare_pairs", {"read.mask_classes": ("",)}, r"mask_classes is \(''"),
    ("prepare_pairs", {"read.mask_nodata": (0.5,)}, r"mask_nodata is \(0.5,\)"),
]

OTHERS = [
    ("quickstart", {"data.dir": "DIR"}, "data.source=sample reads no folder"),
    ("quickstart", {"model.decoder_heads": 5}, "model.decoder_heads=5: Width 64"),
    (
        "pretrain_dinomm",
        {"mask.ratio": 0.5},
        "mask.ratio is a field of croma, fusmae, ",
    ),
    ("pretrain_dinomm", {"crops.local_size": 50}, "local_size=50.*patches of 8 px"),
    ("pretrain_dinomm", {"crops.local_size": 120}, "local_size=120 is larger than"),
    (
        "pretrain_dinomm",
        {"crops.local_scale": (0.4, 0.05)},
        "local_scale=.*least",
    ),
    ("pretrain_dinomm", {"model.dim": 30}, "model.dim=30: Width 30"),
    (
        "pretrain_dinomm",
        {"loss.student_temperature": 0.0},
        "ture is 0.0; .* abov",
    ),
    (
        "pretrain_decur",
        {"mask": {"ratio": 0.5}},
        "mask.ratio is a field of croma, fusmae, ",
    ),
    ("pretrain_decur", {"loss.common": 9000}, "common=9000 are more dim.*_dim=8192"),
    ("pretrain_decur", {"crops.jitter": 1.0}, "crops.jitter is 1.0"),
    (
        "pretrain_croma",
        {"model.attention": "cudnn"},
        "attention is 'cudnn'; choose one",
    ),
    ("pretrain_croma", {"model.depth": 1}, "model.depth is 1; .* at least 2"),
    ("pretrain_croma", {"mask.ratio": 0.001}, "mask.ratio=0.001: .* 196 of 196"),
    ("pretrain_croma", {"model.decoder_heads": 7}, "decoder_heads=7: Width 512"),
    ("pretrain_croma", {"loss.contrast": 0.0, "loss.reconstruct": 0.0}, "both 0.0, so"),
    ("pretrain_synthetic", {"data.count": 0}, "data.count is 0"),
    ("probe_synthetic", {"data.size": 47}, "47 px at 10 m is not whole"),
    ("finetune_bigearthnet", {"finetune.turn": 0}, "finetune.turn is 0"),
    ("dense_sen12ms", {"dense.field": ""}, "dense.field is ''; .* not empty"),
    ("finetune_pairs", {"finetune.mixup": 0.8}, "mixup mixes .* has masks learnt; set"),
    ("finetune_pairs", {"scratch.mixup": 0.8}, "mixup mixes .* set finetune.mixup=0"),
    ("predict", {"evaluation": ""}, "evaluation=DIR"),
    ("predict", {"s2": ""}, "Name a scene, .*, or a dataset"),
    ("predict", {"out": ""}, "Say where the result goes: out=DIR"),
    ("predict", {"data.dir": "DIR"}, "s2 name a scene, and config.data a dataset"),
    (
        "predict",
        {"s2": "", "data.dir": "DIR", "head": "linear"},
        "head=linear names the classes of pixels.* name a scene, or one of .'probe'",
    ),
    ("predict", {"probabilities": 1}, "probabilities is 1; .* True or False"),
    ("predict", {"head": "best"}, "head is 'best'; choose one of"),
    ("embed", {"checkpoint": ""}, "checkpoint=runs"),
    ("embed", {"data.dir": ""}, "Name a scene, .*, or a dataset, data.dir"),
    ("embed", {"out": ""}, "Say where the result goes: out=DIR"),
    ("embed", {"s1": "a.tif"}, "s1 name a scene, and config.data a dataset"),
    ("embed", {"dtype": "float32"}, "dtype is 'float32'; choose one of"),
    ("embed", {"s2_unit": "dB"}, "s2_unit is 'dB'; choose one of"),
    ("embed", {"stride": -1}, "stride is -1"),
    ("embed", {"view": "all"}, "view is 'all'; choose one of"),
    ("reconstruct", {"checkpoint": ""}, "checkpoint=runs"),
    ("reconstruct", {"split": "val"}, "split is 'val'; choose one of"),
    ("reconstruct", {"shown": 0}, "shown is 0"),
    ("reconstruct", {"step": -1}, "step is -1"),
    ("reconstruct_scene", {"checkpoint": ""}, "checkpoint=runs"),
    ("reconstruct_scene", {"s1": ""}, "Name a scene and where its reconstruction"),
    ("reconstruct_scene", {"hide": "s1"}, "nothing else to draw it from; name the oth"),
    ("reconstruct_scene", {"mask_ratio": 1.0}, "mask_ratio is 1.0"),
    ("compare_synthetic", {"reference": "best"}, "reference is 'best'; choose one of"),
    (
        "compare_synthetic",
        {"seeds": ()},
        "seeds is .*; it must be a tuple of at least 1",
    ),
    ("compare_synthetic", {"budget": "hours"}, "budget is 'hours'; choose one of"),
    ("compare_synthetic", {"tune.rates": (0.5,)}, "lacks 1.0, the arms' own rates"),
    ("compare_synthetic", {"arms.fusmae.seed": -1}, "arms.fusmae.seed is -1"),
    (
        "compare_floods",
        {"arms.fusmae.epochs": 30},
        "is not that of arms.fusmae, so that",
    ),
    (
        "compare_cities",
        {"shown": {"map": "f1"}},
        r"shown names \['map'\], which are no",
    ),
    ("change_pairs", {"checkpoint": ""}, "checkpoint=runs"),
    (
        "change_pairs",
        {"ways": ("sum",)},
        "ways is .*, each one of .*difference.*concat",
    ),
    ("change_pairs", {"folds": 2}, "folds is 2"),
    ("change_pairs", {"fit.class_weights": (0.0,)}, "fit.class_weights is"),
    ("compare_floods", {"arms": {}}, "nothing to compare: name arms and evaluations"),
    ("export", {"checkpoint": ""}, "checkpoint=runs"),
    ("export", {"out": ""}, "out=exports"),
    ("export", {"out": "configs"}, "configs is there already and not an empty folder"),
    ("export", {"formats": ()}, "formats is .*; it must be a tuple of at least 1"),
    ("export", {"formats": ("pickle",)}, "formats is .*, each one of .*safetensors"),
    ("export", {"formats": ("torch",)}, "lacks the weights, which torch and"),
    ("export", {"license": " "}, "license is ' '; it must be a text that is not empty"),
    ("report", {"run": ""}, "Name a run directory: run=runs"),
    ("report", {"pairs": 0}, "pairs is 0"),
    ("report", {"out": "s3://a.html"}, "out is 's3://a.html'; .* mounted"),
    ("reconstruct", {"data.threads": 2}, "no use for data.threads"),
]

MAE = [
    ({"method": "fusmae"}, "model.sensors is a field of mae, and method is"),
    ({"model.sensors": "S2"}, r"model.sensors is 'S2'; .*did you mean 's2'\?"),
    (
        {"model.sensors": "s1", "mask.drop_sensor": 0.5},
        "mask.drop_sensor=0.5 would take its only sensor away.*model.sensors=s1; set",
    ),
    (
        {"model.sensors": "s1", "loss.weight_s1": 0.0},
        "model.sensors is s1, whose weight .* set loss.weight_s1 above 0",
    ),
]
MULTIMAE = [
    ({"mask.alpha": 0.0}, "mask.alpha is 0.0; it must be a number above 0"),
    (
        {"model.decoder_depth": 0, "model.decoder_heads": 7},
        "model.decoder_dim=256, model.decoder_heads=7: .*multiple",
    ),
]
ROWS = [
    *(("pretrain_base", *row) for row in PRETRAINING),
    *(("pretrain_mae", *row) for row in MAE),
    *(("pretrain_multimae", *row) for row in MULTIMAE),
    *(("probe_bigearthnet", *row) for row in EVALUATION),
    *PREPARATION,
    *OTHERS,
]
