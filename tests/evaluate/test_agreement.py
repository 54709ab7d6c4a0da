"""Agreement against what generating both answers would show."""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel

from qlab.evaluate import agreement
from qlab.evaluate.agreement import Parting, _Pooled, agreement_table, agreement_tables, answer_prompts, part
from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import locate
from qlab.models.texts.prompts import load_prompts
from qlab.support.errors import UserError

PROMPTS = load_prompts()[::50]
TOKENS = 6


@pytest.fixture(scope="module")
def original() -> PreTrainedModel:
    return load(locate("embedded"))


def test_answers_do_not_depend_on_the_batch(original: PreTrainedModel) -> None:
    tokenizer = load_tokenizer(locate("embedded"))
    together, alone = (answer_prompts(original, tokenizer, PROMPTS, TOKENS, batch) for batch in (4, 1))
    for entry, (one, other) in zip(PROMPTS, zip(together, alone)):
        assert one.ids.tolist() == other.ids.tolist()
        assert one.ids[0, :-TOKENS].tolist() == tokenizer.encode(entry["prompt"], add_special_tokens=False)
        assert (one.language, one.kind) == (entry["language"], entry["kind"])


def test_where_answers_part_is_where_generating_parts(original: PreTrainedModel) -> None:
    other = copy.deepcopy(original)
    generator = torch.Generator().manual_seed(0)
    for parameter in other.parameters():
        parameter.data += 0.004 * torch.randn(parameter.shape, generator=generator)
    answered = answer_prompts(original, load_tokenizer(locate("embedded")), PROMPTS, TOKENS)
    found = part(other, original, answered)
    for entry, parting in zip(answered, found):
        prompt, answer = entry.ids[:, :-TOKENS], entry.ids[0, -TOKENS:]
        length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
        own = other.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, **length)
        assert not set(answer.tolist()) & set(entry.ends)
        differs = (own[0, -TOKENS:] != answer).nonzero()
        assert parting.prefix == (int(differs[0]) / TOKENS if len(differs) else 1)
    assert 0 < sum(parting.prefix for parting in found) < len(found)
    same = part(original, original, answered)
    assert all(parting.prefix == 1 and parting.top1 == 1 and float(parting.kl.abs().max()) < 1e-6 for parting in same)


def test_the_table_by_hand() -> None:
    rows = [Parting("fr", "qa", torch.tensor([0.0, 0.2]), 0.5, 1.0), Parting("en", "qa", torch.tensor([0.4]), 1.0, 0.25)]
    table = agreement_table(rows).set_index("prompts of")
    assert list(table.index) == ["all", "language en", "language fr", "kind qa"]
    assert table.loc["all", "kl"] == pytest.approx(0.2)  # over positions, not prompts
    assert table.loc["all", "identical"] == 0.5
    assert table.loc["all", "prefix"] == 0.625
    assert table.loc["language fr", "kl_p99"] == pytest.approx(0.198)
    assert table.loc["all", "top1_stderr"] == pytest.approx(0.25 / 2**0.5, rel=0.2)
    assert agreement_table(rows).equals(agreement_table(rows))


def test_nothing_to_ask(original: PreTrainedModel) -> None:
    with pytest.raises(UserError, match="needs prompts"):
        answer_prompts(original, load_tokenizer(locate("embedded")), [])


def test_several_models_are_held_against_the_original_read_once(original: PreTrainedModel) -> None:
    other = copy.deepcopy(original)
    other.lm_head.weight.data[::2] *= 1.1
    answered = answer_prompts(original, load_tokenizer(locate("embedded")), PROMPTS[:4], TOKENS)
    reads = []
    with original.register_forward_hook(lambda *_: reads.append(1)):
        table = agreement_tables(original, [("other", other), ("again", other)], answered)
    assert len(reads) == 2 * len(answered)  # as what is expected, and as the control
    control, one, again = (rows.drop(columns="format") for _, rows in table.groupby("format", sort=False))
    assert list(dict.fromkeys(table["format"])) == ["original (control)", "other", "again"]
    assert (control["kl"] == 0).all()
    assert (control["identical"] == 1).all()
    pd.testing.assert_frame_equal(one, again)
    pd.testing.assert_frame_equal(one, agreement_table(part(other, original, answered)))
    assert one["kl"].iloc[0] > 0


def test_many_samples_at_once_are_what_each_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "AT_ONCE", 400)  # a few samples at a time
    generator = np.random.default_rng(0)
    values = [generator.random(count).astype(np.float32) for count in (7, 1, 30, 12)]
    values[2][:5] = values[2][5]  # some are equal
    values[1][0] = np.nan  # and a sample with this one has no figures
    samples = generator.integers(4, size=(50, 4))
    pooled = [np.concatenate([values[index] for index in sample]).astype(np.float64) for sample in samples]
    assert 5 < sum(np.isnan(each).any() for each in pooled) < 45
    assert np.allclose(_Pooled(values).mean(samples), [each.mean() for each in pooled], rtol=1e-12, equal_nan=True)
    for percent in (0, 50, 99, 100):
        expected = [np.percentile(each, percent) for each in pooled]
        assert np.allclose(_Pooled(values).percentile(samples, percent), expected, rtol=1e-12, equal_nan=True)
