"""The header as gguf-py's own reader tells it."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from qlab.formats.gguf.header import Tensor, read_header
from qlab.models.gguf import gguf_config
from qlab.support.errors import UserError

KINDS = ("F32", "F16", "Q8_0", "Q4_0", "Q2_K", "Q4_K", "Q6_K")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with a setting of every type, arrays among them, and tensors of several kinds."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    for name in ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"):
        getattr(writer, f"add_{name}")(f"a.{name}", 7)
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 0.1)
    writer.add_bool("a.bool", True)
    writer.add_array("a.words", ["one", "zwei", "trois élèves", ""])
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_string("a.last", "that the arrays were skipped to the byte")
    for kind in KINDS:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        data = np.zeros((3, 512 // block * size), np.uint8)
        writer.add_tensor(f"blk.0.{kind}", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "m.gguf"


def test_it_says_what_gguf_py_says(file: Path) -> None:
    found, judge = read_header(file), gguf.GGUFReader(file)
    assert found.tensors == {
        one.name: Tensor(one.tensor_type.name, int(one.n_bytes), tuple(map(int, reversed(one.shape))), int(one.data_offset))
        for one in judge.tensors
    }
    assert [tensor.kind for tensor in found.tensors.values()] == list(KINDS)
    expected = {name: field.contents() for name, field in judge.fields.items() if not name.startswith("GGUF.")}
    single = {name: value for name, value in expected.items() if not isinstance(value, list)}
    assert found.settings == single
    assert len(single) == 13


def test_a_file_that_breaks_off(file: Path) -> None:
    whole = file.read_bytes()
    header = whole.index(b"blk.0.Q6_K") + 30
    for length in (0, 10, 23, 24, 60, header // 2, header - 8, len(whole) - 40):
        file.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"m\.gguf is no"):
            read_header(file)
        with pytest.raises(UserError, match=r"m\.gguf is no"):
            gguf_config(file)  # through it, too


@pytest.mark.parametrize(
    ("at", "change", "said"),
    [(0, b"GGJT", "does not begin with GGUF"), (4, b"\x01", "version is 1"), (4, b"\x00\x00\x00\x03", "little-endian"),
     (24, b"\xff" * 8, "breaks off"), (32, b"\xff", "no whole GGUF file")],
)  # fmt: skip
def test_what_is_no_such_file(file: Path, at: int, change: bytes, said: str) -> None:
    content = bytearray(file.read_bytes())
    content[at : at + len(change)] = change
    file.write_bytes(bytes(content))
    with pytest.raises(UserError, match=said):
        read_header(file)


def word(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def crafted(settings: list[bytes], tensors: list[bytes]) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(settings)) + b"".join([*settings, *tensors])


ARRAY, BYTE, WORD = 9, 0, 8


@pytest.mark.parametrize(
    ("settings", "tensors", "said"),
    [
        ([word(b"a") + struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 3000], [], "no whole GGUF file"),
        (
            [word(b"a") + struct.pack("<IIQ", ARRAY, BYTE, 2**64 - 1), word(b"b") + struct.pack("<IB", BYTE, 1)],
            [],
            "beyond what it can hold",
        ),
        ([word(b"a") + struct.pack("<IIQQ", ARRAY, WORD, 1, 2**64 - 1)], [], "breaks off"),
        ([word(b"a") + struct.pack("<IIQ", ARRAY, BYTE, 9)], [], "breaks off"),
        ([word(b"a") + struct.pack("<IB", BYTE, 1)] * 2, [], "has a twice"),
        ([word(b"general.alignment") + struct.pack("<II", 4, 0)], [], "alignment is 0"),
        ([], [word(b"t") + struct.pack("<I40000Q", 40000, *[2**64 - 1] * 40000) + struct.pack("<IQ", 0, 0)], "t has 40000 dimensions"),
        ([], [word(b"t") + struct.pack("<IQIQ", 1, 100, 12, 0)], "rows of t have 100 weights, Q4_K wants them by 256"),
        ([], [word(b"t") + struct.pack("<IQQIQ", 2, 2**63, 2**63, 0, 0)], "bytes of its tensors are missing"),
        ([], [word(b"t") + struct.pack("<IQIQ", 1, 8, 0, 0)] * 2, "has t twice"),
        ([], [word(b"t") + struct.pack("<IQIQ", 1, 0, 0, 0)], r"t has the shape \[0\]"),
        ([], [word(b"t") + struct.pack("<IQIQ", 1, 8, 9999, 0)], "llama.cpp does not know"),
    ],
)
def test_a_crafted_file_is_refused_at_once(settings: list[bytes], tensors: list[bytes], said: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(crafted(settings, tensors))
    with pytest.raises(UserError, match=said):
        read_header(tmp_path / "m.gguf")
