"""The data files: prompts, claims."""

from __future__ import annotations

import json
from collections import Counter

from qlab import DATA
from qlab.claims import ADVICE, FAILS, HOLDS, NOISE, OPEN, TESTS, UNTESTABLE, judge, load_claims
from qlab.workbook.reader.about import lesson_names

VERDICTS = {HOLDS, FAILS, NOISE, OPEN, UNTESTABLE, ADVICE}


def test_prompts_are_500_half_french_in_four_kinds() -> None:
    prompts = [json.loads(line) for line in (DATA / "prompts.jsonl").read_text().splitlines()]
    assert len(prompts) == len({p["id"] for p in prompts}) == len({p["prompt"] for p in prompts}) == 500
    assert Counter(p["language"] for p in prompts) == {"fr": 250, "en": 250}
    assert Counter(p["kind"] for p in prompts) == dict.fromkeys(("code", "summary", "qa", "analysis"), 125)
    french = " ".join(p["prompt"] for p in prompts if p["language"] == "fr")
    assert french.count("é") > 1000


def test_claims_are_well_formed_and_every_test_has_a_claim() -> None:
    claims = load_claims()
    ids = [claim["id"] for claim in claims]
    assert len(ids) == len(set(ids)) >= 90
    assert set(TESTS) <= set(ids)
    for claim in claims:
        assert claim["lesson"] in lesson_names()
        assert claim["statement"]
        assert claim["how"]


def test_every_claim_has_a_verdict_and_a_changed_result_turns_it() -> None:
    def verdict(rise: float) -> str:
        results = {"quality/rtn-int8": {"loss_increase": rise, "loss_increase_stderr": 1e-4}}
        verdicts = {v.claim["id"]: v for v in judge(results)}
        assert {v.verdict for v in verdicts.values()} <= VERDICTS
        assert len(verdicts) == len(load_claims())
        return verdicts["loss-int8"].verdict

    assert verdict(0.001) == HOLDS
    assert verdict(0.05) == FAILS
    assert {v.claim["id"]: v for v in judge({})}["loss-int8"].verdict == OPEN


def test_arithmetic_decides_where_the_guide_errs() -> None:
    verdicts = {v.claim["id"]: v.verdict for v in judge({})}
    assert verdicts["memory-70b-fp16"] == HOLDS
    assert verdicts["four-4090-hold-70b-fp16"] == FAILS
    assert verdicts["two-a100-hold-70b-fp16"] == HOLDS
    assert verdicts["memory-70b-int4"] == FAILS  # 39.8 GB, not 35
