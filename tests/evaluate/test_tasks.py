"""lm-eval's tasks from files that lie here, against the same arithmetic by hand."""

from __future__ import annotations

import bz2
import csv
import json
import re
import weakref
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from qlab.artifacts.artifact import quantize_model
from qlab.cli import call
from qlab.evaluate import tasks
from qlab.evaluate.kept import next_token_logits
from qlab.evaluate.local_tasks import CLOZE, cloze, hellaswag, lambada, questions
from qlab.evaluate.store.results import read
from qlab.evaluate.tasks import run_tasks
from qlab.evaluate.tasks import task_manager as manager
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.mixture import load_text
from qlab.recipes import parse
from qlab.support.errors import UserError
from tests.conftest import SHARED

QUESTIONS = [
    ("Two and two?", "3", "4", "5", "6", 1),
    ("The colour of grass?", "red", "blue", "green", "grey", 2),
    ("First letter?", *"ABCD", 0),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data of the three benchmarks' forms, made up here."""
    out = tmp_path_factory.mktemp("tasks")
    for split in ("test", "dev"):
        (out / "mmlu" / split).mkdir(parents=True)
        for subject in ("anatomy", "virology"):
            with (out / "mmlu" / split / f"{subject}_{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["question", *(f"choice{n}" for n in range(4)), "answer"], *QUESTIONS])
    (out / "hellaswag").mkdir()
    lines = ["Cooking: A pan is", "1", "sky.", "hot.", "sad.", "tall."] * 2
    (out / "hellaswag" / "val.txt.bz2").write_bytes(bz2.compress("\n".join(lines).encode()))
    (out / "lambada").mkdir()
    (out / "lambada" / "test.jsonl").write_text(
        json.dumps({"text": "Return the sum of the array"}) + "\n" + json.dumps({"text": "one two"}) + "\n"
    )
    return out


def by_hand(file: Path, subject: str) -> float:
    """MMLU's accuracy with no examples: lm-eval's prompt, the likeliest of four continuations."""
    model, tokenizer = load(locate("embedded")), load_tokenizer(locate("embedded"))

    @lru_cache(maxsize=4)
    def after(*tokens: int) -> Tensor:
        """Log-likelihoods of what comes after each token. The four continuations are mostly a token each, after the same ones."""
        return model(torch.tensor([tokens])).logits[0].log_softmax(-1)

    right, about = [], f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    with torch.inference_mode():
        for question in questions(file):
            options = "".join(f"{letter}. {choice}\n" for letter, choice in zip("ABCD", question["choices"]))
            head = f"{about}{question['question'].strip()}\n{options}Answer:"
            scores = []
            for letter in "ABCD":
                prompt, whole = tokenizer.encode(head), tokenizer.encode(f"{head} {letter}")
                logits = after(*whole[:-1])
                scores.append(sum(float(logits[place - 1, whole[place]]) for place in range(len(prompt), len(whole))))
            right.append(max(range(4), key=scores.__getitem__) == question["answer"])
    return sum(right) / len(right)


def test_what_is_predicted_of_texts_serves_in_place_of_the_model(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load(locate("embedded")), load_tokenizer(locate("embedded"))
    asked: list[int] = []

    def predicting(windows: Sequence[Tensor]) -> list[Tensor]:
        asked.append(sum(window.shape[1] for window in windows))
        with torch.inference_mode():
            return [next_token_logits(model, window) for window in windows]

    names = ["mmlu", "hellaswag", "lambada"]
    own = run_tasks(model, tokenizer, names, folder=folder)
    assert run_tasks(model, tokenizer, names, folder=folder, predicting=predicting) == [
        replace(score, value=pytest.approx(score.value, rel=1e-5), stderr=pytest.approx(score.stderr, rel=1e-4, abs=1e-9)) for score in own
    ]
    whole, asked[:] = len(asked), []
    monkeypatch.setattr(tasks, "TOKENS", 100)
    run_tasks(model, tokenizer, names, folder=folder, predicting=predicting)
    assert len(asked) > whole
    assert max(asked) <= 120, "one text at least, however long"
    judge = SimpleNamespace()
    tasks.ask_instead(judge, predicting)
    with pytest.raises(UserError, match="whole in memory"):
        judge.generate_until([])


def test_mmlu_is_the_arithmetic_by_hand(folder: Path) -> None:
    model, tokenizer = load(locate("embedded")), load_tokenizer(locate("embedded"))
    (alone,) = run_tasks(model, tokenizer, ["mmlu_anatomy"], folder=folder)
    expected = by_hand(folder / "mmlu/test/anatomy_test.csv", "anatomy")
    assert (alone.metric, alone.documents) == ("acc", 3)
    assert alone.value == pytest.approx(expected)
    (both,) = run_tasks(model, tokenizer, ["mmlu"], folder=folder)
    other = by_hand(folder / "mmlu/test/virology_test.csv", "virology")
    assert (both.documents, both.value) == (6, pytest.approx((expected + other) / 2))
    assert both.stderr > 0 or both.value in (0, 1)


def test_mmlus_own_questions(folder: Path) -> None:
    data = SHARED / "texts"
    if not (data / "mmlu").exists():
        pytest.skip("MMLU's questions are not beside this repository")
    model, tokenizer = load(locate("embedded")), load_tokenizer(locate("embedded"))
    (score,) = run_tasks(model, tokenizer, ["mmlu_anatomy"], folder=data)
    assert score.documents == 135
    assert score.value == pytest.approx(by_hand(data / "mmlu/test/anatomy_test.csv", "anatomy"))


def test_the_others_and_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    monkeypatch.setattr(tasks, "task_manager", lambda known: asked.append(known) or manager(known))
    words = ["evaluate", "embedded", "--tokens", "2048", "--tasks", f"hellaswag,lambada,{CLOZE}", "--limit", "100", "--json"]
    assert call([*words, "--task-data", str(folder)]) == 0
    printed = capsys.readouterr()
    assert "%|" not in printed.err  # no bars where nobody watches
    assert asked == [True, True, False]  # lm-eval's index, for tasks of its own
    found = {(score["task"], score["metric"]): score for score in json.loads(printed.out.splitlines()[-1])["tasks"]}
    assert found["hellaswag", "acc"]["documents"] == 2
    assert found["lambada", "perplexity"]["value"] > 1
    assert found[CLOZE, "acc_norm"]["value"] - 3 * found[CLOZE, "acc_norm"]["stderr"] > 0.25  # clearly above chance
    assert call(["evaluate", "embedded", "--tokens", "2048", "--tasks", "no-such-task"]) == 2
    assert "no task 'no-such-task'" in capsys.readouterr().err
    assert call(["evaluate", "embedded", "--window", "100000"]) == 2
    assert call(["evaluate", "embedded", "--agreement"]) == 2


def test_answers_that_changed_are_counted_beside_the_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = locate("embedded")
    (made,) = quantize_model(source, [parse("rtn-w2g128-ct")], torch.ones(2, 16, dtype=torch.int64), tmp_path)
    words = ["--window", "64", "--tokens", "256", "--results", str(tmp_path / "r.sqlite"), "--tasks", CLOZE, "--limit", "24"]
    assert call(["evaluate", str(made.path), *words, "--reference", "embedded", "--no-floor"]) == 0
    said = re.search(rf"{CLOZE} acc (\S+) .*; the original (\S+); another answer than its on (\S+)% ± (\S+)%", capsys.readouterr().out)
    assert said
    score, original, changed, error = map(float, said.groups())
    assert original > score + 0.1  # at two bits little is left
    assert 100 * (original - score) <= changed + 0.1  # what became wrong was answered otherwise
    assert error == pytest.approx((changed * (100 - changed) / 24) ** 0.5, abs=0.1)
    kept = read(tmp_path / "r.sqlite")
    assert list(kept[kept["metric"] == f"{CLOZE} answers changed"]["value"]) == [pytest.approx(changed / 100, abs=0.001)]


def test_what_counts_as_an_answer() -> None:
    chosen = [{"doc_id": 1, "metrics": ["acc"], "filtered_resps": [(-3.0, False), (-1.0, True)]}]
    chosen += [{"doc_id": 0, "metrics": ["acc"], "filtered_resps": [(-1.0, False), (-2.0, False)]}]
    assert tasks.answers_of(chosen) == [0, 1]
    assert tasks.answers_of([{"doc_id": 0, "metrics": ["acc"], "filtered_resps": [(-1.0, True)]}]) == []
    assert tasks.answers_of([{"doc_id": 0, "metrics": ["exact_match"], "filtered_resps": ["four", "4"]}]) == []
    score = tasks.Score("t", "acc", 0.5, 0.1, 4, (0, 1, 2, 3))
    assert tasks.changed(score, score) == (0, 0)
    assert tasks.changed(score, replace(score, answers=(0, 1, 3, 2))) == (0.5, 0.25)
    assert tasks.changed(replace(score, answers=()), score) is None
    with pytest.raises(ValueError, match="shorter"):
        tasks.changed(score, replace(score, answers=(0,)))


def test_the_cloze_task_is_the_same_every_time_and_files_are_checked(tmp_path: Path) -> None:
    text = load_text("python-reference")
    first, second = (cloze(text, 20, tmp_path)["dataset_kwargs"]["data_files"]["test"] for _ in range(2))
    rows = [json.loads(line) for line in Path(first).read_text().splitlines()]
    assert Path(first).read_text() == Path(second).read_text()
    assert len(rows) == 20
    plain = " ".join(text.split())
    assert all(f"{row['query']} {row['choices'][row['label']]}" in plain for row in rows)
    assert {row["label"] for row in rows} == {0, 1, 2, 3}
    with pytest.raises(UserError, match="needs at least"):
        cloze("a few words", 5, tmp_path)
    (tmp_path / "bad.txt").write_text("context\nseven\na\nb\nc\nd")
    with pytest.raises(UserError, match="six lines"):
        list(hellaswag(tmp_path / "bad.txt"))
    (tmp_path / "bad.csv").write_text("question,answer\nwhy,because\n")
    with pytest.raises(UserError, match="expected columns"):
        list(questions(tmp_path / "bad.csv"))


@pytest.mark.parametrize("content", [b"BZh9 no such stream", bz2.compress(b"a\n" * 6)[:20], bz2.compress("été".encode("latin-1"))])
def test_damaged_compressed_data_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "val.txt.bz2").write_bytes(content)
    with pytest.raises(UserError, match=r"val\.txt\.bz2 is damaged"):
        list(hellaswag(tmp_path / "val.txt.bz2"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "one two"}\n{"text": ', "line 2"),
        ('{"passage": "one two"}', "line 1"),
        ('{"text": "one"}', "two words"),
        ("", "two words"),
    ],
)
def test_damaged_json_lines_are_named(folder: Path, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "test.jsonl").write_text(content)
    with pytest.raises(UserError, match=f"test.jsonl.*{message}"):
        lambada(tmp_path / "test.jsonl")
    assert [row["text"] for row in lambada(folder / "lambada" / "test.jsonl")] == ["Return the sum of the array", "one two"]


@pytest.mark.parametrize("row", ["why,a,b,c,d,4", "why,a,b,c,d,-1", ""])
def test_questions_whose_answer_is_none_of_the_four(tmp_path: Path, row: str) -> None:
    (tmp_path / "bad.csv").write_text(f"question,choice0,choice1,choice2,choice3,answer\n{row}\n")
    with pytest.raises(UserError, match=r"bad\.csv.*0 to 3"):
        questions(tmp_path / "bad.csv")


def test_reading_a_local_task_is_reported_to_nobody(tiny: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def refuse(host: str, *rest: object, **named: object) -> None:
        asked.append(host)
        raise OSError("no network in this test")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    from qlab.models.texts.builtin import python_reference

    assert run_tasks(load(tiny), load_tokenizer(tiny), ["heldout-cloze"], 4, None, python_reference()[:60000])
    assert asked == []


class Predicted(list[Tensor]):
    """What is predicted of some windows."""


def test_what_predicts_some_texts_is_gone_before_the_next_one_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list[Any]()

    def predicting(windows: Any) -> Any:
        assert not [found for found in made if found() is not None], "its output head is gigabytes"
        found = Predicted(torch.zeros(window.shape[1] - 1, 8) for window in windows)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(tasks, "TOKENS", 1)
    judge = SimpleNamespace(max_length=8)
    tasks.ask_instead(judge, predicting)
    assert len(judge._loglikelihood_tokens([(None, [1, 2], [0]), (None, [1], [2])])) == len(made) == 2
