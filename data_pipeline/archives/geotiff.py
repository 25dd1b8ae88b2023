"""Single-band uncompressed GeoTIFFs, read without GDAL.

BigEarthNet's bands are plain strips. General readers take nine to forty times as long
as these few lines, which over 8 million files is hours.
"""

import struct

import numpy as np

from data_pipeline.archives import files
from data_pipeline.errors import InputError

_BYTE_ORDERS = {b"II*\0": "<", b"MM\0*": ">"}
_FIELD_TYPES = {1: "B", 3: "H", 4: "I"}  # BYTE, SHORT, LONG; no other is needed here
_DTYPES = {(1, 16): "u2", (3, 32): "f4"}  # by (SampleFormat, BitsPerSample)

_WIDTH, _HEIGHT, _BITS, _COMPRESSION = 256, 257, 258, 259
_STRIP_OFFSETS, _SAMPLES, _STRIP_BYTES, _SAMPLE_FORMAT = 273, 277, 279, 339
_REQUIRED = (_WIDTH, _HEIGHT, _BITS, _STRIP_OFFSETS, _STRIP_BYTES)


def read(data: bytes, name: str) -> np.ndarray:
    """Decodes the bytes of a GeoTIFF.

    Args:
        data: the whole file.
        name: what the file is called in errors.

    Returns:
        Pixels [H, W], uint16 or float32, in native byte order.

    Raises:
        InputError: the file is damaged, or is not an uncompressed single-band strip
            TIFF of uint16 or float32.
    """
    order = _BYTE_ORDERS.get(data[:4])
    if order is None:
        raise InputError(
            f"{name} is not a TIFF (it starts with {data[:4]!r}); unpack it again."
        )
    damaged = InputError(f"{name} is cut short or damaged; unpack it again.")
    try:
        tags, another = _directory(data, order)
    except struct.error:
        raise damaged from None
    reason = "holds more than one image" if another else _unsupported(tags)
    if reason:
        raise InputError(
            f"{name} {reason}; it must be an uncompressed single-band strip TIFF of "
            "uint16 or float32, as the BigEarthNet archives have them."
        )
    dtype = np.dtype(order + _DTYPES[_pixel_type(tags)])
    height, width = tags[_HEIGHT][0], tags[_WIDTH][0]
    size = height * width * dtype.itemsize
    if not size or sum(tags[_STRIP_BYTES]) != size or 0 in tags[_STRIP_OFFSETS]:
        raise damaged  # at 0 is a strip that was never written
    pixels = b"".join(
        data[start : start + length]
        for start, length in zip(tags[_STRIP_OFFSETS], tags[_STRIP_BYTES])
    )
    if len(pixels) != size:
        raise damaged
    image = np.frombuffer(pixels, dtype).reshape(height, width)
    return image.astype(dtype.newbyteorder("="), copy=False)


def read_file(path: str) -> np.ndarray:
    """Decodes the file at `path`; see `read` and `files.read`."""
    return read(files.read(path), path)


def _directory(data: bytes, order: str) -> tuple[dict[int, tuple[int, ...]], bool]:
    """Integer tags of the first image, and whether another image follows.

    Raises:
        struct.error: the file ends before its tags do.
    """
    (start,) = struct.unpack_from(order + "I", data, 4)
    (entries,) = struct.unpack_from(order + "H", data, start)
    tags = {}
    for at in range(start + 2, start + 2 + 12 * entries, 12):
        tag, field_type, count = struct.unpack_from(order + "HHI", data, at)
        code = _FIELD_TYPES.get(field_type)
        if code is None or not count:
            continue
        layout = f"{order}{count}{code}"
        at += 8
        if struct.calcsize(layout) > 4:  # too big for the entry, which points to it
            (at,) = struct.unpack_from(order + "I", data, at)
        tags[tag] = struct.unpack_from(layout, data, at)
    (following,) = struct.unpack_from(order + "I", data, start + 2 + 12 * entries)
    return tags, following != 0


def _unsupported(tags: dict[int, tuple[int, ...]]) -> str:
    """What about an image cannot be read, or "" when all of it can."""
    if tags.get(_COMPRESSION, (1,)) != (1,):
        return f"is compressed (TIFF compression {tags[_COMPRESSION][0]})"
    if tags.get(_SAMPLES, (1,)) != (1,):
        return f"has {tags[_SAMPLES][0]} bands in one file"
    missing = [tag for tag in _REQUIRED if not tags.get(tag)]
    if missing:
        return f"has no TIFF tag {missing[0]}, as when its pixels are tiled"
    if _pixel_type(tags) not in _DTYPES:
        sample_format, bits = _pixel_type(tags)
        return f"has pixels of {bits} bits in TIFF sample format {sample_format}"
    return ""


def _pixel_type(tags: dict[int, tuple[int, ...]]) -> tuple[int, int]:
    return tags.get(_SAMPLE_FORMAT, (1,))[0], tags[_BITS][0]
