"""Finding and opening models, and what is said of those that cannot be opened."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, decoder_layers, locate
from qlab.support.errors import UserError


@pytest.fixture
def copy(tiny: OpenedModel, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny.path, tmp_path / "copy"))


def test_a_folder_opens_and_its_fingerprint_follows_its_content(tiny: OpenedModel, copy: Path) -> None:
    assert locate(str(copy)).fingerprint == tiny.fingerprint
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert locate(str(copy)).fingerprint != tiny.fingerprint
    model = load(tiny)
    assert model.dtype == torch.float32
    assert len(decoder_layers(model)) == 2 * 7
    assert load_tokenizer(tiny).encode("return the array")


def test_what_a_configuration_leaves_open_its_class_takes(tmp_path: Path) -> None:
    sizes = {"vocab_size": 100, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0)
    for open_ones in ({}, {"no_rope_layers": None, "layer_types": None, "num_key_value_heads": None, "rope_parameters": None}):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "smollm3"} | sizes | open_ones))
        found = locate(str(tmp_path), weights=False).text_config
        assert found["no_rope_layers"] == [1, 1, 1, 0]
        assert found["layer_types"] == ["full_attention"] * 4
        assert found["rope_parameters"]["rope_theta"] == 2000000.0
        assert isinstance(found["num_key_value_heads"], int)


def test_weights_tell_the_half_precision_that_a_configuration_does_not_name(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    weights = load_file(copy / "model.safetensors")
    for stored, said, expected in (
        (torch.bfloat16, {}, torch.bfloat16),
        (torch.bfloat16, {"dtype": None}, torch.bfloat16),
        (torch.float16, {}, torch.float16),
        (torch.float16, {"torch_dtype": "bfloat16"}, torch.bfloat16),
        (torch.bfloat16, {"dtype": "float16"}, torch.float16),
    ):
        save_file({name: tensor.to(stored) for name, tensor in weights.items()}, copy / "model.safetensors", {"format": "pt"})
        told = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")} | said
        (copy / "config.json").write_text(json.dumps(told))
        assert locate(str(copy)).trained_in == expected, (stored, said)


@pytest.mark.parametrize(
    "name",
    [
        "chat_template.jinja",
        "chat_template.json",
        "additional_chat_templates/tool_use.jinja",
        "generation_config.json",
        "merges.txt",
        "vocab.json",
        "added_tokens.json",
        "special_tokens_map.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "spiece.model",
        "config.json",
        "model.safetensors.index.json",
    ],
)
def test_the_fingerprint_follows_every_file_that_a_model_is_read_from(name: str, copy: Path) -> None:
    file, found = copy / name, list[str]()
    file.parent.mkdir(exist_ok=True)
    before = file.read_bytes() if file.exists() else b'{"weight_map": {"lm_head.weight": "model.safetensors"}}'
    for content in (before, before + b" ", before + b"\n"):
        file.write_bytes(content)
        found.append(locate(str(copy)).fingerprint)
    file.unlink()
    if name != "config.json":
        found.append(locate(str(copy)).fingerprint)
    assert len(set(found)) == len(found)


def test_the_fingerprint_tells_whose_content_is_whose_and_passes_over_notes(copy: Path) -> None:
    for name, content in (("merges.txt", "ab"), ("special_tokens_map.json", "c")):
        (copy / name).write_text(content)
    before = locate(str(copy)).fingerprint
    for name in ("README.md", "LICENSE.txt", "qlab-cost.json"):
        (copy / name).write_text("notes")
    assert locate(str(copy)).fingerprint == before
    for name, content in (("merges.txt", "a"), ("special_tokens_map.json", "bc")):
        (copy / name).write_text(content)
    assert locate(str(copy)).fingerprint != before


def test_the_embedded_model_is_what_its_issue_asks_for() -> None:
    source = locate("embedded")
    config = source.config
    assert config["model_type"] == "llama"
    assert config["hidden_size"] % 256 == config["intermediate_size"] % 256 == 0
    assert config["hidden_size"] // config["num_attention_heads"] == 64
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["tie_word_embeddings"]
    assert 10e6 <= load(source).num_parameters() <= 25e6
    assert (source.path / "model.safetensors").stat().st_size <= 50e6


@pytest.mark.parametrize(
    ("name", "message"), [("/nowhere", "no model '/nowhere': expected"), ("../up", "no model"), ("", "no model"), ("a b/c", "no model")]
)
def test_names_that_are_no_model(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        locate(name)


def test_a_folder_without_weights(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"copy/ has no weights: expected \*.safetensors$"):
        locate(str(copy))
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"pytorch_model.bin is a pickle, which can run code"):
        locate(str(copy))
    (copy / "config.json").unlink()
    with pytest.raises(UserError, match=r"has no config\.json"):
        locate(str(copy))


def test_damaged_weights(copy: Path) -> None:
    file = copy / "model.safetensors"
    whole = file.read_bytes()
    for broken in (whole[:-100], b"\xff" * 64, b""):
        file.write_bytes(broken)
        with pytest.raises(UserError, match=r"copy/model.safetensors is damaged"):
            locate(str(copy))


def test_a_missing_shard(copy: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks 1 of 2 weight files: model-00002"):
        locate(str(copy))


def test_a_hub_id_without_a_network_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens: the discard port
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"could not fetch 'someone/something' from the hub .* give a folder"):
        locate("someone/something")


def test_a_hub_model_is_fetched_without_pickles_or_code_and_then_named_by_its_commit(tiny: OpenedModel, tmp_path: Path) -> None:
    """Against a hub of our own on the loopback interface: the client is the real one."""
    from tests.hub import COMMIT, serving_hub

    extra = {"pytorch_model.bin": b"pickle", "modeling.py": b"raise SystemExit"}
    code = (
        "from qlab.artifacts.artifact import model_folder\n"
        "from qlab.models.locating import lasting; from qlab.models.opening import locate\n"
        "source = locate('someone/tiny'); word = lasting('someone/tiny', source.path); again = locate(word)\n"
        "print(source.name, source.fingerprint, word, again.name, again.path == source.path, model_folder(again))"
    )
    with serving_hub("someone/tiny", tiny.path, extra) as (url, requested):
        # The client reads its endpoint once, as it is imported: hence a process of its own.
        environment = os.environ | {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    folder = f"tiny-{tiny.fingerprint[:8]}"
    assert done.stdout.split() == ["someone/tiny", tiny.fingerprint, f"someone/tiny@{COMMIT}", "someone/tiny", "True", folder], done.stderr
    resolved = [path for path in requested if path.startswith("/api/models/someone/tiny/revision/")]
    assert resolved == ["/api/models/someone/tiny/revision/main"]  # once: by its commit it is found in the cache
    assert any(path.endswith("model.safetensors") for path in requested)
    assert not any(name in path for path in requested for name in extra)


def on_the_hub(code: str, url: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """Run code whose hub lies at `url`. The client reads its endpoint once, as it is imported: hence a process of its own."""
    environment = os.environ | {"HF_ENDPOINT": url, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


def test_a_hub_model_is_looked_at_without_its_weights(tiny: OpenedModel, tmp_path: Path) -> None:
    """First nothing is in the cache, then all but the weights, then some of these, then all."""
    from tests.hub import serving_hub

    index = json.dumps({"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}).encode()
    code = """if True:
        from pathlib import Path
        from huggingface_hub import hf_hub_download
        from qlab.models.locating import still_to_fetch
        from qlab.models.opening import locate
        def look():
            source = locate("someone/tiny", weights=False)
            print(source.on_paper, len(source.checkpoint.shapes), still_to_fetch("someone/tiny") // 1000, flush=True)
            return source
        place = look().path
        assert not list(place.glob("*.safetensors*"))
        hf_hub_download("someone/tiny", "model.safetensors.index.json")
        hf_hub_download("someone/tiny", "model.safetensors")
        look()"""
    extra = {"model.safetensors.index.json": index, "model-00002.safetensors": b"x" * 50_000}
    with serving_hub("someone/tiny", tiny.path, extra) as (url, _):
        done = on_the_hub(code, url, tmp_path)
    missing = ((tiny.path / "model.safetensors").stat().st_size + len(index) + 50_000) // 1000
    count = len(tiny.checkpoint.shapes)
    assert done.stdout.split() == ["True", str(count), str(missing), "True", str(count), "50"], done.stderr


def test_a_model_behind_its_licence_says_where_to_accept_it(tiny: OpenedModel, tmp_path: Path) -> None:
    from tests.hub import serving_hub

    code = """if True:
        from qlab.models.opening import locate
        from qlab.support.errors import UserError
        for weights in (True, False):
            try:
                locate("someone/tiny", weights)
            except UserError as error:
                print(error)"""
    with serving_hub("someone/tiny", tiny.path, {}, gated=True) as (url, _):
        done = on_the_hub(code, url, tmp_path)
    assert done.stdout.count("accepted its licence: open its page on the hub in a browser") == 2, done.stderr
