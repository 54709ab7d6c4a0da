"""Deployments counted by hand, names that are found, and the planner against artifacts that were really written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import Tensor

from qlab.artifacts.artifact import quantize_model
from qlab.cli import call
from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.windows import read_windows
from qlab.plan import choose
from qlab.plan.capacity import capacity, offload, sentences
from qlab.plan.plan import BITS, SHAPES, STORED, Shape, weight_bytes
from qlab.plan.shapes import INT4, find_device, find_format, find_shape
from qlab.plan.stored import as_stored
from qlab.recipes import parse
from qlab.recipes.planned import planned
from qlab.support.errors import UserError
from tests.formats.gguf.writing import write_gguf

SEVENTY = SHAPES["Llama-3.1-70B"]


def test_two_rtx_4090_hold_a_70b_in_4_bits_by_hand() -> None:
    found = capacity(SEVENTY, INT4, 4096, 1, find_device("RTX 4090"), 2)
    # 80 × (2·8192·128·(64+8) + 3·8192·28672) weights at 4 + 20/128 bits; twice 128256 × 8192 at 16; 327,680 bytes a token
    assert found.linear == pytest.approx(68.451 * 4.15625 / 8, rel=1e-3)
    assert found.embedding == pytest.approx(4.203, abs=0.001)
    assert found.cache == pytest.approx(1.342, abs=0.001)
    assert found.usable == pytest.approx(43.2)
    assert found.holds
    assert not found.fp16_holds
    assert found.longest == pytest.approx((43.2 - 35.563 - 4.203) / 327_680e-9, rel=1e-3)
    assert found.most_sequences == 2
    assert found.ceiling == pytest.approx(2 * 1008 / (35.563 + 2.1014 + 1.342), rel=1e-3)
    text = " ".join(sentences(found, SEVENTY, INT4, 4096, 1, find_device("RTX 4090"), 2))
    assert "The guide counts 35 GB" in text
    assert "39.8 GB" in text


def test_longest_and_most_are_the_last_that_fit() -> None:
    device = find_device("A100 80GB SXM")
    found = capacity(SEVENTY, "FP16", 4096, 2, device, 2)
    assert found.holds == capacity(SEVENTY, "FP16", found.longest, 2, device, 2).holds
    assert not capacity(SEVENTY, "FP16", found.longest + 1, 2, device, 2).holds
    assert not capacity(SEVENTY, "FP16", 4096, found.most_sequences + 1, device, 2).holds


def test_repeated_kv_heads_repeat_their_cache() -> None:
    shape = Shape(4, 512, 1024, 8, 2, 64, 4096)
    one, four = (capacity(shape, "FP16", 4096, 1, find_device("RTX 4090"), count).cache for count in (1, 4))
    assert four == pytest.approx(2 * one)


def test_offload_fills_the_device_and_no_more() -> None:
    device, cpu = find_device("RTX 4090"), find_device("desktop-ddr5-5600", ("cpu",))
    found = offload(SEVENTY, "GGUF Q4_K_M", 4096, 1, device, 1, cpu)
    layer = (68.451 * 4.83 / 8 + 1.3422) / 80
    assert found.layers == int((21.6 - 1.0507 * 5.53 / 8) / layer) == 39
    assert found.on_devices <= 21.6
    assert found.ceiling == pytest.approx(1 / (found.on_devices / 1008 + 41 * layer / 89.6), rel=1e-3)
    assert offload(SEVENTY, "GGUF Q4_K_M", 4096, 1, device, 4, cpu).layers == 80
    assert offload(SEVENTY, "GGUF Q4_K_M", 4096, 1, device, 4, cpu).twice == 0
    assert found.on_cpu > found.twice > 0


def test_names_are_found_or_explained(tmp_path: Path) -> None:
    assert find_shape("command r+")[1] == SHAPES["Command-R+"]
    label, shape = find_shape("70B")
    assert shape == SEVENTY
    assert "nearest to 70B" in label
    assert find_format("awq-w4g128") == INT4
    assert find_format("awq-gptq-w4g64") == "AWQ/GPTQ INT4 g64"
    assert find_format("gptq-w8g128-asym") == "INT8"
    assert find_device("L4")["id"] == "l4"
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}))
    for call_it in (
        lambda: find_shape("400B"),
        lambda: find_shape(str(tmp_path)),
        lambda: find_format("q9"),
        lambda: find_format("gptq-w4g63"),
        lambda: find_device("A100"),
    ):
        with pytest.raises(UserError, match=r"expected|config\.json|lacks num_hidden_layers"):
            call_it()


@pytest.mark.parametrize(("recipe", "format_name"), [("rtn-w4g128", INT4), ("nf4", "NF4 double quant"), ("q4_k_m-plain", "GGUF Q4_K_M")])
def test_artifacts_take_what_was_planned(recipe: str, format_name: str, tmp_path: Path) -> None:
    source = locate("embedded")
    batch = read_windows("docstrings", load_tokenizer(source), 64, 2).windows
    artifact = next(iter(quantize_model(source, [parse(recipe)], batch, tmp_path)))
    written = sum(file.stat().st_size for file in artifact.path.iterdir() if file.suffix in (".safetensors", ".gguf"))
    assert weight_bytes(find_shape("embedded")[1], format_name) == pytest.approx(written, rel=0.1)


@pytest.mark.parametrize(
    ("recipe", "described"),
    [
        ("rtn-w4g64-ct", "compressed-tensors, 4-bit int in groups of 64"), ("rtn-w8a8", "compressed-tensors, 8-bit int a scale a row"),
        ("rtn-w3g128-ct", "compressed-tensors, 3-bit int in groups of 128"), ("nf4", "NF4"), ("q4_k_m-plain", "GGUF, Q4_K, Q6_K"),
    ],
)  # fmt: skip
def test_what_is_quantized_already_is_planned_as_it_lies_there(
    recipe: str, described: str, tiny: OpenedModel, calibration: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (made,) = quantize_model(tiny, [parse(recipe)], calibration, tmp_path)
    name, shape = find_shape(str(made.path))
    found = as_stored(name, shape)
    assert found
    assert described in found[1]
    written = sum(file.stat().st_size for file in made.path.iterdir() if file.suffix in (".safetensors", ".gguf"))
    vocabulary = 0.1 if recipe.startswith("q") else 0.01  # lies in a GGUF file too
    assert (1 - vocabulary) * written < weight_bytes(found[0], STORED) < 1.001 * written
    assert call(["plan", str(made.path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["format"], told["recipe"]) == (STORED, "")
    assert told["linear"] + told["embedding"] == pytest.approx(weight_bytes(found[0], STORED) / 1e9)
    assert as_stored(str(tiny.path), shape) is None


def test_bits_of_what_is_stored_are_those_of_its_format(tiny: OpenedModel, calibration: Tensor, tmp_path: Path) -> None:
    made = {
        each.path.name: each.path for each in quantize_model(tiny, [parse("rtn-w4g64-ct"), parse("q4_k_m-plain")], calibration, tmp_path)
    }
    shape = find_shape(str(made["rtn-w4g64-ct"]))[1]
    integers, file = (as_stored(str(path), shape) for path in made.values())
    assert integers
    assert integers[0].stored == (pytest.approx(4 + 16 / 64, rel=0.05), 16.0)
    assert file
    cpu = find_device("desktop-ddr5-5600", ("cpu",))
    asked = (1024, 1, find_device("RTX 4090"), 0, cpu)
    stored, named = offload(file[0], STORED, *asked), offload(shape, "GGUF Q4_K_M", *asked)
    assert stored.twice > 0.5 * named.twice > 0  # llama.cpp holds Q4_K a second time, whatever the file is called


def test_a_format_that_qlab_does_not_read_is_planned_by_its_files(tiny: OpenedModel, calibration: Tensor, tmp_path: Path) -> None:
    (made,) = quantize_model(tiny, [parse("rtn-w4g64-ct")], calibration, tmp_path)
    config = json.loads((made.path / "config.json").read_text())
    for quantization, said in (
        ({"quant_method": "hqq"}, "hqq"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes INT8"),
    ):
        (made.path / "config.json").write_text(json.dumps(config | {"quantization_config": quantization}))
        found = as_stored(str(made.path), find_shape(str(made.path))[1])
        assert found
        assert found[1] == said


def test_a_checkpoint_that_lacks_files_is_not_planned_as_stored(tiny: OpenedModel, calibration: Tensor, tmp_path: Path) -> None:
    (made,) = quantize_model(tiny, [parse("rtn-w4g64-ct")], calibration, tmp_path)
    shape, (file,) = find_shape(str(made.path))[1], made.path.glob("*.safetensors")
    file.write_bytes(b"cut off")
    with pytest.raises(UserError, match="smaller than its embedding"):
        as_stored(str(made.path), shape)
    file.unlink()
    assert as_stored(str(made.path), shape) is None  # a folder with a configuration alone


def test_every_leaf_has_recipes() -> None:
    assert set(choose.RECIPES) == set(choose.leaves().values())
    assert all(parse(name).name == name for leaf in choose.RECIPES for name in choose.recipes(leaf, 64))
    assert choose.recipes("AWQ", 64) == ("awq-gptq-w4g64",)  # AWQ's layout, at its best


def test_the_recipe_of_every_format_makes_it() -> None:
    for format_name in BITS:
        recipe = choose.recipe_for("", format_name)
        assert find_format(recipe) == format_name if recipe else format_name in ("FP16", "FP32")
    assert choose.recipe_for("gptq", INT4) == "gptq-w4g128"


def test_a_gguf_file_is_planned_as_its_model_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = locate("embedded")
    file = tmp_path / "embedded.gguf"
    write_gguf(source.path, source.config, "q8_0", file)
    assert find_shape(str(file))[1] == find_shape(str(tmp_path))[1] == find_shape("embedded")[1]
    assert call(["plan", str(file)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{file} as it is stored (GGUF, Q8_0)")
    assert "To make it" not in said
    assert call(["plan", str(file), "--format", "awq"]) == 0
    assert "--recipe awq-gptq-w4g128" in capsys.readouterr().out
    file.write_bytes(b"not GGUF")
    assert call(["plan", str(file)]) == 2


def test_groups_fit_the_rows_of_the_planned_model() -> None:
    shape = Shape(30, 576, 1536, 9, 3, 64, 49152, tied=True)  # SmolLM2-135M
    chosen, recipe, remarks = planned("awq", shape)
    assert (chosen, recipe) == ("AWQ/GPTQ INT4 g64", "awq-gptq-w4g64")
    assert "rows of 576 weights" in remarks[0]
    assert planned("gptq-w4g128", shape)[1] == "gptq-w4g64"
    assert planned("awq", SEVENTY) == (INT4, "awq-gptq-w4g128", ())
    assert planned("int8", shape)[0] == "INT8 g64"
    assert planned("fp16", shape) == ("FP16", "", ())
    small, large = (weight_bytes(shape, name) for name in ("AWQ/GPTQ INT4 g64", INT4))
    assert small - large == pytest.approx(shape.linear_parameters * 20 / 128 / 8)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert call(["plan", "70B", "--count", "2", "--offload", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["holds"] is True
    assert told["offload"]["of"] == 80
    assert call(["plan", "70B", "--format", "fp16", "--count", "4"]) == 0
    assert "four RTX 4090: they hold 96 GB" in capsys.readouterr().out
    assert call(["plan", "no/such/model"]) == 2
