"""What a processing baseline added to Sentinel-2, by its metadata or by the user."""

from data_pipeline import units
from data_pipeline.config_fields import choice
from data_pipeline.errors import InputError

# What s2_offset may be.
CHOICE = choice(
    "auto",
    "0",
    str(units.OFFSET),
    meaning="What was added to each DN and is taken out, as processing baselines from "
    "04.00 (2022) on add 1000; auto looks for the baseline in names and metadata.",
)


def offset(choice: str, text: str, name: str, lacking: str) -> int:
    """What was added to each DN.

    Args:
        choice: a number, or "auto" to take the baseline that the text names.
        text: what the metadata say, see `units.processing_baseline`.
        name: what the image is called in errors.
        lacking: what of it would tell the baseline, in words.

    Raises:
        InputError: the text names no baseline, and had to.
    """
    if choice != "auto":
        return int(choice)
    baseline = units.processing_baseline(text)
    if baseline is None:
        raise InputError(
            f"{name} does not say by which processing baseline it was made (it has no "
            f"{lacking}); pass --config.read.s2_offset={units.OFFSET} when "
            f"{units.OFFSET} was added to each DN, as since January 2022, and =0 when "
            "not or when it was removed."
        )
    return units.baseline_offset(baseline)
