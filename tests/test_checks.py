"""Checks: what cannot work is refused with the field and its value."""

import math
import re

import pytest

from configs import pretrain_base
from data_pipeline import config_fields as fields
from data_pipeline.errors import InputError
from fusmae_jax import config as checks
from fusmae_jax.training import sharding


def config(**changes):
    c = pretrain_base.get_config()
    c.data.dir = "DIR"
    with c.unlocked():
        c.update_from_flattened_dict(changes)
    return c


def test_the_base_config_passes():
    checks.check_config(config())


@pytest.mark.parametrize("batch_size, accumulate", [(6, 1), (12, 2)])
def test_a_batch_that_does_not_divide_is_refused(batch_size, accumulate):
    c = config(batch_size=batch_size, accumulate=accumulate)
    with pytest.raises(InputError, match=f"batch_size={batch_size} .* 4 devices"):
        checks.check_devices(c, sharding.make_mesh())


def test_cudnn_without_a_gpu_is_refused_once_devices_are_known():
    c = config(**{"model.attention": "cudnn"})
    checks.check_config(c)
    with pytest.raises(InputError, match="needs an NVIDIA GPU, and this is a cpu"):
        checks.check_devices(c, sharding.make_mesh())


def test_steps_come_from_epochs():
    assert checks.count_steps(config(), 269_695) == (26_337, 2_633)


def test_less_than_one_batch_is_refused_with_the_numbers():
    with pytest.raises(InputError, match="1 epochs of 17 pairs .* batch of 64"):
        checks.count_steps(config(epochs=1, batch_size=64), 17)


def test_a_warm_up_of_all_steps_is_refused_with_the_numbers():
    c = config(**{"epochs": 12, "batch_size": 10, "optim.warmup_epochs": 11})
    with pytest.raises(InputError, match="warmup_epochs=11 of 1 pairs are all 1 steps"):
        checks.count_steps(c, 1)


def test_more_steps_than_32_bits_count_are_refused():
    with pytest.raises(InputError, match="epochs=2000000000 of 2048 pairs are 4000000"):
        checks.count_steps(config(epochs=2_000_000_000), 1_024 * 2)


@pytest.mark.parametrize(
    "row, fit, others",
    [
        (fields.whole(1, 9), (1, 9), (0, 10, 1.0, True, "1", None)),
        (fields.seed(), (0, 2**32 - 1), (-1, 2**32)),
        (fields.number(), (0, -1e9, 0.5), (math.nan, math.inf, 10**400, True, 1j)),
        (fields.number(above=0, most=1), (1, 0.5), (0, 1.5)),
        (fields.number(least=0, below=1), (0, 0.5), (1, -0.1)),
        (fields.flag(), (True, False), (0, 1, "True", None)),
        (fields.text(), ("", "a b", "é"), ("a\nb", "\0", "\udc80", b"a", None)),
        (fields.text(filled=True), ("a",), ("", " ")),
        (fields.text(lines=True), ("a\nb",), ("\0",)),
        (fields.choice("a", "b"), ("a",), ("c", "", None, ("a",))),
        (fields.several(fields.whole(0)), ((), (1, 2)), ((1, 1), [1], 1, (1, 2.5))),
        (fields.several(fields.whole(0), least=1), ((1,),), ((),)),
        (fields.several(fields.whole(0), length=2, twice=True), ((1, 1),), ((1,),)),
        (fields.group(), ({}, config()), ((), None, "a")),
    ],
)
def test_a_row_tells_what_fits_from_what_does_not(row, fit, others):
    assert all(map(row.fits, fit))
    assert not any(map(row.fits, others))


@pytest.mark.parametrize(
    "value, row, said",
    [
        (0, fields.whole(1), "x is 0; it must be a whole number of at least 1."),
        (2, fields.flag(), "x is 2; it must be True or False."),
        (
            0.5,
            fields.several(fields.number()),
            "x is 0.5; it must be a tuple, each a number that is finite, none of them "
            "twice, such as (0.5,).",
        ),
        (
            "lins",
            fields.choice("linear", "cubic"),
            "x is 'lins'; choose one of ['linear', 'cubic'] (did you mean 'linear'?).",
        ),
    ],
)
def test_a_value_is_refused_in_one_sentence(value, row, said):
    with pytest.raises(InputError, match=re.escape(said)):
        fields.check_value("x", value, row)


def test_a_long_value_is_shortened_and_kept_in_one_line():
    assert fields.show(10**5000) == "an int that cannot be printed"
    assert fields.show("a" * 500) == "'" + "a" * 76 + "..."
    assert fields.show(config().judge).count("\n") == 0


def test_a_field_is_optional_only_where_its_row_says_so():
    table = {"a": fields.whole(0), **fields.optional({"b": fields.whole(0)})}
    fields.check({"a": 1}, table, like="configs/x.py")
    with pytest.raises(InputError, match="b is 'c'"):
        fields.check({"a": 1, "b": "c"}, table, like="configs/x.py")
    with pytest.raises(InputError, match="no field a; give it .*, as configs/x.py"):
        fields.check({"b": 1}, table, like="configs/x.py")
