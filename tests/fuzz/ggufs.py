"""Damaged GGUF files: the header byte by byte, its settings, its tensors, and parts of one model."""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.fuzz.configs import foreign
from tests.fuzz.damage import EITHER, REFUSED, WORKS, Case, Change, a_folder, a_loop, a_pipe, content, cut, endless, gone, instead, sparse

FILE = "m.gguf"
RUN, ALL = ("evaluate", "quantize"), ("evaluate", "dry-run", "plan", "serve")
GGUF = partial(Case, model="gguf")
VALUE = gguf.GGUFValueType
Settings, Tensors = dict[str, tuple[Any, Any]], dict[str, tuple[Any, Any]]


def rewritten(change: Callable[[Settings, Tensors], Any], **options: Any) -> Change:
    """The file written anew by gguf-py, with other settings {name: (value, type)} and tensors {name: (data, type)}."""

    def write(folder: Path) -> None:
        reader = gguf.GGUFReader(folder / FILE)
        settings = {name: (field.contents(), field.types[0]) for name, field in reader.fields.items() if not name.startswith("GGUF.")}
        tensors = {one.name: (np.array(one.data), one.tensor_type) for one in reader.tensors}
        change(settings, tensors)
        (kind, _) = settings.pop("general.architecture", ("llama", None))
        (folder / FILE).unlink()
        writer = gguf.GGUFWriter(folder / FILE, kind, **options)
        for name, (value, sort) in settings.items():
            if sort == VALUE.ARRAY:
                writer.add_array(name, value)
            else:
                writer.add_key_value(name, value, sort)
        for name, (data, sort) in tensors.items():
            writer.add_tensor(name, data, raw_dtype=sort)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write


def setting(name: str, value: Any, kind: Any = None) -> Change:
    """Another value of a setting, of its own type unless one is given."""
    return rewritten(lambda settings, _: settings.__setitem__(name, (value, kind or settings[name][1])))


def without(*names: str) -> Change:
    return rewritten(lambda settings, tensors: [(settings.pop(name, None), tensors.pop(name, None)) for name in names])


def bytes_at(place: int, data: bytes) -> Change:
    def change(folder: Path) -> None:
        whole = bytearray((folder / FILE).read_bytes())
        whole[place : place + len(data)] = data
        (folder / FILE).write_bytes(whole)

    return change


def after(name: bytes, data: bytes, skip: int = 0) -> Change:
    """Other bytes `skip` bytes behind a name in the header."""

    def change(folder: Path) -> None:
        bytes_at((folder / FILE).read_bytes().index(name) + len(name) + skip, data)(folder)

    return change


def crafted(settings: list[bytes], tensors: list[bytes], counts: tuple[int, int] | None = None) -> Change:
    """A file of these settings and tensors alone."""
    many = counts or (len(tensors), len(settings))
    return content(FILE, b"GGUF" + struct.pack("<IQQ", 3, *many) + b"".join([*settings, *tensors]) + b"\0" * 64)


def word(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


LLAMA = word("general.architecture") + struct.pack("<I", 8) + word("llama")
OTHER = word("general.architecture") + struct.pack("<I", 8) + word("gemma2")


def huge(folder: Path) -> None:
    """A header that speaks of 2^60 strings, in a file of 2 GB of zeros: each of length 0."""
    header = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + word("a") + struct.pack("<IIQ", 9, 8, 1 << 60)
    with (folder / FILE).open("wb") as stream:
        stream.write(header)
        stream.truncate(1 << 31)


def many(what: str) -> Change:
    """So many settings, or tensors, in 2 GB of zeros."""

    def change(folder: Path) -> None:
        with (folder / FILE).open("wb") as stream:
            stream.write(b"GGUF" + struct.pack("<IQQ", 3, *((1 << 60, 0) if what == "tensors" else (0, 1 << 60))))
            stream.truncate(1 << 31)

    return change


def parts(number: int, lost: int | None = None, says: int | None = None) -> Change:
    """The model in numbered parts, which gguf-py's settings call so many; one of them lost."""

    def change(folder: Path) -> None:
        names = [f"m-{index + 1:05d}-of-{number:05d}.gguf" for index in range(number)]
        rewritten(lambda settings, _: settings.__setitem__("split.count", (says or number, VALUE.UINT16)))(folder)
        (folder / FILE).rename(folder / names[0])
        for name in names[1:]:
            content(name, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + word("split.count") + struct.pack("<IH", 2, says or number))(folder)
        if lost is not None:
            (folder / names[lost]).unlink()

    return change


def renamed(name: str) -> Change:
    def change(folder: Path) -> Path:
        return (folder / FILE).rename(folder / name)

    return change


def with_code(folder: Path) -> None:
    """Beside it, a configuration and a tokenizer's configuration that name Python code."""
    content("config.json", json.dumps({"model_type": "llama"}))(folder)
    content("tokenizer_config.json", "{}")(folder)
    foreign(folder)


def of_another_kind(folder: Path) -> None:
    """An architecture that qlab leaves to transformers, and code beside it."""
    rewritten(lambda settings, _: settings.__setitem__("general.architecture", ("gemma2", VALUE.STRING)))(folder)
    with_code(folder)


WHOLE = (
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "rope.dimension_count",
)
UNSIGNED: dict[str, tuple[Any, Any]] = {
    "0": (0, None),
    "2^32-1": (2**32 - 1, None),
    "2^60": (2**60, VALUE.UINT64),
    "-1": (-1, VALUE.INT32),
    "text": ("x", VALUE.STRING),
    "NaN": (float("nan"), VALUE.FLOAT32),
    "1e30": (1e30, VALUE.FLOAT32),
    "an array": ([4, 4], VALUE.ARRAY),
    "3": (3, None),
}
REAL = ("attention.layer_norm_rms_epsilon", "rope.freq_base")
TEXTS: dict[str, list[tuple[Any, Any]]] = {
    "tokenizer.ggml.model": [("nosuch", None), ("llama", None), (5, VALUE.UINT32)],
    "tokenizer.ggml.pre": [("nosuch", None), ("default", None), (5, VALUE.UINT32)],
    "tokenizer.ggml.tokens": [
        (["a"], None),
        ([5, 6], None),
        (["a"] * 4096, None),
        ("x", VALUE.STRING),
        ([f"t{i}" for i in range(5000)], None),
    ],
    "tokenizer.ggml.token_type": [
        ([1], None),
        ([99] * 4096, None),
        ([-1] * 4096, None),
        (["x"], None),
        ([6] * 4096, None),
        ([3] * 4096, None),
    ],
    "tokenizer.ggml.merges": [(["a"], None), ([5], None), (["no such"], None), (["a b c"], None), ("x", VALUE.STRING)],
    "tokenizer.ggml.bos_token_id": [(10**6, None), (-1, VALUE.INT32), ("x", VALUE.STRING), (1.5, VALUE.FLOAT32)],
    "tokenizer.ggml.eos_token_id": [(10**6, None), (-1, VALUE.INT32), ("x", VALUE.STRING)],
    "tokenizer.chat_template": [("{{", VALUE.STRING), (5, VALUE.UINT32)],
    "general.architecture": [
        ("", VALUE.STRING),
        ("nosuch", VALUE.STRING),
        ("gemma2", VALUE.STRING),
        ("qwen2", VALUE.STRING),
        ("phi3", VALUE.STRING),
        ("bert", VALUE.STRING),
        ("clip", VALUE.STRING),
    ],
    "general.alignment": [(0, VALUE.UINT32), (3, VALUE.UINT32), (1 << 31, VALUE.UINT32), ("x", VALUE.STRING)],
    "llama.rope.scaling.type": [("nosuch", VALUE.STRING), (5, VALUE.UINT32), ("yarn", VALUE.STRING), ("linear", VALUE.STRING)],
    "llama.rope.scaling.factor": [(0.0, VALUE.FLOAT32), ("x", VALUE.STRING)],
    "llama.expert_count": [(8, VALUE.UINT32), ("x", VALUE.STRING)],
    "llama.attention.sliding_window": [(16, VALUE.UINT32), (-1, VALUE.INT32), ("x", VALUE.STRING)],
    "llama.vocab_size": [(1, VALUE.UINT32), ("x", VALUE.STRING)],
    "split.count": [(2, VALUE.UINT16), (0, VALUE.UINT16), ("x", VALUE.STRING), (-1, VALUE.INT32)],
    "general.file_type": [(9999, VALUE.UINT32), ("x", VALUE.STRING)],
}


def reshaped(name: str, change: Callable[[Any], Any]) -> Change:
    return rewritten(lambda _, tensors: tensors.__setitem__(name, (change(tensors[name][0]), tensors[name][1])))


CASES = [
    GGUF("a GGUF file as it is made", lambda folder: None, RUN, outcome=WORKS),
    GGUF("written anew by gguf-py", rewritten(lambda *_: None), RUN, outcome=WORKS),
    GGUF("in two parts", parts(2), RUN, outcome=WORKS),
    *(
        GGUF(f"cut at {share:.4%}", cut(FILE, share), ALL, says=FILE)
        for share in (0, 0.000001, 0.00001, 0.0001, 0.01, 0.05, 0.3, 0.9, 0.99999)
    ),
    *(
        GGUF(
            f"{key} {name}",
            setting(f"llama.{key}", *value),
            ("evaluate", "plan"),
            outcome=EITHER if name in ("3", "an array") else REFUSED,
        )
        for key in WHOLE
        for name, value in UNSIGNED.items()
        if (key, name) not in (("context_length", "3"),)
    ),
    *(GGUF(f"{key} gone", without(f"llama.{key}"), RUN, outcome=EITHER) for key in (*WHOLE, *REAL)),
    *(
        GGUF(f"{key} {value[0]}", setting(f"llama.{key}", *value), RUN, outcome=EITHER if value[0] in (0.0, 1e30) else REFUSED)
        for key in REAL
        for value in ((float("nan"), None), (float("inf"), None), ("x", VALUE.STRING), (-1.0, None), (0.0, None), (1e30, None))
    ),
    *(
        GGUF(f"{key} {str(value[0])[:30]}", setting(key, value[0], value[1]), RUN, outcome=EITHER)
        for key, found in TEXTS.items()
        for value in found
    ),
    *(
        GGUF(f"without {name}", without(name), RUN, outcome=outcome)
        for name, outcome in (
            ("tokenizer.ggml.tokens", REFUSED),
            ("tokenizer.ggml.merges", REFUSED),
            ("tokenizer.ggml.token_type", EITHER),
            ("tokenizer.ggml.model", REFUSED),
            ("token_embd.weight", REFUSED),
            ("output_norm.weight", REFUSED),
            ("blk.1.ffn_up.weight", REFUSED),
            ("blk.0.attn_norm.weight", REFUSED),
        )
    ),
    # tensors
    GGUF("fewer rows in a matrix", reshaped("blk.0.ffn_up.weight", lambda old: old[:128]), RUN, says="ffn_up"),
    GGUF("no rows in a matrix", reshaped("blk.0.ffn_up.weight", lambda old: old[:0]), RUN),
    GGUF("a matrix of one row", reshaped("blk.0.ffn_up.weight", lambda old: old[0]), RUN),
    GGUF("fewer rows in the embedding", reshaped("token_embd.weight", lambda old: old[:100]), RUN),
    GGUF("NaN in a norm", reshaped("output_norm.weight", lambda old: old * np.nan), RUN, says="NaN"),
    GGUF("NaN in the scales of a matrix", reshaped("blk.0.ffn_up.weight", lambda old: np.full_like(old, 255)), RUN, says="NaN"),
    GGUF(
        "a tensor that no such model has",
        rewritten(lambda _, tensors: tensors.__setitem__("blk.0.x.weight", tensors["output_norm.weight"])),
        RUN,
        says="blk.0.x.weight",
    ),
    GGUF(
        "a tensor in another block",
        rewritten(lambda _, tensors: tensors.__setitem__("blk.7.attn_norm.weight", tensors["output_norm.weight"])),
        RUN,
    ),
    GGUF("a type that nobody decodes", after(b"blk.0.ffn_up.weight", struct.pack("<I", 27), 4 + 16), RUN),
    GGUF("an unknown type", after(b"blk.0.ffn_up.weight", struct.pack("<I", 9999), 4 + 16), ALL, says=FILE),
    GGUF("a type that was dropped", after(b"blk.0.ffn_up.weight", struct.pack("<I", 4), 4 + 16), ALL, says=FILE),
    GGUF("five dimensions", after(b"blk.0.ffn_up.weight", struct.pack("<I", 5)), ALL, says=FILE),
    GGUF("no dimensions", after(b"blk.0.ffn_up.weight", struct.pack("<I", 0)), ALL, says=FILE),
    GGUF("a dimension of 0", after(b"blk.0.ffn_up.weight", struct.pack("<Q", 0), 4), ALL),
    GGUF("a dimension of 2^63", after(b"blk.0.ffn_up.weight", struct.pack("<Q", 1 << 63), 4), ALL, says=FILE),
    GGUF("a place beyond the file", after(b"blk.0.ffn_up.weight", struct.pack("<Q", 1 << 62), 4 + 16 + 4), ALL, says=FILE),
    GGUF("a place that is not aligned", after(b"blk.0.ffn_up.weight", struct.pack("<Q", 7), 4 + 16 + 4), RUN, outcome=EITHER),
    # the header
    GGUF("another magic", bytes_at(0, b"GGML"), ALL, says="does not begin with GGUF"),
    GGUF("version 1", bytes_at(4, struct.pack("<I", 1)), ALL, says="version"),
    GGUF("version 99", bytes_at(4, struct.pack("<I", 99)), ALL, says="version"),
    GGUF("the other byte order", bytes_at(4, struct.pack(">I", 3)), ALL, says="little-endian"),
    GGUF("2^60 tensors", bytes_at(8, struct.pack("<Q", 1 << 60)), ALL, says=FILE),
    GGUF("2^60 settings", bytes_at(16, struct.pack("<Q", 1 << 60)), ALL, says=FILE),
    GGUF("no tensors", crafted([LLAMA], []), ALL),
    GGUF("no tensors, of another kind", crafted([OTHER], []), ALL),
    GGUF("nothing", crafted([], []), ALL),
    GGUF("a name of 2^60 bytes", bytes_at(24, struct.pack("<Q", 1 << 60)), ALL, says=FILE),
    GGUF("a name that is no UTF-8", crafted([struct.pack("<Q", 1) + b"\xff" + struct.pack("<IB", 0, 1)], []), ALL, says=FILE),
    GGUF("an unknown type of a setting", crafted([word("a") + struct.pack("<IB", 99, 1)], []), ALL, says=FILE),
    GGUF(
        "an array in an array", crafted([word("a") + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 0, 1) + b"\0"], []), ALL, says=FILE
    ),
    GGUF("an array of 2^60 numbers", crafted([word("a") + struct.pack("<IIQ", 9, 0, 1 << 60)], []), ALL, says=FILE),
    GGUF("an array of 2^60 strings", crafted([word("a") + struct.pack("<IIQ", 9, 8, 1 << 60)], []), ALL, says=FILE),
    GGUF("a setting twice", crafted([LLAMA, LLAMA], []), ALL, says="twice"),
    GGUF("a tensor twice", crafted([LLAMA], [word("t") + struct.pack("<IQIQ", 1, 1, 0, 0)] * 2), ALL, says="twice"),
    GGUF("2^60 strings in 2 GB of zeros", huge, ("evaluate", "plan"), says=FILE),
    GGUF("2^60 settings in 2 GB of zeros", many("settings"), ("evaluate", "plan"), says=FILE),
    GGUF("2^60 tensors in 2 GB of zeros", many("tensors"), ("evaluate", "plan"), says=FILE),
    # files and parts
    GGUF("a pointer of git-lfs", content(FILE, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), ALL, says="git"),
    GGUF("a folder", a_folder(FILE), ALL, says=FILE),
    GGUF("a pipe", a_pipe(FILE), ALL, says=FILE),
    GGUF("a link to itself", a_loop(FILE), ALL, says=FILE),
    GGUF("an endless file", endless(FILE), ALL, says=FILE),
    GGUF("zeros", sparse(FILE, 1 << 31), ALL, says=FILE),
    GGUF("no file", gone(FILE), RUN),
    GGUF("a file beside it", lambda folder: shutil.copy(folder / FILE, folder / "n.gguf") and None, ALL),
    GGUF("an empty file beside it", content("n.gguf", b""), ALL),
    GGUF("a part is missing", parts(3, lost=1), ALL, says="m-00002-of-00003.gguf"),
    GGUF("the first part is missing", parts(3, lost=0), ALL, says="m-00001-of-00003.gguf"),
    GGUF("a part says another number", parts(2, says=3), RUN, says="parts"),
    GGUF("a hundred thousand parts", renamed("m-00001-of-99999.gguf"), RUN, says="m-0000"),
    GGUF("part 0 of 0", renamed("m-00000-of-00000.gguf"), RUN),
    GGUF("a line break in its name", renamed("m\nSYSTEM evil.gguf"), ("serve",), says="will not do"),
    GGUF("$NAME in its name", renamed("${HOME}.gguf"), ("serve",), outcome=EITHER),
    GGUF("code beside it", with_code, (*RUN, "plan"), outcome=EITHER),
    GGUF("code beside one of another kind", of_another_kind, (*RUN, "plan"), outcome=EITHER),
    GGUF("config.json beside it is no JSON", content("config.json", "{"), RUN, outcome=EITHER),
    GGUF("tokenizer.json beside it is no JSON", content("tokenizer.json", "{"), RUN, says="tokenizer.json"),
    GGUF(
        "tokenizer.json beside it is a pipe",
        instead("tokenizer.json", lambda path: __import__("os").mkfifo(path)),
        RUN,
        says="tokenizer.json",
    ),
]
