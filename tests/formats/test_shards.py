"""Shards: what the safetensors library would write, from many files, in little memory."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from qlab.formats.shards import DTYPES, Halves, assemble
from qlab.models.locating import checked_files
from qlab.models.opening import OpenedModel
from qlab.support.errors import UserError

TORCH = [
    torch.uint64, torch.int64, torch.float64, torch.complex64, torch.float32, torch.uint32, torch.int32, torch.bfloat16, torch.float16,
    torch.uint16, torch.int16, torch.float8_e8m0fnu, torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


def parts_of(folder: Path, *groups: dict[str, torch.Tensor]) -> list[Path]:
    files = [folder / f"part-{i}.safetensors" for i in range(len(groups))]
    for file, group in zip(files, groups):
        save_file(group, file)
    return files


@given(data=st.data(), count=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_one_file_is_the_librarys_own(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, count: int, seed: int) -> None:
    folder = tmp_path_factory.mktemp("one")
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name in data.draw(st.lists(st.text('abé."0', min_size=1), min_size=count, max_size=count, unique=True)):
        shape = data.draw(st.lists(st.integers(0, 5), max_size=3))
        dtype = data.draw(st.sampled_from(TORCH))
        tensors[name] = torch.randint(0, 2, shape, generator=generator).to(dtype)
    names = list(tensors)
    cut = data.draw(st.integers(0, count))
    assemble(parts_of(folder, {n: tensors[n] for n in names[:cut]}, {n: tensors[n] for n in names[cut:]}), folder)
    save_file(tensors, folder / "library", metadata={"format": "pt"})
    assert (folder / "model.safetensors").read_bytes() == (folder / "library").read_bytes()


def test_every_type_of_torch_is_known() -> None:
    assert len(TORCH) == len(DTYPES)


def test_shards_keep_to_their_size_and_are_loaded_by_transformers(tiny: OpenedModel, tmp_path: Path) -> None:
    state = load_file(tiny.path / "model.safetensors")
    blocks = [{n: t for n, t in state.items() if f".layers.{i}." in n} for i in range(2)]
    rest = {n: t for n, t in state.items() if ".layers." not in n}
    out = tmp_path / "out"
    out.mkdir()
    assemble(parts_of(tmp_path, rest, *blocks), out, shard_bytes=1 << 20)
    (out / "config.json").write_text(json.dumps(tiny.config))
    files = checked_files(out)
    assert len(files) > 2
    assert [file.name for file in files] == [f"model-{i + 1:05d}-of-{len(files):05d}.safetensors" for i in range(len(files))]
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in state.values())
    found = {}
    for file in files:
        shard = load_file(file)
        assert all(index["weight_map"][name] == file.name for name in shard)
        assert len(shard) == 1 or sum(t.numel() * t.element_size() for t in shard.values()) <= 1 << 20
        assert struct.unpack("<Q", file.read_bytes()[:8])[0] % 8 == 0
        found |= shard
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float16)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items() if name in state)


def test_twice_the_same(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, {"a": torch.ones(300), "b": torch.zeros(300)}, {"c": torch.ones(300)})
    made = []
    for name in ("first", "second"):
        out = tmp_path / name
        out.mkdir()
        assemble(parts, out, shard_bytes=2000)
        made.append({file.name: file.read_bytes() for file in out.iterdir()})
    assert made[0] == made[1]
    assert sorted(made[0]) == ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors",
                               "model.safetensors.index.json"]  # fmt: skip


def test_what_cannot_be_assembled_is_refused(tmp_path: Path) -> None:
    first, second = parts_of(tmp_path, {"a": torch.ones(3)}, {"a": torch.zeros(3)})
    with pytest.raises(UserError, match=r"a is in both part-0\.safetensors and part-1\.safetensors"):
        assemble([first, second], tmp_path)
    with pytest.raises(UserError, match="nothing to assemble"):
        assemble([], tmp_path)
    whole = first.read_bytes()
    for damage, message in [
        (whole[:-1], "cut off"),
        (whole + b"x", "header says"),
        (whole[:20], "no safetensors file"),
        (b"", "no safetensors"),
    ]:
        first.write_bytes(damage)
        with pytest.raises(UserError, match=message):
            assemble([first], tmp_path)
    first.write_bytes(whole.replace(b'"F32"', b'"F4_"'))
    with pytest.raises(UserError, match="type F4_"):
        assemble([first], tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_memory_does_not_grow_with_the_tensors(tmp_path: Path) -> None:
    """In a process of its own, whose peak is what it used and nothing else's."""
    size = 128 << 20
    parts = parts_of(tmp_path, {"a": torch.zeros(size, dtype=torch.uint8)}, {"b": torch.ones(size, dtype=torch.uint8)})
    code = (
        "import sys; from pathlib import Path; from qlab.formats.shards import assemble\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
        "before = peak()\n"
        "assemble([Path(name) for name in sys.argv[2:]], Path(sys.argv[1]))\n"
        "print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), *map(str, parts)], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 << 10  # KiB
    assert (tmp_path / "model.safetensors").stat().st_size > 2 * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_what_is_not_quantized_becomes_half_precision_on_the_way(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        "norm": torch.tensor([1.5, -3.0]),
        "codes": torch.tensor([7], dtype=torch.int32),
        "scales": torch.ones(2, 3, dtype=torch.float16),
    }
    assemble(parts_of(tmp_path, tensors), tmp_path, halves=Halves({"norm", "codes"}, dtype))
    expected = tensors | {"norm": tensors["norm"].to(dtype)}
    save_file(expected, tmp_path / "expected.safetensors", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


def test_a_value_beyond_half_precision_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"norm holds values up to 1e.05, beyond FP16's range"):
        assemble(parts_of(tmp_path, {"norm": torch.tensor([1e5])}), tmp_path, halves=Halves({"norm"}, torch.float16))
    with pytest.raises(UserError, match="norm holds values up to inf, beyond FP16's range"):
        assemble(parts_of(tmp_path, {"norm": torch.tensor([torch.inf]).half()}), tmp_path, halves=Halves({"norm"}, torch.float16))
