"""Windows: what is cut from which text, what stands between documents and in front, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.builtin import python_reference
from qlab.models.texts.windows import read_windows
from qlab.support.errors import UserError
from tests.models.texts.tokenizers import BOS, EOS, TURNS, Bytes


def write(file: Path, *records: Any) -> str:
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return str(file)


def plain(file: Path, text: str) -> str:
    file.write_bytes(text.encode())
    return str(file)


def spoken(tokens: torch.Tensor) -> str:
    return "".join({BOS: "^", EOS: "$"}.get(token, chr(token)) for token in tokens.flatten().tolist())


def test_windows_are_consecutive_and_do_not_overlap(tmp_path: Path) -> None:
    file = plain(tmp_path / "a.txt", "abcdefghij")
    found = read_windows(file, Bytes(), 3, 99)
    assert found.windows.tolist() == [[97, 98, 99], [100, 101, 102], [103, 104, 105]]
    assert found.windows.dtype == torch.int64
    assert read_windows(file, Bytes(), 3, 2).windows.shape == (2, 3)


def test_a_text_shorter_than_asked_for_is_said_and_one_shorter_than_a_window_refused(tmp_path: Path) -> None:
    (line, protocol) = read_windows(plain(tmp_path / "a.txt", "abcdefghij"), Bytes(), 3, 99).lines("calibration")
    assert line.startswith(
        "calibration: a.txt: plain text, 1 document read, 10 tokens, 3 windows used; fewer than the 99 windows asked for"
    )
    assert line.endswith("its last token fills no window and is dropped")
    assert "windows of 3 tokens that do not overlap, no BOS" in protocol
    with pytest.raises(UserError, match=r"b\.txt has 2 tokens, less than one window of 3"):
        read_windows(plain(tmp_path / "b.txt", "ab"), Bytes(), 3, 1)


def test_plain_texts_give_the_windows_that_they_always_gave() -> None:
    tokenizer, text = load_tokenizer(locate("embedded")), python_reference()
    cut = text[: 12 * 128 * 16].rsplit(" ", 1)[0]
    ids = tokenizer.encode(cut, add_special_tokens=False)[: 128 * 16]
    assert read_windows("python-reference", tokenizer, 128, 16).windows.flatten().tolist() == ids


@pytest.mark.parametrize(("before", "after"), [("one\ntwo\n" * 9, "one\r\ntwo\r\n" * 9), ("one two " * 9, "\ufeff" + "one two " * 9)])
def test_line_ends_and_byte_order_marks_change_nothing(tmp_path: Path, before: str, after: str) -> None:
    first, second = (read_windows(plain(tmp_path / f"{n}.txt", text), Bytes(), 5, 4) for n, text in enumerate((before, after)))
    assert torch.equal(first.windows, second.windows)
    assert first.read[0].sha256 == second.read[0].sha256


def test_nul_and_very_long_lines_are_text(tmp_path: Path) -> None:
    assert spoken(read_windows(plain(tmp_path / "nul.txt", "ab\0cd"), Bytes(), 5, 1).windows) == "ab\0cd"
    tokenizer = load_tokenizer(locate("embedded"))
    for line in ("word " * 4_000_000, "Beginning " + "=" * 20_000_000, " " * 20_000_000 + "end"):
        found = read_windows(plain(tmp_path / "long.txt", line), tokenizer, 32, 4)
        assert found.windows.shape == (4, 32)
    found = read_windows(write(tmp_path / "long.jsonl", {"text": "word " * 4_000_000}), tokenizer, 32, 4)
    assert (found.windows.shape, found.read[0].documents) == ((4, 32), 1)


def test_documents_are_joined_by_the_end_of_text_where_there_is_one(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *({"text": 3 * letter} for letter in "abcd"), {"text": " "})
    found = read_windows(file, Bytes(eos_token_id=EOS), 15, 1)
    assert sorted(spoken(found.windows).split("$")) == ["aaa", "bbb", "ccc", "ddd"]
    assert found.read[0].joined == "<eos>"
    assert "<eos> between documents" in str(found.read[0])
    assert "1 document without text dropped" in str(found.read[0])
    assert sorted(spoken(read_windows(file, Bytes(), 12, 1).windows)) == sorted("aaabbbcccddd")


def test_what_is_not_needed_is_said(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", *({"text": 10 * letter} for letter in "abcd"))
    (read,) = read_windows(file, Bytes(), 5, 2).read
    assert (read.used, read.documents, read.windows) == (1, 4, 2)
    assert "1 of 4 documents read" in str(read)
    assert "the other documents were not needed" in str(read)


def test_every_window_begins_as_the_tokenizer_begins_a_text(tmp_path: Path) -> None:
    file = plain(tmp_path / "a.txt", "abcdefgh")
    found = read_windows(file, Bytes(begins=True), 4, 9)
    assert [spoken(window) for window in found.windows] == ["^abc", "^def"]
    assert (found.start, found.read[0].unused) == ("<bos>", 2)
    assert "each begins with <bos>" in found.protocol
    several = write(tmp_path / "b.jsonl", *({"text": 3 * letter} for letter in "abc"))
    windows = read_windows(several, Bytes(begins=True, eos_token_id=EOS), 5, 2).windows
    assert {spoken(window) for window in windows} <= {"^aaa$", "^bbb$", "^ccc$"}  # not BOS twice
    within = spoken(read_windows(several, Bytes(begins=True, eos_token_id=EOS), 9, 1).windows)
    assert (within[0], within[4:6]) == ("^", "$^")  # a document within a window begins as one by itself
    with pytest.raises(UserError, match="no room for text"):
        read_windows(file, Bytes(begins=True), 1, 9)


@pytest.mark.parametrize("model", ["embedded", "second"])
def test_our_models_begin_no_text_with_bos(model: str, request: pytest.FixtureRequest) -> None:
    name = model if model == "embedded" else str(request.getfixturevalue("second_model"))
    assert read_windows("python-reference", load_tokenizer(locate(name)), 32, 2).start == ""


def test_conversations_go_through_the_chat_template(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}, {"role": "assistant", "content": "A"}]
    chat, question = write(tmp_path / "chat.jsonl", {"messages": talk}), write(tmp_path / "ask.jsonl", {"prompt": "Q"})
    answered = [write(tmp_path / f"{key}.jsonl", {"prompt": "Q", key: "R"}) for key in ("completion", "response")]
    speaks = Bytes(begins=True, eos_token_id=EOS, chat_template=TURNS)
    for file, expected in (
        (chat, "<system>S</><user>U</><assistant>A</>"),
        (question, "<user>Q</><assistant>"),
        *((file, "<user>Q</><assistant>R</>") for file in answered),
    ):
        found = read_windows(file, speaks, len(expected) + 1, 1)
        assert spoken(found.windows) == f"^{expected}"
        assert found.read[0].kind == "conversations by the chat template"
    for file, expected in ((chat, "system: S\n\nuser: U\n\nassistant: A"), (question, "Q"), *((file, "Q\nR") for file in answered)):
        found = read_windows(file, Bytes(), len(expected), 1)
        assert spoken(found.windows) == expected
        assert "the tokenizer has no chat template" in found.read[0].kind


def test_a_real_template_gives_what_transformers_gives(tmp_path: Path, tiny: OpenedModel) -> None:
    tokenizer = load_tokenizer(tiny)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role not in ['user', 'assistant'] %}{{ raise_exception('no such role') }}{% endif %}"
        "<|endoftext|>{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|endoftext|>assistant: {% endif %}"
    )
    talk = [{"role": "user", "content": "What is NumPy?"}, {"role": "assistant", "content": "A library of arrays for Python."}]
    expected = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
    found = read_windows(write(tmp_path / "a.jsonl", {"messages": talk}), tokenizer, len(expected), 1)
    assert found.windows[0].tolist() == expected
    with pytest.raises(UserError, match=r"b\.jsonl, line 1: the chat template of tiny does not take this conversation .no such role"):
        read_windows(write(tmp_path / "b.jsonl", {"messages": [{"role": "tool", "content": "x"}]}), tokenizer, 4, 1)


def test_the_workbooks_prompts_are_a_text_in_two_languages() -> None:
    found = read_windows("prompts", load_tokenizer(locate("embedded")), 128, 16)
    text = load_tokenizer(locate("embedded")).decode(found.windows.flatten().tolist())
    assert (found.read[0].name, found.read[0].documents) == ("prompts", 500)
    assert " the " in text
    assert " les " in text


def test_texts_share_the_windows_by_weight(tmp_path: Path) -> None:
    first, second = plain(tmp_path / "a.txt", "a" * 99), plain(tmp_path / "b.txt", "b" * 99)
    found = read_windows([f"{first}:2", second], Bytes(), 4, 9)
    assert spoken(found.windows) == 24 * "a" + 12 * "b"
    assert found.label == "a.txt:2,b.txt"
    assert [one["name"] for one in found.as_dicts()] == ["a.txt", "b.txt"]
    assert torch.equal(read_windows(f"{first}:2,{second}", Bytes(), 4, 9).windows, found.windows)


def test_tokens_beyond_the_embedding_are_named(tmp_path: Path) -> None:
    file = plain(tmp_path / "a.txt", "abcdefgh")
    assert read_windows(file, Bytes(), 4, 2, rows=105).windows.max() == 104
    with pytest.raises(UserError, match=r"no embedding for: one in a.txt is '104', number 104, and the embedding has 104 rows"):
        read_windows(file, Bytes(), 4, 2, rows=104)
    with pytest.raises(UserError, match="its eos token is '<eos>', number 257"):  # though the text has none
        read_windows(file, Bytes(eos_token_id=EOS), 4, 2, rows=257)


def test_conditions_tell_two_texts_of_one_name_apart(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    files = [plain(tmp_path / name / "wiki.txt", text) for name, text in (("first", "abcdef"), ("second", "abcdeg"))]
    found = [read_windows(file, Bytes(begins=True), 3, 1).conditions for file in files]
    assert [one["text"] for one in found] == ["wiki.txt", "wiki.txt"]
    assert [one["start"] for one in found] == ["<bos>", "<bos>"]
    assert found[0] != found[1]
    assert "start" not in read_windows(files[0], Bytes(), 3, 1).conditions
