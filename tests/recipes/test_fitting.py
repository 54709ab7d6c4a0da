"""A recipe and a model whose rows its groups do not divide: the size that is taken, the layers that stay, and what is said of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qlab import EMBEDDED
from qlab.artifacts.artifact import fit, quantize_model
from qlab.cli import call
from qlab.formats import awq, gptq
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, decoder_layers, locate
from qlab.recipes import parse
from qlab.recipes.fitting import fitted_size, stored_layers, unquantized
from qlab.support.errors import UserError


def anything(outputs: int, inputs: int) -> str:
    """A layout that holds every layer."""
    return ""


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> OpenedModel:
    """A random Llama of rows of 192 and of 200 weights: 64 divides the former, and nothing standard the latter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4096, hidden_size=192, intermediate_size=200, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        max_position_embeddings=128, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "narrow"
    LlamaForCausalLM(config).half().save_pretrained(folder)
    load_tokenizer(locate(str(EMBEDDED))).save_pretrained(folder)
    return locate(str(folder))


@pytest.mark.parametrize(
    ("asked", "rows", "size"),
    [
        (128, (576, 1536), 64),  # SmolLM2-135M
        (128, (896, 4864), 128),  # Qwen2.5-0.5B
        (64, (576, 1536), 64),
        (128, (288, 448), 32),
        (48, (576, 144), 48),  # no standard size, but it divides
        (100, (576, 1536), 64),
        (-1, (576, 200), -1),
        (128, (576, 200), 64),  # rows of 200 stay in half precision
    ],
)
def test_the_largest_size_that_divides_every_row_is_taken(asked: int, rows: tuple[int, ...], size: int) -> None:
    layers = {f"model.layers.{place}.mlp.down_proj": (64, row) for place, row in enumerate(rows)}
    found, why = fitted_size(asked, layers, anything)
    assert found == size
    assert bool(why) == (size != asked)


def test_layers_that_runtimes_join_stay_in_half_precision_together() -> None:
    layers = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (4, 64), "self_attn.v_proj": (64, 64), "self_attn.o_proj": (64, 64)}
    assert set(unquantized(layers, 64, awq.unfit)) == {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"}
    assert unquantized(layers | {"self_attn.k_proj": (8, 64)}, 64, awq.unfit) == {}
    assert len(unquantized(layers | {"self_attn.k_proj": (8, 64)}, 64, gptq.unfit)) == 3


def test_the_artifact_has_the_name_of_what_was_done_and_the_manifest_what_was_asked(
    narrow: OpenedModel, calibration: torch.Tensor, tmp_path: Path
) -> None:
    (made,) = quantize_model(narrow, [parse("awq-w4g128"), parse("awq-w4g64")], calibration, tmp_path)
    assert made.path.name == "awq-w4g64"
    assert made.manifest["asked"] == "awq-w4g128"
    assert made.manifest["inputs"]["recipe"]["group_size"] == 64
    assert made.source.config["quantization_config"]["group_size"] == 64


@pytest.mark.parametrize("recipe", ["awq-w4g64", "gptq-w4g64", "tuned-w4g64-steps1"])
def test_layers_without_a_place_in_the_layout_keep_their_weights_and_the_checkpoint_names_them(
    recipe: str, narrow: OpenedModel, calibration: torch.Tensor, tmp_path: Path
) -> None:
    (made,) = quantize_model(narrow, [parse(recipe)], calibration, tmp_path)
    kept = ["mlp.down_proj"] if made.source.config["quantization_config"]["quant_method"] == "awq" else [f"mlp.{n}_proj" for n in KEPT]
    stored, packed = stored_layers(narrow.layout, [made.path / "model.safetensors"])
    assert sorted(stored) == sorted(kept)
    assert set(made.manifest["notes"]) == {f"model.layers.{block}.{name}" for block in (0, 1) for name in kept}
    config = made.source.config["quantization_config"]
    if config["quant_method"] == "awq":
        assert config["modules_to_not_convert"] == ["lm_head", *stored]
    else:
        assert sorted(config["modules_in_block_to_quantize"][0]) == sorted(packed)
        excluded = [pattern.removeprefix("-:") for pattern in config["dynamic"]]
        for name in decoder_layers(load(narrow)):
            assert any(re.match(pattern, name) for pattern in excluded) == name.endswith(tuple(kept))
    weights, original = load_file(made.path / "model.safetensors"), load_file(narrow.path / "model.safetensors")
    name = "model.layers.1.mlp.gate_proj.weight"
    if recipe == "gptq-w4g64":  # no scales are folded into it
        assert torch.equal(weights[name], original[name])
    candidate, reference = (load(source)(calibration[:2]).logits for source in (made.source, narrow))
    assert float((candidate - reference).norm() / reference.norm()) < 0.3


KEPT = ("gate", "up", "down")


def test_strict_refuses_what_would_be_made_in_another_way(narrow: OpenedModel) -> None:
    with pytest.raises(UserError, match=r"has rows of 192 weights, which groups of 128 do not divide; groups that do: 64, 32"):
        fit(narrow, [parse("awq-w4g128")], strict=True)
    with pytest.raises(UserError, match="rows of 200 weights; without --strict"):
        fit(narrow, [parse("awq-w4g64")], strict=True)
    assert fit(narrow, [parse("nf4"), parse("q8_0")], strict=True)[0].remarks == ()


def test_a_model_of_which_no_layer_fits_is_refused_with_a_way_out(tmp_path: Path, narrow: OpenedModel) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    odd = {"hidden_size": 200, "intermediate_size": 200, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 100}
    (folder / "config.json").write_text(json.dumps(narrow.config | odd))
    with pytest.raises(UserError, match=r"no layer of this model can be stored in this format .* nf4 takes rows of any length"):
        fit(locate(str(folder), weights=False), [parse("gptq-w4g128")])


def test_the_command_says_which_size_and_why(narrow: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["quantize", "--model", str(narrow.path), "--out", str(tmp_path), "--recipe", "awq-w4g128", "--length", "64", "--dry-run"]
    assert call(arguments) == 0
    said = capsys.readouterr().out
    assert re.search(
        r"awq-w4g64 instead of awq-w4g128: rows of 192 weights in model\.layers\.0\.\S+, which groups of 128 do not divide", said
    )
    assert "awq-w4g64: model.layers.0.mlp.down_proj and 1 more: in half precision" in said
    assert call([*arguments, "--strict"]) != 0


def test_gguf_files_say_which_blocks_they_got_and_are_read_back(narrow: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    nf4, gguf = quantize_model(narrow, [parse("nf4"), parse("q4_k_m")], calibration, tmp_path)
    notes = gguf.manifest["notes"]
    assert notes["model.layers.0.self_attn.q_proj"] == "Q5_0 instead of Q4_K, since blocks of 256 do not divide rows of 192 weights"
    assert re.fullmatch(
        r"F16 instead of Q\d_K, since blocks of 32 do not divide rows of 200 weights", notes["model.layers.0.mlp.down_proj"]
    )
    assert notes["model.embed_tokens"] == "Q8_0 instead of Q6_K, since blocks of 256 do not divide rows of 192 weights"
    assert not {"model.layers.0.input_layernorm", "model.norm"} & notes.keys()
    reference = load(narrow)(calibration[:2]).logits
    # bitsandbytes' own layers too, whose packing for AVX512-BF16 takes no rows of 200 weights.
    for candidate in (load(nf4.source), load(nf4.source, native=True), load(gguf.source)):
        assert float((candidate(calibration[:2]).logits - reference).norm() / reference.norm()) < 0.3
