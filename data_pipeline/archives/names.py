"""What the names of images tell: when the satellite passed."""

import re

# BigEarthNet v1 lacks the leading zero of the hour in part of its names.
_TIME = re.compile(r"_(\d{4})(\d\d)(\d\d)T(\d{1,2})(\d\d)(\d\d)_")


def acquired(name: str) -> str:
    """Acquisition time in ISO 8601, from the name of a Sentinel image or patch.

    A name without time, or that counts 60 seconds or more, tells none: "".
    """
    found = _TIME.search(name)
    if not found or int(found[6]) > 59:
        return ""
    year, month, day, hour, minute, second = found.groups()
    return f"{year}-{month}-{day}T{int(hour):02d}:{minute}:{second}"
