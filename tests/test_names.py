"""What the names of images tell."""

import pytest

from data_pipeline.archives import names


@pytest.mark.parametrize(
    "name, time",
    [
        ("S1A_IW_GRDH_1SDV_20170613T165043_33UUP_87_48", "2017-06-13T16:50:43"),
        ("S2B_MSIL2A_20170924T93020_69_24", "2017-09-24T09:30:20"),
        ("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57", "2017-06-13T10:10:31"),
        ("S2B_MSIL2A_20180204T94161_57_38", ""),  # counts 61 seconds
        ("ROIs1158_spring_s2_1_p30", ""),
    ],
)
def test_time_of_acquisition_is_read_from_the_name(name, time):
    assert names.acquired(name) == time
