"""Texts through the commands: what is read, said, kept in manifests, and refused before any work."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerFast

from qlab.artifacts.artifact import quantize_model
from qlab.cli import call
from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.builtin import python_reference
from qlab.models.texts.windows import read_windows
from qlab.recipes import parse

TEMPLATE = "{% for m in messages %}<|endoftext|>{{ m.role }}\n{{ m.content }}\n{% endfor %}"


@pytest.fixture
def chatting(tiny: OpenedModel, tmp_path: Path) -> Path:
    """The tiny model with a chat template."""
    folder = tmp_path / "chatting"
    shutil.copytree(tiny.path, folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def talks(file: Path) -> Path:
    topics = [topic for topic in python_reference().split("\n\n") if len(topic) > 200][:60]
    lines = [{"messages": [{"role": "user", "content": "Explain."}, {"role": "assistant", "content": topic}]} for topic in topics]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_quantize_with_conversations_and_a_text(chatting: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    first, second = talks(tmp_path / "a.jsonl"), tmp_path / "b.txt"
    second.write_text(python_reference()[:60000])
    words = ["quantize", "--model", str(chatting), "--recipe", "awq-w4g128", "--windows", "9", "--length", "32"]
    assert call([*words, "--out", str(tmp_path / "out"), "--calibration", f"{first}:2", "--calibration", str(second)]) == 0
    said = capfd.readouterr().out
    assert "calibration: a.jsonl: conversations by the chat template, " in said
    assert "6 windows used; the other documents were not needed" in said
    assert "calibration: b.txt: plain text, 1 document read, " in said
    assert "calibration: windows of 32 tokens that do not overlap, no BOS" in said
    manifest = json.loads((tmp_path / "out" / "awq-w4g128" / "qlab.json").read_text())
    assert [(one["name"], one["windows"]) for one in manifest["calibration"]] == [("a.jsonl", 6), ("b.txt", 3)]
    assert str(tmp_path) not in json.dumps(manifest)
    assert manifest["inputs"]["calibration"]["windows"] == [9, 32]
    # The same windows, cut by hand, make the same weights.
    tokenizer = load_tokenizer(locate(str(chatting)))
    by_hand = torch.cat([read_windows(str(first), tokenizer, 32, 6).windows, read_windows(str(second), tokenizer, 32, 3).windows])
    assert by_hand[0, 0] == tokenizer.encode("<|endoftext|>")[0]
    (made,) = quantize_model(locate(str(chatting)), [parse("awq-w4g128")], by_hand, tmp_path / "again")
    kept, again = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out" / "awq-w4g128", made.path))
    assert all(torch.equal(kept[name], again[name]) for name in again)
    assert made.manifest["inputs"] == manifest["inputs"]


def test_a_bad_line_stops_before_any_work(tiny: OpenedModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": \n')
    words = ["--calibration", str(tmp_path / "a.jsonl"), "--windows", "2", "--length", "32"]
    assert call(["quantize", "--model", str(tiny.path), "--recipe", "nf4", "--out", str(tmp_path / "out"), *words]) == 2
    shown = capfd.readouterr()
    assert "a.jsonl, line 2: expected a JSON object" in shown.err
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


def test_an_end_of_text_beyond_the_embedding_stops_quantize_and_evaluate(
    tiny: OpenedModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.path, folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>"})
    tokenizer.save_pretrained(folder)
    words = ["--recipe", "nf4", "--windows", "2", "--length", "32", "--calibration", "python-reference", "--out", str(tmp_path / "out")]
    for command in (["quantize", "--model", str(folder), *words], ["evaluate", str(folder), "--window", "32", "--results", ""]):
        assert call(command) == 2
        assert "no embedding for: its eos token is '<|im_end|>', number 4096, and the embedding has 4096 rows" in capfd.readouterr().err
    assert not (tmp_path / "out").exists()


def test_evaluate_says_what_it_read_and_by_which_protocol(tiny: OpenedModel, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "beginning"
    shutil.copytree(tiny.path, folder)
    description = json.loads((folder / "tokenizer.json").read_text())
    mark = {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}
    description["post_processor"] = {
        "type": "TemplateProcessing", "single": [mark, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [],
        "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(description))
    words = ["--window", "32", "--tokens", "128", "--results", "", "--text", "python-reference"]
    assert call(["evaluate", str(tiny.path), *words]) == 0
    assert "windows of 32 tokens that do not overlap, no BOS, as the tokenizer adds none" in capfd.readouterr().out
    assert call(["evaluate", str(folder), *words]) == 0
    assert "each begins with <|endoftext|>, as the tokenizer begins a text" in capfd.readouterr().out
    assert call(["evaluate", str(folder), *words, "--json"]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (found["text"][0]["name"], found["text"][0]["windows"]) == ("python-reference", 4)
    windows = read_windows("python-reference", load_tokenizer(locate(str(folder))), 32, 4).windows
    assert windows[:, 0].tolist() == [0, 0, 0, 0]
