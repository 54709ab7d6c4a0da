"""Which files are JSON lines, which are plain text, and what is said of damaged ones."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.models.texts.documents import open_text
from qlab.models.texts.prompts import load_prompts
from qlab.support.errors import UserError

RECORD = '{"text": "one"}\n'


@pytest.mark.parametrize(
    ("name", "text", "documents"),
    [
        ("a.jsonl", RECORD * 3, 3),
        ("a.NDJSON", RECORD, 1),
        ("a.txt", RECORD * 3, 3),  # by its content
        ("a.txt", "\n\n" + RECORD, 1),
        ("a.jsonl", "\ufeff" + RECORD.replace("\n", "\r\n") * 2, 2),
        ("a.jsonl", RECORD + "\n\n" + '{"text": "two\u2028three"}', 2),
    ],
)
def test_json_lines_are_seen(tmp_path: Path, name: str, text: str, documents: int) -> None:
    (tmp_path / name).write_bytes(text.encode())
    found = open_text(str(tmp_path / name))
    assert (found.lines, len(found.documents)) == (True, documents)
    assert "{" not in found.plain


@pytest.mark.parametrize(
    "text",
    ["{braces} begin this text\n", '{"text": "one"} is a record\n', RECORD + "def f(): pass\n", '{"level": "info"}\n' * 3, "[1, 2]\n"],
)
def test_plain_text_that_begins_with_a_brace_stays_plain_text(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    found = open_text(str(tmp_path / "a.txt"))
    assert (found.lines, found.plain) == (False, text)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "one"', "expected a JSON object"),
        ("[1]", "expected a JSON object, found list"),
        ("[" * 100_000, "nested too deeply"),
        ('{"level": "info"}', "expected 'messages', 'text' or 'prompt' .*, found 'level'"),
        ('{"text": 3}', "expected text under 'text', found int"),
        ('{"text": "\\ud800"}', "half of a surrogate pair"),
        ('{"prompt": "a", "completion": null}', "expected text under 'completion', found nothing"),
        ('{"prompt": "a", "completion": "b", "response": "c"}', "both 'completion' and 'response'"),
        ('{"messages": "hello"}', "expected under 'messages' a list"),
        ('{"messages": []}', "expected under 'messages' a list"),
        ('{"messages": [{"role": "user"}]}', "expected text under 'content', found nothing"),
    ],
)
def test_a_bad_line_is_one_sentence_with_its_number(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text(RECORD + "\n" + line + "\n")
    with pytest.raises(UserError, match=f"a.jsonl, line 3: .*{message}"):
        open_text(str(tmp_path / "a.jsonl"))


def test_documents_of_a_sorted_file_are_mixed_in_the_same_order_every_time(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"{number:03}"}) + "\n" for number in range(100)))
    first, second = ([document.text for document in open_text(str(tmp_path / "a.jsonl")).documents] for _ in range(2))
    assert first == second != sorted(first)
    assert any(text >= "050" for text in first[:8])


def test_files_that_hold_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n')
    (tmp_path / "latin.txt").write_bytes("été".encode("latin-1"))
    for name, message in (("empty.txt", "is empty"), ("blank.jsonl", "is empty"), ("latin.txt", "not UTF-8")):
        with pytest.raises(UserError, match=message):
            open_text(str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "line 1: the JSON is nested too deeply"),
        ('{"prompt": 3}', "line 1: expected text under 'prompt', found int"),
        ('{"prompt": "a", "kind": null}', "line 1: expected text under 'kind'"),
        ('{"question": "a"}', "line 1: expected text under 'prompt', found nothing"),
        ("", "holds no prompts"),
    ],
)
def test_prompts_that_cannot_be_used(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        load_prompts(tmp_path / "p.jsonl")
    with pytest.raises(UserError, match=r"absent\.jsonl is not there"):
        load_prompts(tmp_path / "absent.jsonl")


def test_prompts_keep_what_stands_beside_them() -> None:
    found: list[dict[str, Any]] = load_prompts()
    assert len(found) == 500
    assert found[0].keys() == {"id", "language", "kind", "prompt"}


def pipe(file: Path) -> None:
    os.mkfifo(file)


def loop(file: Path) -> None:
    file.symlink_to(file)


DAMAGED: dict[str, Any] = {
    "none": lambda file: None, "a folder": Path.mkdir, "a pipe": pipe, "a loop": loop,
    "empty": b"", "not UTF-8": b"\xff\xfe", "no JSON": b"{", "a list": b"[]", "nested too deeply": b"[" * 10**6,
    "nested objects": b'{"prompt":' * 10**5, "5000 digits": b'{"prompt": "a", "n": 1' + b"0" * 5000 + b"}",
    "a number": b'{"prompt": 1}', "null": b'{"prompt": null}', "half a pair": b'{"prompt": "\\ud800"}', "another key": b'{"promt": "a"}',
    "kilobytes of a key": b'{"' + b"k" * 50_000 + b'": 1}',
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_prompts_and_texts_are_one_short_message(kind: str, tmp_path: Path) -> None:
    file, content = tmp_path / "a.jsonl", DAMAGED[kind]
    if callable(content):
        content(file)
    else:
        file.write_bytes(content)
    for reader in (load_prompts, lambda path: open_text(str(path))):
        with pytest.raises(UserError) as refused:
            reader(file)
        assert "a.jsonl" in str(refused.value)
        assert len(str(refused.value)) < 400


@pytest.mark.parametrize("label", ["id", "language", "kind"])
@pytest.mark.parametrize("value", [None, 1, [], {}])
def test_labels_of_prompts_are_text(label: str, value: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(json.dumps({"prompt": "a", label: value}))
    with pytest.raises(UserError, match=f"line 1: expected text under '{label}'"):
        load_prompts(tmp_path / "a.jsonl")


WORDS = st.sampled_from(["prompt", "text", "messages", "role", "content", "kind"])
RECORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
LINES = st.lists(RECORDS.map(json.dumps).map(str.encode) | st.binary(max_size=20), max_size=4).map(b"\n".join)


@settings(max_examples=200, deadline=None)
@given(LINES)
def test_any_bytes_are_documents_and_prompts_or_refused(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("a.jsonl", "a.txt"):
            file = Path(folder) / name
            file.write_bytes(content)
            with suppress(UserError):
                assert all(isinstance(entry["prompt"], str) for entry in load_prompts(file))
            with suppress(UserError):
                assert open_text(str(file)).plain.strip()
