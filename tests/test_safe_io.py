"""Files of strangers: what they claim is checked before memory is given."""

import io
import json
import os
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

from data_pipeline import safe_io


def npy(array=None, header: str = "", data: bytes = b"") -> bytes:
    if array is not None:
        written = io.BytesIO()
        np.save(written, array)
        return written.getvalue()
    return b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header.encode() + data


def claim(dtype: str, shape: tuple) -> str:
    return f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n"


def zipped(path, content: dict[str, bytes], compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as file:
        for name, data in content.items():
            file.writestr(f"{name}.npy", data)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_as_numpy_wrote_them(tmp_path, save):
    arrays = {
        "text": np.array(["a", "", "é𝄞"]),
        "number": np.arange(6, dtype=">i4").reshape(2, 3).T,  # in Fortran's order
        "none": np.zeros((0, 5), np.float32),
        "scalar": np.float64(0.5),
        "probe/both/0.1/0": np.eye(3, dtype=np.float16),
    }
    save(tmp_path / "x.npz", **arrays)
    got = safe_io.read_arrays(tmp_path / "x.npz")
    assert got.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(got[name], array, strict=True)
        assert got[name].flags.writeable
    some = safe_io.read_arrays(tmp_path / "x.npz", lambda name: name == "text")
    assert list(some) == ["text"]


BAD = {
    "an object": npy(header=claim("|O", (1,)), data=pickle.dumps([0])),
    "a petabyte": npy(header=claim("<f8", (10**15,)), data=bytes(8)),
    "a long text": npy(header=claim("<U2000000000", (9,)), data=bytes(8)),
    "less than nothing": npy(header=claim("<f8", (-1, -1)), data=bytes(8)),
    "too much": npy(header=claim("<f8", (1,)), data=bytes(16)),
    "no header": npy(header="[" * 5000),
    "an unhashable key": npy(header="{[]: 1}"),
    "no letters": npy(header=claim("<U1", (1,)), data=b"\xff" * 4),
    "half a letter": npy(header=claim("<U1", (1,)), data=b"\x00\xd8\0\0"),
    "a record": npy(np.zeros(2, "i4,f4")),
    "a later version": b"\x93NUMPY\3\0" + bytes(100),
    "nothing": b"",
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_array_that_is_not_what_it_claims_is_refused(tmp_path, data):
    (tmp_path / "x.npy").write_bytes(data)
    with pytest.raises(ValueError):
        safe_io.read_array(tmp_path / "x.npy")
    with pytest.raises(ValueError):
        safe_io.read_arrays(zipped(tmp_path / "x.npz", {"a": data}))
    with pytest.raises(ValueError, match="it is no .npz|it is no regular|empty|zip"):
        safe_io.read_arrays(tmp_path / "x.npy")


def test_zip_whose_members_promise_more_than_can_be_in_them_is_refused(tmp_path):
    path = zipped(tmp_path / "x.npz", {"a": npy(np.zeros(1000))})
    data = path.read_bytes()
    with zipfile.ZipFile(path) as file:
        size = file.getinfo("a.npy").file_size.to_bytes(4, "little")
    path.write_bytes(data.replace(size, (1 << 31).to_bytes(4, "little")))
    with pytest.raises(ValueError, match="a.npy cannot hold 2147483648 bytes"):
        safe_io.read_arrays(path)


def test_arrays_that_take_more_than_any_are_refused_unread(tmp_path, monkeypatch):
    arrays = {"a": np.zeros(1000), "b": np.zeros(1000)}
    np.savez_compressed(tmp_path / "x.npz", **arrays)
    assert len(safe_io.read_arrays(tmp_path / "x.npz")) == 2
    monkeypatch.setattr(safe_io, "MOST_ARRAYS", 16_000)
    with pytest.raises(ValueError, match="its arrays take 16256 bytes, where 16000"):
        safe_io.read_arrays(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", **arrays)  # no more than the file itself
    assert len(safe_io.read_arrays(tmp_path / "x.npz")) == 2


@pytest.mark.parametrize("kind, size", [("u1", 1), ("U1", 4)])
def test_arrays_take_little_more_memory_than_they_are_large(tmp_path, kind, size):
    count = (1 << 25) // size
    np.savez_compressed(tmp_path / "x.npz", a=np.zeros(count, kind))
    tracemalloc.start()
    try:
        safe_io.read_arrays(tmp_path / "x.npz")
        assert tracemalloc.get_traced_memory()[1] < 1.5 * (1 << 25)
    finally:
        tracemalloc.stop()


def test_zip_whose_members_share_their_bytes_is_refused(tmp_path):
    path, content = tmp_path / "x.npz", npy(np.arange(5000))
    with zipfile.ZipFile(path, "w") as file:
        for name in "ab":
            file.writestr(f"{name}.npy", content)
        file.filelist[1].header_offset = file.filelist[0].header_offset
        file.fp.seek(len(content) + 60)  # so that the directory follows the first
        file.fp.truncate()
        file.start_dir = file.fp.tell()
    with pytest.raises(ValueError, match="its members have .* bytes, and the file"):
        safe_io.read_arrays(path)


def test_zip_with_a_damaged_byte_or_another_compression_is_refused(tmp_path):
    path = zipped(tmp_path / "x.npz", {"a": npy(np.arange(99))}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[500] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="CRC"):
        safe_io.read_arrays(path)
    zipped(path, {"a": npy(np.arange(99))}, zipfile.ZIP_LZMA)
    with pytest.raises(ValueError, match="compressed otherwise"):
        safe_io.read_arrays(path)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('"\\ud800"', "surrogates not allowed"),
        ("1" * 5000, "digits"),
        ("{", "double quotes"),
        ("", "Expecting value"),
        (b'"\xff"', "invalid start byte"),
        (b'"\xed\xa0\x80"', "invalid continuation byte"),
    ],
)
def test_json_that_is_none_is_refused(text, reason):
    with pytest.raises(ValueError, match=reason):
        safe_io.parse_json(text)


def test_json_comes_back_with_every_letter(tmp_path):
    value = {"a": ["é𝄞\n", None, True, 1.5, 10**30], "\\ud800": {}}
    for escaped in (True, False):
        text = json.dumps(value, ensure_ascii=escaped)
        (tmp_path / "x.json").write_text(text)
        assert safe_io.read_json(tmp_path / "x.json") == value


def test_json_larger_than_any_is_refused_unread(tmp_path, monkeypatch):
    (tmp_path / "x.json").write_text(" " * 99)
    monkeypatch.setattr(safe_io, "MOST_JSON", 98)
    with pytest.raises(ValueError, match="it has 99 bytes"):
        safe_io.read_json(tmp_path / "x.json")


def test_what_may_never_end_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(ValueError, match="a device or a pipe"):
            safe_io.open_file(path)
