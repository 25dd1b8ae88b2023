"""What a processing baseline added to Sentinel-2."""

import pytest

from data_pipeline import config_fields
from data_pipeline.archives import offsets
from data_pipeline.errors import InputError

TEXT = "PROCESSING_BASELINE=04.00"


@pytest.mark.parametrize("choice, added", [("auto", 1000), ("0", 0), ("1000", 1000)])
def test_a_number_goes_before_the_metadata(choice, added):
    assert offsets.CHOICE.fits(choice)
    assert offsets.offset(choice, TEXT, "x", "tag") == added


def test_metadata_that_name_no_baseline_leave_the_choice_to_the_user():
    with pytest.raises(InputError, match="^x does not say .*no tag.*s2_offset=1000"):
        offsets.offset("auto", "", "x", "tag")
    assert offsets.offset("0", "", "x", "tag") == 0


@pytest.mark.parametrize("choice", ["", "500", "AUTO", 0])
def test_another_choice_is_refused(choice):
    with pytest.raises(InputError, match="x is .*; choose one of .*'0', '1000'"):
        config_fields.check_value("x", choice, offsets.CHOICE)
