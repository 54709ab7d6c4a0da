"""GGUF files as sources: every type as gguf-py decodes it, parts read together, rotary scaling found again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from qlab.formats.gguf.configuration import llama3_parameters, model_config
from qlab.formats.gguf.metadata import rope_factors
from qlab.formats.gguf.reading import FLOATS, GGUFFiles, decode, describe, plain_gguf
from qlab.models.opening import OpenedModel, locate
from qlab.support.errors import UserError
from tests.formats.gguf.writing import write_gguf

Q = gguf.GGMLQuantizationType
KINDS = ["BF16", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_what_gguf_py_makes_of_it(kind: str, tmp_path: Path) -> None:
    block, size = gguf.GGML_QUANT_SIZES[Q[kind]]
    rows, columns = 5, 512
    data = np.random.default_rng(0).integers(0, 60, (rows, columns // block * size), np.uint8)  # small bytes: finite scales
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", data, raw_dtype=Q[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (judge,) = gguf.GGUFReader(tmp_path / "m.gguf").tensors
    expected = torch.from_numpy(np.array(gguf.quants.dequantize(judge.data, judge.tensor_type))).view(rows, columns)
    files = GGUFFiles(tmp_path / "m.gguf")
    found = decode(files.read("t"), kind)
    assert torch.equal(found.float(), expected)
    assert found.dtype == FLOATS.get(kind, torch.float32)
    assert torch.equal(decode(files.read("t", 3, 10), kind).float(), expected[3:])


def rewritten(file: Path, folder: Path, skip: tuple[str, ...] = (), **options: Any) -> None:
    """The file again, without some tensors, or in parts."""
    folder.mkdir()
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", **options)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, field.contents())
        else:
            writer.add_key_value(key, field.contents(), field.types[0])
    for tensor in reader.tensors:
        if tensor.name not in skip:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def file(tiny: OpenedModel, tmp_path: Path) -> Path:
    write_gguf(tiny.path, tiny.config, "f16", tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


def test_an_f16_file_holds_the_model(file: Path, tiny: OpenedModel) -> None:
    found = locate(str(file))
    assert set(found.checkpoint.shapes) == set(tiny.layout.shapes)
    for name in tiny.layout.shapes:  # query and key rows come back from llama.cpp's order
        assert torch.equal(found.checkpoint.read(name).float(), tiny.checkpoint.read(name).float()), name
    kept = ("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_key_value_heads", "rms_norm_eps", "vocab_size")
    assert {name: found.config[name] for name in kept} == {name: tiny.config[name] for name in kept}
    assert found.config["tie_word_embeddings"]
    assert describe(GGUFFiles(file)) == "GGUF F16"


def test_parts_are_read_together_and_all_of_them(file: Path, tiny: OpenedModel, tmp_path: Path) -> None:
    rewritten(file, tmp_path / "parts", split_max_tensors=8)
    parts = sorted((tmp_path / "parts").glob("*.gguf"))
    assert len(parts) == 3
    for place in (tmp_path / "parts", parts[1]):
        assert set(plain_gguf(GGUFFiles(place), tiny.text_config, tiny.layout.shapes)) == set(tiny.layout.shapes)
    parts[1].rename(tmp_path / "gone.gguf")
    with pytest.raises(UserError, match=r"m lacks 1 of its 3 parts: m-00002-of-00003\.gguf is not there"):
        GGUFFiles(tmp_path / "parts")
    with pytest.raises(UserError, match=r"gone\.gguf is one of 3 parts, which must keep their names"):
        GGUFFiles(tmp_path / "gone.gguf")


def test_what_is_missing_or_strange_is_named(file: Path, tiny: OpenedModel, tmp_path: Path) -> None:
    rewritten(file, tmp_path / "less", skip=("blk.1.ffn_up.weight",))
    with pytest.raises(UserError, match=r"it lacks 1 tensors, blk\.1\.ffn_up\.weight among them"):
        plain_gguf(GGUFFiles(tmp_path / "less"), tiny.text_config, tiny.layout.shapes)
    shapes = dict(tiny.layout.shapes)
    shapes.pop("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(UserError, match=r"blk\.1\.ffn_up\.weight in m\.gguf has no place in a llama model"):
        plain_gguf(GGUFFiles(file), tiny.text_config, shapes)
    with pytest.raises(UserError, match=r"blk\.0\.attn_q\.weight in m\.gguf is \[256, 256\], its header asks for \[512, 256\]"):
        plain_gguf(GGUFFiles(file), tiny.text_config, shapes | {"model.layers.0.self_attn.q_proj.weight": (512, 256)})
    (tmp_path / "less" / "other.gguf").write_bytes(file.read_bytes())
    with pytest.raises(UserError, match=r"holds 2 GGUF models"):
        GGUFFiles(tmp_path / "less")


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"general.architecture": "jamba"}, "holds a jamba model; qlab reads those of"),
     ({"llama.expert_count": 8}, r"llama\.expert_count .* is 8, in a llama model that qlab reads there is none"),
     ({"llama.rope.dimension_count": 16}, r"rope\.dimension_count .* is 16, .* it is 64"),
     ({"llama.rope.scaling.type": "longrope"}, "scaled by longrope"), ({"llama.logit_scale": 0.5}, "logit_scale .* there is none"),
     ({"llama.embedding_length": None}, r"lacks llama\.embedding_length")],
)  # fmt: skip
def test_what_qlab_would_compute_wrongly_is_refused(settings: dict[str, Any], message: str, file: Path) -> None:
    files = GGUFFiles(file)
    changed = {name: value for name, value in (files.settings | settings).items() if value is not None}
    with pytest.raises(UserError, match=message):
        model_config(changed, files.arrays, files.shapes, None)


@pytest.mark.parametrize(
    "limits",
    [
        {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
        {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 16.0, "original_max_position_embeddings": 2048},
    ],
)
def test_llama_3s_limits_are_found_from_the_factors(limits: dict[str, Any]) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0} | limits
    factors = rope_factors({"head_dim": 64, "rope_parameters": rope})
    assert factors is not None
    found = llama3_parameters({"rope_theta": 500000.0}, 64, factors)
    if found["rope_type"] == "longrope":  # too few factors between the limits to tell them: the very list
        assert found["short_factor"] == found["long_factor"] == [float(str(np.float32(factor))) for factor in factors.tolist()]
        return
    assert torch.allclose(rope_factors({"head_dim": 64, "rope_parameters": found}), factors, rtol=1e-5, atol=0)


def test_factors_that_no_limits_give_are_kept_as_a_list() -> None:
    factors = torch.linspace(3, 1, 32)
    found = llama3_parameters({"rope_theta": 10000.0}, 64, factors)
    assert found["rope_type"] == "longrope"
    assert torch.equal(torch.tensor(found["long_factor"]), factors)
