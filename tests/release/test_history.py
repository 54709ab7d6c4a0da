"""The history of releases: damaged or another's, it is one message; before any work where it cannot be written."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlab.models.opening import OpenedModel
from qlab.release.history import CURRENT, HISTORY, history, record, settle
from qlab.release.release import check_out
from qlab.support.errors import UserError

NOTE = {"release": "0" * 12, "refused": ["kl"]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"{\n", "history.jsonl, line 1: expected a JSON object"),
        (b'{"release": 1}\n[]\n', "history.jsonl, line 2: expected a JSON object, found list"),
        (b"\xff\n", "not UTF-8"),
        (b"[" * 10**5 + b"\n", "nested too deeply"),
        (b'{"a": 1' + b"0" * 5000 + b"}\n", "line 1: expected a JSON object"),
    ],
)
def test_a_damaged_history_is_one_message(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / HISTORY).write_bytes(content)
    with pytest.raises(UserError) as refused:
        history(tmp_path)
    assert said in str(refused.value)
    assert len(str(refused.value)) < 400


def place(file: Path, kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "link":
        file.with_name("mine").write_text("mine")
        file.symlink_to("mine")
    else:
        file.mkdir()
        (file / "thesis.txt").write_text("mine")


@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "link"])
@pytest.mark.parametrize("name", [HISTORY, CURRENT, "0" * 12])
def test_what_is_in_the_way_is_said_before_the_work_and_stays(name: str, kind: str, tiny: OpenedModel, tmp_path: Path) -> None:
    place(tmp_path / name, kind)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=name):
        check_out(tmp_path, "0" * 12, tiny.path)
    assert sorted(os.listdir(tmp_path)) == before
    if name == HISTORY and kind != "link":
        with pytest.raises(UserError, match=HISTORY):
            history(tmp_path)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([b"{}\n", b'{"a": 1}\n', b"\n", b"{", b"\xff", b"x\n", b" "]), max_size=6))
def test_any_history_is_read_or_refused_and_a_new_line_stands_by_itself(parts: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out, content = Path(folder), b"".join(parts)
        (out / HISTORY).write_bytes(content)
        settle(out)
        record(out, NOTE)
        kept = content[: content.rfind(b"\n") + 1]
        assert (out / HISTORY).read_bytes().startswith(kept)
        if all(line.strip() in (b"", b"{}", b'{"a": 1}') for line in kept.split(b"\n")):
            assert history(out)[-1] == NOTE
        else:
            with pytest.raises(UserError, match=r"history\.jsonl"):
                history(out)
