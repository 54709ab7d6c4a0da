"""GGUF files: read back by gguf-py and transformers, run and tokenized by llama.cpp."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qlab.evaluate.quality import measure_each
from qlab.formats.gguf.encoding import alone, encode_rows, encode_tensor, encode_tensors
from qlab.formats.gguf.file import assemble, check_model, remarks
from qlab.formats.gguf.metadata import rope_factors, sliding_window
from qlab.formats.gguf.mix import DEFAULT, Mix, tensor_type
from qlab.formats.gguf.tokens.splitting import WAYS
from qlab.methods.hessian import damp
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from qlab.serve.runtimes.llamacpp import LlamaCpp, post
from qlab.serve.server import on_free_port, serving
from qlab.support.errors import UserError
from tests.formats.gguf.writing import write_gguf

TEXTS = [
    "Return the sum of the array's elements, 12345 of them.",
    "Les données   restent à la maison : 3,14 km².\n\n\tfin",
    "x = {'a': [1, 2]}",
]


@pytest.fixture(scope="module", params=["embedded", "second"])
def subject(request: pytest.FixtureRequest) -> OpenedModel:
    return locate("embedded" if request.param == "embedded" else str(request.getfixturevalue("second_model")))


Written = Callable[[OpenedModel, str], Path]
"""The file of a model in a mix, alone in its folder; written where it is first asked for."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    made: dict[tuple[Path, str], Path] = {}

    def write(model: OpenedModel, mix: str) -> Path:
        if (model.path, mix) not in made:
            out = tmp_path_factory.mktemp(mix) / f"{mix}.gguf"
            write_gguf(model.path, model.config, mix, out)
            made[model.path, mix] = out
        return made[model.path, mix]

    return write


ORDER = ["f16", "q8_0", "q5_k_m", "q4_k_m", "q3_k_m", "q2_k", "q2_k_s"]  # the others stand between two of these


def test_f16_is_the_model_itself_and_fewer_bits_are_farther(subject: OpenedModel, written: Written) -> None:
    windows = torch.randint(1, 4000, (4, 64), generator=torch.Generator().manual_seed(0))
    models = [load(locate(str(written(subject, mix).parent))) for mix in ORDER]
    kl = {mix: quality.kl for mix, quality in zip(ORDER, measure_each(models, windows, load(subject)))}
    assert kl["f16"] == pytest.approx(0, abs=1e-6)
    assert list(kl.values()) == sorted(kl.values())
    assert kl["q8_0"] < 0.1 * kl["q4_k_m"]
    assert kl["q4_k_m"] < 0.1


def test_kinds_of_up_to_five_bits_settle_and_wider_ones_do_not() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 512, generator=generator)
    x = torch.randn(300, 512, generator=generator) @ torch.randn(512, 512, generator=generator)
    moved = {
        kind: not encode_rows(weight, kind, None, lambda: damp(x.T @ x)).equal(encode_rows(weight, kind, None))
        for kind in ("Q2_K", "Q4_0", "Q4_K", "Q5_K", "IQ4_NL", "IQ4_XS", "Q6_K", "Q8_0")
    }
    assert moved == {kind: kind not in ("Q6_K", "Q8_0") for kind in moved}


def test_the_file_follows_the_mix(subject: OpenedModel, written: Written) -> None:
    """On the second model, of as many blocks and heads and rows that the same blocks divide, in the mixes that are written anyway."""
    for mix in DEFAULT if subject.name == "embedded" else ORDER:
        reader, of_mix = gguf.GGUFReader(written(subject, mix)), Mix(mix, weighed=False)
        for tensor in reader.tensors:
            assert tensor.tensor_type.name == tensor_type(tensor.name, tuple(reversed(tensor.shape.tolist())), of_mix, subject.config)
        assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType[f"MOSTLY_{mix.upper()}"]
    mixed = gguf.GGUFReader(written(subject, "q3_k_m")).tensors
    assert {tensor.tensor_type.name for tensor in mixed} == {"F32", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}


def assert_alike(model: Any, file: Path, ids: list[int], tolerance: float) -> None:
    """llama.cpp's and transformers' log-probabilities of the likeliest next tokens agree."""
    with serving(LlamaCpp(), on_free_port(file)) as server:
        body = {"prompt": ids, "n_predict": 1, "temperature": -1.0, "n_probs": 20}
        answer = post(server.url, "/completion", body)["completion_probabilities"][0]["top_logprobs"]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0, -1].float().log_softmax(-1)
    served = torch.tensor([entry["logprob"] for entry in answer])
    torch.testing.assert_close(served, expected[[entry["id"] for entry in answer]], atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("subject", "mix"), [*(("embedded", mix) for mix in DEFAULT), ("second", "f16"), ("second", "q4_k_m")], indirect=["subject"]
)
def test_llama_cpp_runs_every_mix(mix: str, subject: OpenedModel, written: Written) -> None:
    # Beside what transformers makes of the file's own weights; llama.cpp rounds activations to 8 bits where weights are quantized.
    ids = load_tokenizer(subject).encode(TEXTS[0], add_special_tokens=False)
    file = written(subject, mix)
    assert_alike(load(locate(str(file.parent))), file, ids, 0.02 if mix == "f16" else 0.3)


def test_llama_cpp_cuts_the_same_tokens(subject: OpenedModel, written: Written) -> None:
    tokenizer = load_tokenizer(subject)
    with serving(LlamaCpp(), on_free_port(written(subject, "f16"))) as server:
        for text in TEXTS:
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert post(server.url, "/tokenize", {"content": text})["tokens"] == ids


BYTES_LAST = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
AS_PUBLISHED: dict[str, list[dict[str, Any]]] = {  # ways of splitting that models' files state otherwise than by patterns alone
    "gpt-2": [BYTES_LAST | {"use_regex": True}],
    "smollm": [{"type": "Digits", "individual_digits": True}, BYTES_LAST | {"use_regex": True}],
    "falcon": [
        {"type": "Punctuation", "behavior": "Contiguous"}, BYTES_LAST | {"use_regex": True}, {"type": "Digits", "individual_digits": False},
        {"type": "Split", "pattern": {"Regex": "[0-9][0-9][0-9]"}, "behavior": "Isolated", "invert": False},
    ],
}  # fmt: skip


def published(name: str) -> list[dict[str, Any]]:
    """The steps of tokenizer.json under one of llama.cpp's names."""
    splits = [{"type": "Split", "pattern": {"Regex": each}, "behavior": "Isolated", "invert": False} for each in WAYS[name][:-1]]
    return AS_PUBLISHED.get(name) or [*splits, BYTES_LAST]


@pytest.mark.parametrize("name", list(WAYS))
def test_llama_cpp_splits_text_alike(name: str, tmp_path: Path) -> None:
    source = locate("embedded")
    description = json.loads((source.path / "tokenizer.json").read_text())
    description["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": published(name)}
    description["model"]["ignore_merges"] = name == "llama-bpe"
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    for file in ("model.safetensors", "tokenizer_config.json"):
        shutil.copyfile(source.path / file, tmp_path / file)
    (tmp_path / "config.json").write_text(json.dumps(source.config))
    write_gguf(tmp_path, source.config, "f16", tmp_path / "m.gguf")  # whose weights are soonest written, and cut no text
    ours, read = load_tokenizer(locate(str(tmp_path))), load_tokenizer(locate(str(tmp_path / "m.gguf")))
    with serving(LlamaCpp(), on_free_port(tmp_path / "m.gguf")) as server:
        for text in [*TEXTS, "It's WE'LL HelloWorld 1234567 12!?/\n\n漢字かな3 x²"]:
            ids = ours.encode(text, add_special_tokens=False)
            assert post(server.url, "/tokenize", {"content": text})["tokens"] == ids
            assert read.encode(text, add_special_tokens=False) == ids


STRETCHED = {
    "linear": {"rope_type": "linear", "factor": 1.5, "rope_theta": 10000.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 16},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0,
        "original_max_position_embeddings": 16,
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", list(STRETCHED))
def test_llama_cpp_turns_stretched_rotary_embeddings_alike(kind: str, tmp_path: Path) -> None:
    source = locate("embedded")
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source.path / name, tmp_path / name)
    config = source.config | {"rope_parameters": STRETCHED[kind]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = load(locate(str(tmp_path)))
    (tmp_path / "out").mkdir()
    write_gguf(tmp_path, config, "f16", tmp_path / "out" / "m.gguf")
    ids = load_tokenizer(source).encode(TEXTS[0] + " It raises an error if", add_special_tokens=False)
    assert_alike(model, tmp_path / "out" / "m.gguf", ids, 0.02)
    with pytest.raises(AssertionError):  # the stretching shows
        assert_alike(load(source), tmp_path / "out" / "m.gguf", ids, 0.1)


@pytest.mark.parametrize("kind", ["mistral", "qwen2"])
def test_a_sliding_window_is_told_and_llama_cpp_agrees_up_to_it(kind: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, MistralConfig, Qwen2Config

    sizes: dict[str, Any] = {
        "vocab_size": 4096, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 256, "sliding_window": 16, "tie_word_embeddings": True,
        "bos_token_id": 0, "eos_token_id": 0,
    }  # fmt: skip
    config = MistralConfig(**sizes) if kind == "mistral" else Qwen2Config(**sizes, use_sliding_window=True, max_window_layers=1)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
    model = model.half().float().eval()
    model.half().save_pretrained(tmp_path)
    model.float()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(locate("embedded").path / name, tmp_path / name)
    stored = json.loads((tmp_path / "config.json").read_text())
    write_gguf(tmp_path, stored, "f16", tmp_path / "m.gguf")
    ids = torch.randint(1, 4000, (48,), generator=torch.Generator().manual_seed(0)).tolist()
    assert_alike(model, tmp_path / "m.gguf", ids[:16], 0.02)
    with pytest.raises(AssertionError):  # beyond the window it is another function, and the remark says so
        assert_alike(model, tmp_path / "m.gguf", ids, 0.02)
    assert "last 16 tokens" in remarks(tmp_path, stored)["sliding window"]


@pytest.mark.parametrize(
    ("config", "window"),
    [
        ({"model_type": "mistral"}, 4096),  # the default of transformers' MistralConfig
        ({"model_type": "mistral", "sliding_window": None}, None),
        ({"model_type": "mistral", "sliding_window": 32768}, None),  # all of its context
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": False}, None),
        ({"model_type": "qwen2", "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 24}, None),  # from block 24 on
        ({"model_type": "qwen3", "use_sliding_window": True, "layer_types": ["full_attention", "sliding_attention"]}, 4096),
        ({"model_type": "phi3", "sliding_window": 2047, "max_position_embeddings": 4096}, 2047),  # Phi-3-mini-4k
        ({"model_type": "phi3"}, None),
        ({"model_type": "starcoder2", "sliding_window": 4096}, 4096),
        ({"model_type": "mixtral", "sliding_window": 4096}, 4096),
        ({"model_type": "qwen2_moe", "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]}, 4096),
        ({"model_type": "qwen3_moe", "use_sliding_window": True, "max_window_layers": 24}, 4096),  # which its class does not read
        ({"model_type": "qwen3_moe", "use_sliding_window": False, "sliding_window": 4096}, None),
        ({"model_type": "gemma2", "sliding_window": 4096}, None),  # the file has it
        ({"model_type": "llama", "sliding_window": 64}, None),  # Llama knows none, whatever its configuration says
    ],
)
def test_which_models_have_a_sliding_window(config: dict[str, Any], window: int | None) -> None:
    assert sliding_window({"max_position_embeddings": 32768, "num_hidden_layers": 24} | config) == window


@pytest.mark.parametrize("begin", ["", "model.language_model.", "model.text_model.", "language_model.model."])
def test_a_language_model_within_another_goes_by_its_own_names(begin: str) -> None:
    assert alone(f"{begin or 'model.'}layers.1.mlp.up_proj.weight") == "model.layers.1.mlp.up_proj.weight"
    assert alone(f"{'language_model.' if begin.startswith('l') else ''}lm_head.weight") == "lm_head.weight"


def test_a_model_that_reads_a_prompt_both_ways_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "paligemma"}))
    with pytest.raises(UserError, match="run this paligemma model as another function"):
        parse("q8_0").check(locate(str(tmp_path), weights=False))


def test_a_tensor_without_a_place_is_told_before_any_work(tiny: OpenedModel) -> None:
    names = list(load_file(tiny.path / "model.safetensors"))
    check_model(tiny.path, tiny.config, names)
    with pytest.raises(UserError, match=r"model\.layers\.0\.odd\.weight has no place in a GGUF file of architecture llama"):
        check_model(tiny.path, tiny.config, [*names, "model.layers.0.odd.weight"])


def test_llama_3s_factors_are_transformers_own() -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = STRETCHED["llama3"] | {"original_max_position_embeddings": 8192, "rope_theta": 500000.0}
    config = LlamaConfig(hidden_size=4096, num_attention_heads=32, max_position_embeddings=131072, rope_parameters=rope)
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    plain = 500000.0 ** (-torch.arange(0, 128, 2) / 128)
    factors = rope_factors(config.to_dict())
    assert factors is not None
    torch.testing.assert_close(plain / factors, stretched)
    assert factors.unique().numel() > 5
    assert rope_factors(config.to_dict() | {"rope_parameters": {"rope_type": "default"}}) is None


def test_llama_cpp_runs_a_qwen3(tiny: OpenedModel, tmp_path: Path) -> None:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=4096, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=32, max_position_embeddings=256, tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            parameter.data.uniform_(0.5, 1.5)  # so that a norm in the wrong place would show
    model.half().float().save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(tiny.path / name, tmp_path / name)
    write_gguf(tmp_path, json.loads((tmp_path / "config.json").read_text()), "f16", tmp_path / "m.gguf")
    assert_alike(model, tmp_path / "m.gguf", [5, 17, 300, 2000, 8], 0.02)


def weights_of(source: OpenedModel) -> dict[str, Tensor]:
    return load_file(source.path / "model.safetensors")


def test_an_encoded_tensor_says_what_it_is(tiny: OpenedModel) -> None:
    weights = weights_of(tiny)
    [(key, norm)] = encode_tensor("model.norm.weight", weights["model.norm.weight"], Mix("q4_k_m"), tiny.config).items()
    assert key == "F32:output_norm.weight"
    assert norm.dtype is torch.float32
    name = "model.layers.0.mlp.up_proj.weight"
    [(key, data)] = encode_tensor(name, weights[name], Mix("q4_k_m"), tiny.config).items()
    assert key == "Q4_K:blk.0.ffn_up.weight"
    assert data.dtype is torch.uint8
    decoded = gguf.quants.dequantize(data.numpy(), gguf.GGMLQuantizationType.Q4_K)
    assert np.abs(decoded - weights[name].float().numpy()).max() < 0.01
    weighted = encode_tensor(name, weights[name], Mix("q4_k_m"), tiny.config, torch.arange(256) + 1.0)
    assert not torch.equal(weighted[key], data)
    [(key, half)] = encode_tensor(name, weights[name].float(), Mix("f16"), tiny.config).items()
    assert key == "F16:blk.0.ffn_up.weight"
    assert torch.equal(half, weights[name])
    assert encode_tensor("lm_head.weight", weights["model.embed_tokens.weight"], Mix("q4_k_m"), tiny.config) == {}
    assert encode_tensor("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4), Mix("q4_k_m"), tiny.config) == {}


@pytest.mark.parametrize("at_once", [1 << 22, 128 * 256])
@pytest.mark.parametrize("mix", ["q4_k_m", "q3_k_m", "f16"])
def test_tensors_of_one_input_become_together_what_each_becomes_alone(
    mix: str, at_once: int, tiny: OpenedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, seen = weights_of(tiny), torch.arange(256) + 1.0
    x = torch.randn(300, 256, generator=torch.Generator().manual_seed(0)) * seen.sqrt()
    names = [f"model.layers.1.self_attn.{part}_proj.weight" for part in "qkv"] + ["model.layers.1.input_layernorm.weight"]
    for encoder, like in ((None, 1.0), (partial(encode_rows, hessian=lambda: damp(x.T @ x)), 0.99)):
        alone = [encode_tensor(name, weights[name], Mix(mix), tiny.config, seen, encoder) for name in names]
        monkeypatch.setattr("qlab.formats.gguf.encoding.AT_ONCE", at_once)
        together = encode_tensors({name: weights[name] for name in names}, Mix(mix), tiny.config, seen, encoder)
        monkeypatch.undo()
        assert list(together) == [key for tensors in alone for key in tensors]
        assert len({key.partition(":")[0] for key in together}) == (2 if mix == "f16" else 3)  # the values get more bits, the norm none
        assert all(float(together[key].eq(tensor).float().mean()) >= like for tensors in alone for key, tensor in tensors.items())


def test_of_tensors_encoded_together_the_bad_one_is_named(tiny: OpenedModel) -> None:
    names = [f"model.layers.0.self_attn.{part}_proj.weight" for part in "qk"]
    weights = {name: torch.zeros(128, 256) for name in names}
    weights[names[1]][3, 4] = torch.nan
    with pytest.raises(UserError) as caught:
        encode_tensors(weights, Mix("q4_k_m"), tiny.config)
    assert str(caught.value).startswith(names[1])
    assert names[0] not in str(caught.value)


def test_rows_of_queries_come_in_llama_cpps_order(tiny: OpenedModel) -> None:
    name = "model.layers.1.self_attn.k_proj.weight"
    rows = torch.arange(128.0)[:, None].expand(128, 256)  # two heads of 64: each row is its number
    [tensor] = encode_tensor(name, rows, Mix("f16"), tiny.config).values()
    assert tensor[:6, 0].tolist() == [0, 32, 1, 33, 2, 34]
    assert tensor[64:68, 0].tolist() == [64, 96, 65, 97]
    [qwen] = encode_tensor(name, rows, Mix("f16"), tiny.config | {"model_type": "qwen2"}).values()
    assert torch.equal(qwen.float(), rows)


def test_the_file_is_the_same_however_its_parts_are_divided(tiny: OpenedModel, tmp_path: Path) -> None:
    encoded: dict[str, Tensor] = {}
    names = list(weights_of(tiny))
    for name, tensor in weights_of(tiny).items():
        encoded |= encode_tensor(name, tensor, Mix("q4_k_m"), tiny.config)
    keys = sorted(encoded, key=lambda key: key[::-1])
    halves = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({key: encoded[key] for key in keys[:5]}, halves[0])
    save_file({key: encoded[key] for key in keys[5:]}, halves[1])
    for order, out in ((halves, "1.gguf"), (halves[::-1], "2.gguf")):
        assemble(order, tiny.path, tiny.config, names, "q4_k_m", tmp_path / out)
    write_gguf(tiny.path, tiny.config, "q4_k_m", tmp_path / "3.gguf")
    first, *others = [(tmp_path / f"{n}.gguf").read_bytes() for n in (1, 2, 3)]
    assert all(first == other for other in others)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["1.gguf", "2.gguf", "3.gguf", "a.safetensors", "b.safetensors"]

    with pytest.raises(UserError, match="comes twice"):
        assemble([*halves, halves[0]], tiny.path, tiny.config, names, "q4_k_m", tmp_path / "x.gguf")
    with pytest.raises(UserError, match="lacks 5 tensors, "):
        assemble(halves[1:], tiny.path, tiny.config, names, "q4_k_m", tmp_path / "x.gguf")


def test_importance_reaches_its_layer(tiny: OpenedModel, tmp_path: Path) -> None:
    layer = "model.layers.0.mlp.gate_proj"
    write_gguf(tiny.path, tiny.config, "q4_k_m", tmp_path / "plain.gguf")
    write_gguf(tiny.path, tiny.config, "q4_k_m", tmp_path / "aware.gguf", {layer: torch.arange(256) + 1.0})
    plain, aware = (
        {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / name).tensors} for name in ("plain.gguf", "aware.gguf")
    )
    assert [name for name in plain if not np.array_equal(plain[name], aware[name])] == ["blk.0.ffn_gate.weight"]


def test_only_the_indexs_files_are_read(tiny: OpenedModel, tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        shutil.copyfile(tiny.path / name, tmp_path / name)
    shutil.copyfile(tiny.path / "model.safetensors", tmp_path / "consolidated.safetensors")  # Mistral ships its weights twice
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"any": "model.safetensors"}}))
    write_gguf(tmp_path, tiny.config, "q8_0", tmp_path / "m.gguf")
    assert len(gguf.GGUFReader(tmp_path / "m.gguf").tensors) == 20


def test_unknown_kinds_are_refused(tiny: OpenedModel, tmp_path: Path) -> None:
    for change, message in (
        ({"model_type": "mamba"}, "no GGUF writer for model type 'mamba'"),
        ({"hidden_act": "gelu"}, "compute silu, this one gelu"),
        ({"rope_scaling": {"type": "longrope", "factor": 2}}, "rotary embeddings of type 'longrope'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ):
        with pytest.raises(UserError, match=message):
            write_gguf(tiny.path, tiny.config | change, "f16", tmp_path / "x.gguf")
    with pytest.raises(UserError, match="no GGUF mix 'q9'"):
        write_gguf(tiny.path, tiny.config, "q9", tmp_path / "x.gguf")
    with pytest.raises(UserError, match=r"model\.layers\.0\.odd\.weight has no place"):
        encode_tensor("model.layers.0.odd.weight", torch.zeros(2, 256), Mix("f16"), tiny.config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("mix", "value"), [("f16", 1e6), ("f16", torch.nan), ("q4_k_m", torch.inf), ("q8_0", torch.nan)])
def test_weights_that_cannot_be_stored_are_named(mix: str, value: float, tiny: OpenedModel) -> None:
    weight = torch.zeros(512, 256)
    weight[3, 4] = value
    with pytest.raises(UserError, match=r"model\.layers\.0\.mlp\.up_proj\.weight.*check the checkpoint"):
        encode_tensor("model.layers.0.mlp.up_proj.weight", weight, Mix(mix), tiny.config)
