"""Damaged safetensors files and indexes, and files that are none."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.damage import (
    EITHER,
    WEIGHTS,
    WORKS,
    Case,
    Change,
    a_folder,
    a_loop,
    a_pipe,
    both,
    config,
    content,
    cut,
    endless,
    gone,
    header,
    ints,
    poisoned,
    sparse,
    split,
    tensor,
    tensors,
)

INDEX = f"{WEIGHTS}.index.json"
UP, NORM, EMBEDDING = "layers.0.mlp.up_proj.weight", "model.norm.weight", "embed_tokens.weight"
ALL = ("evaluate", "quantize", "dry-run")


def shard(name: str) -> str:
    """Blocks in one file, the rest in another."""
    return "model-00001-of-00002.safetensors" if ".layers." in name else "model-00002-of-00002.safetensors"


def index(**places: Any) -> Change:
    return content(INDEX, json.dumps({"weight_map": places}))


def twin(folder: Path) -> None:
    """Another model outside the folder, which the index names."""
    (folder.parent / "twin").mkdir()
    shutil.copy(folder / WEIGHTS, folder.parent / "twin" / WEIGHTS)
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": f"../twin/{WEIGHTS}"}}))


def pickle_below(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "x.bin").write_bytes(b"\x80\x02.")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "sub/x.bin"}}))


def overlapping(entries: dict[str, Any]) -> None:
    """Two tensors of one shape at one place."""
    names = [name for name in entries if name.endswith("gate_proj.weight")]
    entries[names[0]]["data_offsets"] = entries[names[1]]["data_offsets"]


def entry(ending: str, **new: Any) -> Change:
    """Change what the header says of the first tensor whose name ends so."""

    def change(entries: dict[str, Any]) -> None:
        entries[next(name for name in sorted(entries) if name.endswith(ending))] |= new

    return header(change)


def renamed(entries: dict[str, Any]) -> dict[str, Any]:
    return {"x" * 5000 + "é\n\x1b[31m" if name.endswith(UP) else name: value for name, value in entries.items()}


def declared(length: int, text: bytes = b"{}") -> Change:
    """A file whose first eight bytes say how long its header is."""
    return content(WEIGHTS, struct.pack("<Q", length) + text)


def twice(folder: Path) -> None:
    """One tensor in both shards, with other numbers."""
    split(shard)(folder)
    tensors(lambda state: state.update({"model.norm.weight": torch.ones(256).half()}), "model-00001-of-00002.safetensors")(folder)


CASES = [
    Case("integers for floats", tensor(UP, ints), ALL, says="up_proj"),
    Case("integers for the floats of a norm", tensor(NORM, ints), ALL, says="norm.weight"),
    Case("bytes for floats", tensor(UP, lambda old: old.to(torch.uint8)), ALL),
    Case("truth for floats", tensor(UP, lambda old: old > 0), ALL),
    Case("truth for the floats of a norm", tensor(NORM, lambda old: old > 0), ALL),
    Case("FP8 for floats", tensor(UP, lambda old: old.to(torch.float8_e4m3fn)), ALL),
    Case("FP8 for the floats of a norm", tensor(NORM, lambda old: old.to(torch.float8_e4m3fn)), ALL),
    Case("complex numbers", tensor(UP, lambda old: old.to(torch.complex64)), ALL),
    Case("complex numbers in a norm", tensor(NORM, lambda old: old.to(torch.complex64)), ALL),
    Case("FP64 for FP16", tensor(UP, lambda old: old.double()), outcome=WORKS),
    Case("half the rows", tensor(UP, lambda old: old[:128]), ALL, says="up_proj"),
    Case("a row too many in the embedding", tensor(EMBEDDING, lambda old: torch.cat([old, old[:1]])), ALL, says="embed_tokens"),
    Case("a flattened matrix", tensor(UP, torch.flatten), ALL, says="up_proj"),
    Case("a matrix of three dimensions", tensor(UP, lambda old: old[None]), ALL, says="up_proj"),
    Case("a matrix turned", tensor(UP, torch.t), ALL, says="up_proj"),
    Case("a single number", tensor(UP, lambda old: old[0, 0]), ALL, says="up_proj"),
    Case("an empty matrix", tensor(UP, lambda old: old[:0]), ALL, says="up_proj"),
    Case("an empty norm", tensor(NORM, lambda old: old[:0]), ALL, says="norm.weight"),
    Case("a missing tensor", tensor(UP, lambda old: None), ALL, says="up_proj"),
    Case("a missing norm", tensor(NORM, lambda old: None), ALL, says="norm.weight"),
    Case("a missing embedding", tensor(EMBEDDING, lambda old: None), ALL, says="embed_tokens"),
    Case("no tensors", tensors(dict.clear), ALL),
    Case("one NaN", tensor(UP, poisoned(torch.nan)), says="NaN"),
    Case("one NaN in a norm", tensor(NORM, poisoned(torch.nan)), says="NaN"),
    Case("one NaN in the embedding", tensor(EMBEDDING, poisoned(torch.nan)), says="NaN"),
    Case("one infinity", tensor(UP, poisoned(-torch.inf)), says="infinit"),
    Case("the largest numbers", tensors(lambda state: [one.fill_(65504) for one in state.values()]), outcome=EITHER),
    Case("numbers beyond FP16", tensors(lambda state: state.update({n: t.float() * 1e30 for n, t in state.items()})), outcome=EITHER),
    Case("nothing but zeros", tensors(lambda state: [one.zero_() for one in state.values()]), outcome=EITHER),
    Case(
        "names as of another library",
        tensors(lambda s: [s.__setitem__(n.removeprefix("model."), s.pop(n)) for n in list(s)]),
        outcome=EITHER,
    ),
    Case(
        "names as of another library, NaN",
        tensors(lambda s: [s.__setitem__(n.removeprefix("model."), s.pop(n) * torch.nan) for n in list(s)]),
    ),
    Case("a name without end", header(renamed), ALL),
    Case("a bias that the model has not", tensors(lambda s: s.__setitem__("model.layers.0.mlp.up_proj.bias", torch.ones(512))), ALL),
    Case(
        "a block that the model has not", tensors(lambda s: s.__setitem__("model.layers.7.mlp.up_proj.weight", torch.ones(512, 256))), ALL
    ),
    # the header
    Case("an empty file", content(WEIGHTS, b""), ALL, says="damaged"),
    Case("seven bytes", content(WEIGHTS, b"\0" * 7), ALL, says="damaged"),
    Case("a header of 2^63 bytes", declared(1 << 63), ALL, says="damaged"),
    Case("a header of a gigabyte", declared(1 << 30), ALL, says="damaged"),
    Case("a header that is a list", declared(2, b"[]"), ALL, says="damaged"),
    Case("a header that is no JSON", declared(2, b"{["), ALL, says="damaged"),
    Case("a header that is no UTF-8", declared(3, b"{\xff}"), ALL, says="damaged"),
    Case("a header nested without end", declared(200_000, b'{"a":' * 40_000), ALL, says="damaged"),
    Case("cut in the header", cut(WEIGHTS, 0.0001), ALL, says="damaged"),
    Case("cut in the data", cut(WEIGHTS, 0.7), ALL, says="damaged"),
    Case(
        "bytes at the end",
        lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes() + b"12345678") and None,
        ALL,
        says="damaged",
    ),
    Case("a pointer of git-lfs", content(WEIGHTS, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"), ALL),
    Case("zeros without end", sparse(WEIGHTS, 1 << 31), ALL, says="damaged"),
    Case("overlapping tensors", header(overlapping), ALL, says="damaged"),
    Case("a place beyond the file", entry(UP, data_offsets=[1 << 40, (1 << 40) + 262144]), ALL, says="damaged"),
    Case("a place before the file", entry(UP, data_offsets=[-8, 262136]), ALL, says="damaged"),
    Case("an end before the beginning", entry(UP, data_offsets=[262144, 0]), ALL, says="damaged"),
    Case("a shape that the bytes do not fill", entry(UP, shape=[512, 257]), ALL, says="damaged"),
    Case("a shape beyond counting", entry(UP, shape=[1 << 62, 1 << 62]), ALL, says="damaged"),
    Case("a negative shape", entry(UP, shape=[-512, -256]), ALL, says="damaged"),
    Case("an unknown type", entry(UP, dtype="F7"), ALL, says="damaged"),
    Case("another type of the same width", entry(UP, dtype="BF16"), outcome=EITHER),
    # indexes and shards
    Case("two shards", split(shard), ALL, outcome=WORKS),
    Case("a shard is missing", both(split(shard), gone("model-00001-of-00002.safetensors")), ALL, says="lacks 1 of 2"),
    Case("a shard is a folder", both(split(shard), a_folder("model-00001-of-00002.safetensors")), ALL, says="model-00001-of-00002"),
    Case("a shard is a pipe", both(split(shard), a_pipe("model-00001-of-00002.safetensors")), ALL, says="model-00001-of-00002"),
    Case("a shard links to itself", both(split(shard), a_loop("model-00001-of-00002.safetensors")), ALL, says="model-00001-of-00002"),
    Case("a shard is cut", both(split(shard), cut("model-00002-of-00002.safetensors", 0.5)), ALL, says="model-00002-of-00002"),
    Case("a tensor in two shards", twice, ALL, says="model.norm.weight"),
    Case("all tensors in both shards", split(shard, keep_all=True), ALL, outcome=EITHER),
    Case("an index that names a tensor that is nowhere", index(ghost=WEIGHTS), outcome=EITHER),
    Case("an index without weight_map", content(INDEX, "{}"), ALL, says="weight_map"),
    Case("weight_map is a list", content(INDEX, '{"weight_map": []}'), ALL, says="weight_map"),
    Case("weight_map is a text", content(INDEX, '{"weight_map": "model.safetensors"}'), ALL, says="weight_map"),
    Case("weight_map is empty", content(INDEX, '{"weight_map": {}}'), ALL, says="weight_map"),
    Case("weight_map leads to numbers", index(a=1), ALL, says="weight_map"),
    Case("weight_map leads to lists", index(a=[WEIGHTS]), ALL, says="weight_map"),
    Case("an index that is a list", content(INDEX, "[]"), ALL, says=INDEX),
    Case("an index that is no JSON", content(INDEX, "{"), ALL, says=INDEX),
    Case("an empty index", content(INDEX, ""), ALL, says=INDEX),
    Case("an index that is no UTF-8", content(INDEX, b'{"weight_map": {"\xff": "a"}}'), ALL, says=INDEX),
    Case("a nested index", content(INDEX, '{"a":' * 100_000), ALL, says=INDEX),
    Case("an index is a folder", a_folder(INDEX), ALL, says=INDEX),
    Case("an index is a pipe", a_pipe(INDEX), ALL, says=INDEX),
    Case("an index links to itself", a_loop(INDEX), ALL, says=INDEX),
    Case("an index without end", endless(INDEX), ALL, says=INDEX),
    Case("an index of 64 GB of zeros", sparse(INDEX), ALL, says=INDEX),
    Case("an index names a twin outside", twin, ALL, says="expected safetensors files that lie beside it"),
    Case("an index names a pickle below", pickle_below, ALL, says="expected safetensors files that lie beside it"),
    Case("an index names an absolute path", index(a="/etc/passwd"), ALL, says="/etc/passwd"),
    Case("an index names a path with a zero byte", index(a="a\0.safetensors"), ALL, says="lacks"),
    Case("an index names a name too long", index(a="a" * 5000 + ".safetensors"), ALL),
    Case("an index names half a surrogate", index(a="\ud800.safetensors"), ALL),
    Case(
        "an index names a hundred thousand files",
        content(INDEX, json.dumps({"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(100_000)}})),
        ALL,
        says="lacks",
    ),
    Case("an index names the folder", index(a="..safetensors"), ALL),
    # the files themselves
    Case("weights are a folder", a_folder(WEIGHTS), ALL, says=WEIGHTS),
    Case("weights are a pipe", a_pipe(WEIGHTS), ALL, says=WEIGHTS),
    Case("weights link to themselves", a_loop(WEIGHTS), ALL, says=WEIGHTS),
    Case("weights without end", endless(WEIGHTS), ALL, says=WEIGHTS),
    Case("no weights", gone(WEIGHTS), ("evaluate", "quantize"), says="no weights"),
    Case("a pickle alone", both(gone(WEIGHTS), content("pytorch_model.bin", b"\x80\x02.")), ("evaluate", "quantize"), says="pickle"),
    Case("a folder with a weight file's name", both(gone(WEIGHTS), lambda f: os.mkdir(f / "a.safetensors")), ALL, says="a.safetensors"),
    Case(
        "an empty second file of weights",
        both(lambda f: shutil.move(f / WEIGHTS, f / "a.safetensors") and None, content("b.safetensors", b"")),
        ALL,
        says="b.safetensors",
    ),
    Case("a head beside a tied embedding", both(config(tie_word_embeddings=False)), ALL, says="lm_head"),
]
