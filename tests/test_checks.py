"""Checks: what cannot work is refused with the field and its value."""

import pytest

from configs import pretrain_base
from data_pipeline.errors import InputError
from fusmae_jax import checks


def config(**changes):
    c = pretrain_base.get_config()
    with c.unlocked():
        c.update_from_flattened_dict(changes)
    return c


def test_the_base_config_passes():
    checks.check_config(config())


@pytest.mark.parametrize(
    "name, value",
    [
        ("log_every", 0),
        ("eval_pairs", 0),
        ("epochs", -1),
        ("batch_size", 0),
        ("accumulate", 0),
        ("optim.base_lr", -1.0),
        ("optim.base_lr", float("nan")),
        ("model.decoder_depth", -1),
        ("model.dtype", "float31"),
        ("view.crop_scale", (1,)),
        ("view.crop_ratio", (1, "a")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(InputError, match=rf"{name} is "):
        checks.check_config(config(**{name: value}))


def test_every_field_in_the_tables_exists():
    for name in (*checks.AT_LEAST_ONE, *checks.NOT_NEGATIVE):
        checks.field(config(), name)


@pytest.mark.parametrize("batch_size, accumulate", [(6, 1), (12, 2)])
def test_a_batch_that_does_not_divide_is_refused(batch_size, accumulate):
    c = config(batch_size=batch_size, accumulate=accumulate)
    with pytest.raises(InputError, match=f"batch_size={batch_size} .* 4 devices"):
        checks.check_config(c)


def test_steps_come_from_epochs():
    assert checks.count_steps(config(), 269_695) == (26_337, 2_633)


def test_less_than_one_batch_is_refused_with_the_numbers():
    with pytest.raises(InputError, match="1 epochs of 17 pairs .* batch of 64"):
        checks.count_steps(config(epochs=1, batch_size=64), 17)
