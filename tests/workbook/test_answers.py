"""A model's answers with fewer bits beside the original's: how they are made, and that a page shows them as text."""

from __future__ import annotations

import json
from html import unescape
from pathlib import Path

import pytest
import torch

from qlab.evaluate.store.provenance import provenance
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import OpenedModel
from qlab.show.site.report import write_report
from qlab.show.tables import texts
from qlab.support.errors import UserError
from qlab.workbook.answers import BEGINNINGS, QUESTIONS, answers, side_by_side
from qlab.workbook.batch.runner import SKIPPED, Outcome

CHAT = [
    {"bits": None, "prompt": "A & B?", "answer": "Paris.\nYes."},
    {"bits": 4, "prompt": "A & B?", "answer": "<script>alert(1)</script>"},
    {"bits": 2, "prompt": "A & B?", "answer": ""},
]


def test_a_base_model_continues_and_always_says_the_same(tiny: OpenedModel) -> None:
    model, tokenizer = load(tiny), load_tokenizer(tiny)
    tokenizer.chat_template = None
    found = answers(model, tokenizer, 5, 3)
    assert [entry["prompt"] for entry in found] == list(BEGINNINGS)
    assert {entry["bits"] for entry in found} == {3}
    assert found == answers(model, tokenizer, 5, 3)
    ids = torch.tensor([tokenizer.encode(BEGINNINGS[0])])
    following = model(ids).logits[0, -1].argmax()  # the likeliest token
    (first, _) = answers(model, tokenizer, 1)
    assert first["answer"] == tokenizer.decode(following, skip_special_tokens=True).strip()


def test_a_chat_model_is_asked_through_its_template(tiny: OpenedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = load(tiny), load_tokenizer(tiny)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    seen, generate = [], model.generate

    def watched(ids: torch.Tensor, **options: object) -> torch.Tensor:
        seen.append(tokenizer.decode(ids[0]))
        return generate(ids, **options)

    monkeypatch.setattr(model, "generate", watched)
    assert [entry["prompt"] for entry in answers(model, tokenizer, 3)] == list(QUESTIONS)
    assert seen == [f"[user] {question}[assistant]" for question in QUESTIONS]


def test_an_answer_stays_within_the_context(tiny: OpenedModel) -> None:
    model, tokenizer = load(tiny), load_tokenizer(tiny)
    model.config.max_position_embeddings = 32
    assert len(answers(model, tokenizer, 500)) == 2
    model.config.max_position_embeddings = 3
    with pytest.raises(UserError, match="context holds 3 tokens"):
        answers(model, tokenizer, 500)
    with pytest.raises(UserError, match="at least one token"):
        answers(model, tokenizer, 0)


def test_answers_stand_side_by_side_as_text(tmp_path: Path) -> None:
    table = side_by_side(CHAT)
    assert table.columns.tolist() == ["prompt", "original", "4 bits", "2 bits"]
    assert table.iloc[0].tolist() == ["A & B?", "Paris.\nYes.", "<script>alert(1)</script>", "(the model ends its answer at once)"]
    assert "&lt;script&gt;" in texts(table).to_html()
    outcome = Outcome("01_principles", SKIPPED, {}, records={"chat": CHAT})
    page = write_report([outcome], provenance("embedded"), tmp_path).read_text()
    assert "What the model says" in page
    assert "Of the widths tried, 4 bits is the largest at which an answer is not the original's; no answer ends in" in unescape(page)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>alert" not in page
    assert json.loads((tmp_path / "results.json").read_text())["results"]["chat"] == CHAT
    without = write_report([Outcome("01_principles", SKIPPED, {})], provenance("embedded"), tmp_path).read_text()
    assert "What the model says" not in without
