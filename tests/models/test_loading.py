"""Models that compute, from checkpoints that are whole, and what is said of the others. One damaged thing at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from qlab.artifacts.artifact import quantize_model
from qlab.cli import call
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from qlab.support.errors import UserError

State = dict[str, torch.Tensor]


@pytest.fixture
def copy(tiny: OpenedModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.path, tmp_path / "copy"))


def change_weights(folder: Path, change: Callable[[State], Any]) -> None:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(1, 33)[None]).logits.float()


@pytest.mark.parametrize(
    ("kind", "options"),
    [("llama", {}), ("qwen2", {"tie_word_embeddings": True}), ("gemma2", {"head_dim": 16}), ("gpt_neox", {}), ("opt", {})],
)
def test_a_model_computes_what_transformers_computes(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    sizes = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 32}
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(sizes | {"pad_token_id": 0} | options)))
    made.half().save_pretrained(tmp_path / kind)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / kind, dtype=torch.float32).eval()
    ours = load(locate(str(tmp_path / kind)))
    assert torch.equal(logits(ours), logits(theirs))
    assert ours.generation_config.eos_token_id == theirs.generation_config.eos_token_id
    assert {parameter.dtype for parameter in load(locate(str(tmp_path / kind)), torch.bfloat16).parameters()} == {torch.bfloat16}


def both_refuse(folder: Path, calibration: torch.Tensor, out: Path, message: str) -> None:
    """Neither measured nor quantized, and nothing left behind."""
    with pytest.raises(UserError, match=message):
        load(locate(str(folder)))
    with pytest.raises(UserError, match=message):
        quantize_model(locate(str(folder)), [parse("rtn-w4g64")], calibration, out)
    assert not out.exists() or not list(out.iterdir())


def test_a_missing_tensor_is_named(copy: Path, calibration: torch.Tensor, tmp_path: Path) -> None:
    change_weights(copy, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    both_refuse(copy, calibration, tmp_path / "out", r"lacks model\.layers\.1\.mlp\.up_proj\.weight and 0 more")


def test_what_is_left_out_is_told(copy: Path, calibration: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A value head beside the model; a buffer that old checkpoints hold is nobody's concern."""
    change_weights(copy, lambda state: state.update({"v_head.weight": torch.ones(1, 256), "v_head.bias": torch.ones(1)}))
    change_weights(copy, lambda state: state.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(32)}))
    words = ["evaluate", str(copy), "--window", "16", "--tokens", "32", "--results", ""]
    told = "left out of copy, since models of its type do not have them: v_head"
    assert call([*words, "--reference", str(copy)]) == 0
    assert capsys.readouterr().out.count(told) == 2
    assert call([*words, "--json"]) == 0
    assert sorted(json.loads(capsys.readouterr().out.splitlines()[-1])["left_out"]) == ["v_head.bias", "v_head.weight"]
    assert call(["quantize", "--model", str(copy), "--recipe", "rtn-w4g32", "--out", str(tmp_path), "--dry-run", "--length", "16"]) == 0
    assert told in capsys.readouterr().out


HOSTILE = [
    {"num_beams": 10**6},
    {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    {"penalty_alpha": 0.6, "top_k": 4},
    {"dola_layers": "high"},
    {"repetition_penalty": 1e9},
    {"min_length": 10**6, "max_length": 10**9},
    {"stop_strings": ["a"]},
    {"assistant_early_exit": 1},
    {"use_cache": False, "cache_implementation": "static"},
    {"num_return_sequences": 5},
    {"suppress_tokens": list(range(4000))},
    {"forced_eos_token_id": 7},
    {"guidance_scale": 3.0},
    {"custom_generate": "someone/else", "trust_remote_code": True},
    {"prompt_lookup_num_tokens": 5},
]


@pytest.mark.parametrize("settings", HOSTILE, ids=lambda settings: next(iter(settings)))
@pytest.mark.parametrize("file", ["generation_config.json", "config.json"])
def test_answers_are_the_likeliest_tokens_whatever_a_model_says_of_writing(
    file: str, settings: dict[str, Any], copy: Path, tiny: OpenedModel
) -> None:
    if file == "config.json":
        change_config(copy, **settings)
    else:
        (copy / file).write_text(json.dumps({"eos_token_id": [0, 5], **settings}))
    model, start = load(locate(str(copy))), torch.tensor([[5, 6, 7]])
    found = model.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=4, min_new_tokens=4, do_sample=False, pad_token_id=0
    )
    tokens, plain = start, load(tiny)
    for _ in range(4):
        following = plain(tokens).logits[0, -1].index_fill(0, torch.tensor([0, 5] if file != "config.json" else [0]), -torch.inf)
        tokens = torch.cat([tokens, following.argmax()[None, None]], 1)
    assert torch.equal(found, tokens)


@pytest.mark.parametrize("value", ["0", [0, "1"], {"a": 0}, 0.5, -1, True, [[0]]])
def test_ends_of_text_that_are_no_tokens_are_refused(value: Any, copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    with pytest.raises(UserError, match=r"eos_token_id of copy is .*expected the number of a token|generation_config"):
        load(locate(str(copy)))


def test_a_missing_head_says_what_to_set(copy: Path, calibration: torch.Tensor, tmp_path: Path) -> None:
    change_config(copy, tie_word_embeddings=False)
    both_refuse(copy, calibration, tmp_path / "out", r"has no lm_head\.weight, and tie_word_embeddings is false")


def test_a_matrix_of_another_shape(copy: Path, calibration: torch.Tensor, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    change_weights(copy, lambda state: state.update({name: state[name][:128].contiguous()}))
    both_refuse(copy, calibration, tmp_path / "out", r"up_proj\.weight of copy is \[128, 256\], its configuration asks for \[512, 256\]")


def test_a_configuration_with_fewer_layers_than_the_checkpoint(copy: Path, calibration: torch.Tensor, tmp_path: Path) -> None:
    change_config(copy, num_hidden_layers=1)
    both_refuse(copy, calibration, tmp_path / "out", "its configuration does not describe these weights")


@pytest.mark.parametrize("layers", [0, 10**9])
def test_an_absurd_number_of_layers(layers: int, copy: Path, calibration: torch.Tensor, tmp_path: Path) -> None:
    change_config(copy, num_hidden_layers=layers)
    both_refuse(copy, calibration, tmp_path / "out", f"makes no sense: num_hidden_layers is {layers} ")


def test_values_that_are_not_finite(copy: Path, calibration: torch.Tensor, tmp_path: Path) -> None:
    change_weights(copy, lambda state: state["model.norm.weight"].view(-1)[0:1].fill_(torch.nan))
    both_refuse(copy, calibration, tmp_path / "out", r"model\.norm\.weight holds NaN or infinity")


@pytest.mark.parametrize("extra", ["v_head.summary.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"])
def test_tensors_beside_the_model_are_left_out(
    extra: str, copy: Path, tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path
) -> None:
    """A value head, frequencies that the model computes, a second copy of a tied head."""
    change_weights(copy, lambda state: state.update({extra: torch.ones(4, 4).half()}))
    assert torch.equal(logits(load(locate(str(copy)))), logits(load(tiny)))
    (made,) = quantize_model(locate(str(copy)), [parse("rtn-w4g64")], calibration, tmp_path / "out")
    assert extra not in load_file(made.path / "model.safetensors")
    assert logits(load(made.source)).isfinite().all()


def test_weights_that_do_not_fit_the_configuration(copy: Path) -> None:
    change_config(copy, model_type="no_such_type")
    with pytest.raises(UserError, match="transformers cannot open copy"):
        load(locate(str(copy)))


def test_custom_code_is_not_run(copy: Path, calibration: torch.Tensor, tmp_path: Path) -> None:
    (copy / "modeling_my.py").write_text("raise SystemExit('it was run')")
    names = {"AutoConfig": "modeling_my.MyConfig", "AutoModelForCausalLM": "modeling_my.MyModel"}
    change_config(copy, model_type="mymodel", auto_map=names)
    both_refuse(copy, calibration, tmp_path / "out", "transformers cannot open copy")


def test_a_quantization_that_qlab_does_not_read(copy: Path) -> None:
    for entry, message in (({"quant_method": "awq", "bits": 3}, "of 3 bits"), ({"quant_method": "hqq", "bits": 4}, "quantized as hqq")):
        change_config(copy, quantization_config=entry)
        with pytest.raises(UserError, match=message):
            load(locate(str(copy)))


def test_shards_without_their_index(copy: Path, tiny: OpenedModel) -> None:
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    for number, names in enumerate((list(state)[:7], list(state)[7:])):
        save_file({name: state[name] for name in names}, copy / f"model-{number}.safetensors", {"format": "pt"})
    assert torch.equal(logits(load(locate(str(copy)))), logits(load(tiny)))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": "1.0"}', b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"]
)
def test_a_damaged_tokenizer_is_one_sentence(content: bytes, copy: Path) -> None:
    (copy / "tokenizer.json").write_bytes(content)
    said = r"tokenizer\.json (is not JSON|holds no JSON object|is a pointer of git-lfs)|no tokenizer that can be read and used"
    with pytest.raises(UserError, match=said):
        load_tokenizer(locate(str(copy)))


def test_no_tokenizer_at_all(copy: Path) -> None:
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UserError, match="there is no tokenizer that can be read"):
        load_tokenizer(locate(str(copy)))


@pytest.mark.parametrize("name", ["../x/model.safetensors", "sub/x.bin", "model.bin"])
def test_an_index_names_nothing_outside_the_folder(name: str, copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(UserError, match="expected safetensors files that lie beside it"):
        locate(str(copy))


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 1}}])
def test_an_index_without_places(index: dict[str, Any], copy: Path) -> None:
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="has no 'weight_map'"):
        locate(str(copy))
