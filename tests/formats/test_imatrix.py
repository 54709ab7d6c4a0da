"""Importance files: in llama.cpp's own layout, read in both forms, merged token by token, refused where damaged."""

from __future__ import annotations

import ctypes
import json
import struct
from pathlib import Path

import gguf
import pytest
import torch

from qlab.formats.imatrix import Entry, Imatrix, ImatrixFile, ImatrixWriter, importance_of, merged, read_imatrix, write_imatrix
from qlab.models.opening import locate
from qlab.peers import llamacpp
from qlab.recipes.importance import measure
from qlab.support.errors import UserError
from qlab.support.precision import multiplies_bfloat16

FOLDER = Path(__file__).with_name("llama_imatrix")
DOWN, EXPERTS = "blk.0.ffn_down.weight", "blk.0.ffn_up_exps.weight"


def some() -> Imatrix:
    random = torch.Generator().manual_seed(0)
    return Imatrix(
        {
            DOWN: Entry(torch.rand(1, 8, generator=random) * 100, torch.tensor([100.0])),
            EXPERTS: Entry(torch.rand(3, 4, generator=random) * 10, torch.tensor([10.0, 0.0, 30.0])),
        },
        ("one.txt", "two.txt"), 4, 25,
    )  # fmt: skip


def dat(entries: dict[str, tuple[int, list[float]]], end: bytes = b"") -> bytes:
    """The older form, as tools/imatrix/imatrix.cpp (save_imatrix_legacy) writes it."""
    found = struct.pack("<i", len(entries))
    for name, (calls, values) in entries.items():
        found += struct.pack("<i", len(name)) + name.encode() + struct.pack("<ii", calls, len(values))
        found += struct.pack(f"<{len(values)}f", *values)
    return found + end


def test_what_is_written_is_read_and_lies_as_in_llama_imatrixs_files(tmp_path: Path) -> None:
    file, known = tmp_path / "i.gguf", some()
    write_imatrix(file, known)
    found = read_imatrix(file)
    assert (found.datasets, found.chunks, found.chunk_size) == (known.datasets, 4, 25)
    assert {name: entry.sums.tolist() for name, entry in found.entries.items()} == {n: e.sums.tolist() for n, e in known.entries.items()}
    reader = gguf.GGUFReader(file)
    assert [tensor.name for tensor in reader.tensors] == [f"{n}{end}" for n in (DOWN, EXPERTS) for end in (".in_sum2", ".counts")]
    assert [tensor.shape.tolist() for tensor in reader.tensors[2:]] == [[4, 3], [1, 3]]
    keys = ["general.type", "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"]
    assert [key for key in reader.fields if not key.startswith("GGUF.")] == keys
    assert [path.name for path in tmp_path.iterdir()] == ["i.gguf"]


def test_llama_cpp_opens_the_file(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", some())
    library = llamacpp.library()
    library.gguf_init_from_file.restype, library.gguf_get_n_tensors.restype = ctypes.c_void_p, ctypes.c_int64
    library.gguf_get_tensor_name.restype, library.gguf_find_key.restype = ctypes.c_char_p, ctypes.c_int64

    class Parameters(ctypes.Structure):
        _fields_ = [("no_alloc", ctypes.c_bool), ("context", ctypes.c_void_p)]

    opened = ctypes.c_void_p(library.gguf_init_from_file(str(tmp_path / "i.gguf").encode(), Parameters(True, None)))
    assert opened
    names = [library.gguf_get_tensor_name(opened, ctypes.c_int64(i)).decode() for i in range(library.gguf_get_n_tensors(opened))]
    assert names[:2] == [f"{DOWN}.in_sum2", f"{DOWN}.counts"]
    assert library.gguf_find_key(opened, b"imatrix.chunk_size") >= 0
    library.gguf_free(opened)


def test_means_are_llama_cpps(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "i.gguf", some())
    means = importance_of((ImatrixFile(tmp_path / "i.gguf"),))
    torch.testing.assert_close(means[DOWN], some().entries[DOWN].sums / 100)
    torch.testing.assert_close(means[EXPERTS][2], some().entries[EXPERTS].sums[2] / 30)
    assert means[EXPERTS][1].tolist() == [1.0] * 4  # an expert that no token reached


def test_the_older_form_is_read(tmp_path: Path) -> None:
    file = tmp_path / "i.dat"
    file.write_bytes(dat({DOWN: (4, [4.0, 8.0]), EXPERTS: (2, [2.0, 6.0])}, struct.pack("<ii", 4, 3) + b"abc"))
    found = read_imatrix(file)
    assert found.entries[DOWN].means.tolist() == [[1.0, 2.0]]
    assert found.entries[EXPERTS].means.tolist() == [[1.0, 3.0]]
    assert (found.datasets, found.chunks) == (("abc",), 4)
    file.write_bytes(dat({DOWN: (1, [1.0])}))  # older still, without what was read
    assert read_imatrix(file).datasets == ()


def test_llama_imatrixs_own_files_hold_what_qlab_measures(tmp_path: Path) -> None:
    """llama_imatrix/ was written by llama.cpp's program (b11063) on the embedded model's f16 file and 8 windows of 64 tokens, which
    windows.json holds: `llama-imatrix -m model-f16.gguf -f text.txt -c 64 -b 64 -ub 64 --chunks 8 --no-ppl -o embedded.gguf`, and once
    more with `--output-format dat`."""
    theirs, older = (read_imatrix(FOLDER / f"embedded.{form}") for form in ("gguf", "dat"))
    windows = torch.tensor(json.loads((FOLDER / "windows.json").read_text()))
    ours = measure(locate("embedded"), windows, ["text.txt"], tmp_path, "cpu")
    assert (theirs.datasets, theirs.chunks, theirs.chunk_size) == (("text.txt",), 8, 64) == (ours.datasets, ours.chunks, ours.chunk_size)
    assert set(ours.entries) == set(theirs.entries) == set(older.entries)
    apart = 0.005 if multiplies_bfloat16(torch.device("cpu")) else 0.003
    for name, entry in ours.entries.items():
        assert torch.equal(entry.counts, theirs.entries[name].counts)
        # llama.cpp multiplies in FP16 on its way, and some CPUs in BF16 in a walk: .19 % in the mean without that, .34 % with it
        torch.testing.assert_close(entry.means, theirs.entries[name].means, rtol=0.03, atol=0)
        assert float((entry.means / theirs.entries[name].means - 1).abs().mean()) < apart
        torch.testing.assert_close(older.entries[name].means, theirs.entries[name].means, rtol=1e-5, atol=0)
    swapped = theirs.entries["blk.1.ffn_down.weight"].means / ours.entries["blk.2.ffn_down.weight"].means - 1
    assert float(swapped.abs().mean()) > 0.1  # the control: another layer's


def test_what_newer_files_hold_beside_is_left(tmp_path: Path) -> None:
    """Sums of the inputs themselves and statistics, which llama-imatrix writes since 2026 (save_imatrix: in_sum, imatrix.stats_schema)."""
    writer, entry = ImatrixWriter(tmp_path / "i.gguf", "imatrix"), some().entries[DOWN]
    writer.add_type(gguf.GGUFType.IMATRIX)
    writer.add_array(gguf.Keys.IMatrix.DATASETS, ["one.txt"])
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_COUNT, 4)
    writer.add_uint32(gguf.Keys.IMatrix.CHUNK_SIZE, 25)
    writer.add_array("imatrix.stats_schema", ["sum_sq", "mean"])
    for end, values in ((".in_sum", -entry.sums), (".in_sum2", entry.sums), (".counts", entry.counts[:, None]), (".stats", torch.ones(10))):
        writer.add_tensor(DOWN + end, values.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = read_imatrix(tmp_path / "i.gguf")
    assert list(found.entries) == [DOWN]
    assert torch.equal(found.entries[DOWN].sums, entry.sums)
    assert (found.datasets, found.chunks, found.chunk_size) == (("one.txt",), 4, 25)


def test_files_are_merged_by_their_tokens() -> None:
    one = Imatrix({DOWN: Entry(torch.tensor([[10.0, 0.0]]), torch.tensor([10.0]))}, ("a",), 1)
    two = Imatrix({DOWN: Entry(torch.tensor([[0.0, 60.0]]), torch.tensor([30.0]))}, ("b", "a"), 3)
    found = merged([("one", one), ("two", two)])
    assert found.entries[DOWN].means.tolist() == [[0.25, 1.5]]
    assert (found.datasets, found.chunks) == (("a", "b"), 4)
    experts = Imatrix({DOWN: Entry(torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 0.0]))})
    assert merged([("one", one), ("three", experts)]).entries[DOWN].counts.tolist() == [11.0, 10.0]
    other = Imatrix({DOWN: Entry(torch.ones(1, 3), torch.ones(1))})
    with pytest.raises(UserError, match=r"blk\.0\.ffn_down\.weight in four has 3 values and 1 counts: expected 2 and 1"):
        merged([("one", one), ("four", other)])


def test_what_is_no_importance_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "i.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(UserError, match="of type model: expected an importance matrix"):
        read_imatrix(file)
    write_imatrix(file, Imatrix({DOWN: Entry(torch.tensor([[1.0, -1.0]]), torch.tensor([1.0]))}))
    with pytest.raises(UserError, match="negative, NaN or infinite"):
        read_imatrix(file)
    write_imatrix(file, Imatrix({}))
    with pytest.raises(UserError, match="holds no importance"):
        read_imatrix(file)
    with pytest.raises(UserError, match="not there"):
        read_imatrix(tmp_path / "none.gguf")
    held = (ImatrixFile(file),)
    file.write_bytes(b"another")
    with pytest.raises(UserError, match="changed since"):
        importance_of(held)


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_damage_is_told_in_a_sentence(form: str, tmp_path: Path) -> None:
    file = tmp_path / f"i.{form}"
    if form == "gguf":
        write_imatrix(file, some())
    else:
        file.write_bytes(dat({DOWN: (4, [4.0, 8.0]), EXPERTS: (2, [2.0, 6.0])}))
    whole, refused = file.read_bytes(), 0
    for at in range(0, len(whole), 3):
        for damaged in (whole[:at], whole[:at] + b"\xff\x7f" + whole[at + 2 :]):
            file.write_bytes(damaged)
            try:
                read_imatrix(file)
            except UserError:
                refused += 1
    assert refused > len(whole) / 6
