"""Every rule has a result that turns it: a verdict that nothing could turn would be laxer than its words."""

from __future__ import annotations

import math

import pytest

from qlab.claims import FAILS, HOLDS, NOISE, OPEN, TESTS, UNTESTABLE, judge, load_claims
from qlab.claims import Test as Rule
from qlab.claims.benchmarks import own_table
from qlab.claims.rules import fits, memory_of_70b, speed_of_70b
from tests.claims.test_claims import verdict


def kept(share: float) -> dict:
    return {"top1": share, "tokens": 8000}


def lost(percent: float) -> dict:
    return {"loss_increase": math.log1p(percent / 100), "loss_increase_stderr": 1e-5}


def far(distance: float) -> dict:
    return {"kl": distance, "kl_windows": [distance, distance + 0.001]}


FOUR = ("autoawq-w4g128", "autogptq-w4g128", "llama.cpp's q4_k_m", "nf4")
MADE = {"bits": 4, "group_size": 128, "damp_percent": 0.01}
PROMPTS = {"count": 500, "answered": 500, "languages": {"fr": 250, "en": 250}} | {
    "kinds": {"qa": 125, "code": 125, "summary": 125, "analysis": 125}
}
SUPERBLOCKS = ("Q4_K: 8 scales a superblock", "control: one scale a superblock")
TURNS = [  # a claim, results under which it holds, and what in them to change so that it does not
    ("fewer-bits-keep-output", {f"quality/rtn-int{bits}": kept(0.99) for bits in (8, 4, 3, 2)}, {"quality/rtn-int8": kept(0.9)}),
    ("loss-fp16", {"quality/fp16": lost(0), "quality/bf16": lost(0.01)}, {"quality/fp16": lost(0.2)}),
    ("loss-int8", {"quality/rtn-int8": lost(0.5)}, {"quality/rtn-int8": lost(1.1)}),
    ("loss-int3-int2", {"quality/rtn-int3": lost(6), "quality/rtn-int2": lost(14)}, {"quality/rtn-int2": lost(16)}),
    ("loss-int4-awq", {"quality/autoawq-w4g128": lost(2)}, {"quality/autoawq-w4g128": lost(0.5)}),
    ("loss-int4-gptq", {"quality/autogptq-w4g128": lost(2)}, {"quality/autogptq-w4g128": lost(4)}),
    ("loss-q4-k-m", {"quality/llama.cpp's q4_k_m": lost(1.5)}, {"quality/llama.cpp's q4_k_m": lost(2.5)}),
    (
        "awq-few-channels-matter",
        {"channels/max-to-median": {"q": 12, "k": 11, "o": 2}},
        {"channels/max-to-median": {"q": 40, "k": 9, "o": 2}},
    ),
    (
        "awq-top-1-percent",
        {"awq/protection": {"RTN, 3 bits": 1.0, "top 1 % kept": 0.9, "random 1 % kept": 0.98}},
        {"awq/protection": {"RTN, 3 bits": 1.0, "top 1 % kept": 0.9, "random 1 % kept": 0.94}},
    ),
    (
        "awq-top-1-percent",  # more than random channels, but nearly nothing
        {"awq/protection": {"RTN, 3 bits": 1.0, "top 1 % kept": 0.9, "random 1 % kept": 1.0}},
        {"awq/protection": {"RTN, 3 bits": 1.0, "top 1 % kept": 0.995, "random 1 % kept": 1.0}},
    ),
    (
        "awq-scale-search",
        {"awq/gain": {"mean": 0.05, "shuffled": 0.01, "largest": 0.2, "layer": "q"}},
        {"awq/gain": {"mean": 0.005, "shuffled": 0.01, "largest": 0.2, "layer": "q"}},
    ),
    ("gptq-autogptq-recipe", {"settings/autogptq-w4g128": MADE}, {"settings/autogptq-w4g128": MADE | {"damp_percent": 0.1}}),
    (
        "gptq-error-compensation",
        {"gptq/layer-errors": {"GPTQ": 0.5, "no compensation": 1.0}},
        {"gptq/layer-errors": {"GPTQ": 0.995, "no compensation": 1.0}},
    ),
    (
        "gptq-inverse-hessian",
        {"gptq/damping": {"q": [[0.01, 0.5], [100.0, 1.0]], "k": [[0.01, 0.5], [100.0, 1.0]]}},
        {"gptq/damping": {"q": [[0.01, 0.5], [100.0, 1.0]], "k": [[0.01, 1.1], [100.0, 1.0]]}},
    ),
    (
        "approach-gguf",
        {"gguf/layer-errors": dict(zip(SUPERBLOCKS, (0.4, 1.0)))},
        {"gguf/layer-errors": dict(zip(SUPERBLOCKS, (0.995, 1.0)))},
    ),
    (
        "approach-nf4",
        {"nf4/layer-errors": {"NF4": 0.8, "uniform levels (control)": 1.0}, "nf4/difference-to-bitsandbytes": 0.0},
        {"nf4/layer-errors": {"NF4": 0.995, "uniform levels (control)": 1.0}},
    ),
    (
        "approach-nf4",  # the library has other levels
        {"nf4/layer-errors": {"NF4": 0.8, "uniform levels (control)": 1.0}, "nf4/difference-to-bitsandbytes": 0.0},
        {"nf4/difference-to-bitsandbytes": 0.01},
    ),
    ("faq-outputs-alike", {f"quality/{name}": kept(0.97) for name in FOUR}, {"quality/nf4": kept(0.9)}),
    (
        "faq-small-models-lose",
        {"model": {"parameters": 1e9}, "quality/autogptq-w4g128": {"loss_increase": 0.02, "loss_increase_stderr": 0.001}},
        {"quality/autogptq-w4g128": {"loss_increase": -0.02, "loss_increase_stderr": 0.001}},
    ),
    (
        "quality-at-4-bits",
        {f"quality/{name}": far(distance) for name, distance in zip(FOUR, (0.1, 0.2, 0.25, 0.3))},
        {"quality/autoawq-w4g128": far(0.22)},
    ),
    (
        "faq-awq-faster-to-quantize",
        {"cost/autoawq-w4g128": {"seconds": 10}, "cost/autogptq-w4g128": {"seconds": 20}},
        {"cost/autoawq-w4g128": {"seconds": 30}},
    ),
    (
        "gptq-act-order-slower",
        {"cost/autogptq-w4g128-asym": {"seconds": 10}, "cost/autogptq-w4g128-asym-actorder": {"seconds": 20}},
        {"cost/autogptq-w4g128-asym-actorder": {"seconds": 7}},
    ),
    ("awq-fold-inverse-scale", {"awq/folding": {"folded": 1e-7, "control": 0.2}}, {"awq/folding": {"folded": 0.2, "control": 0.2}}),
    ("awq-small-calibration-set", {"awq/calibration": {"1": 0.041, "16": 0.040}}, {"awq/calibration": {"1": 0.060, "16": 0.040}}),
    ("gptq-calibration-texts", {"gptq/calibration": {"256": 0.05, "512": 0.04}}, {"gptq/calibration": {"8": 0.041, "16": 0.040}}),
    ("approach-awq", {"awq/gain": {"mean": 0.06, "shuffled": 0.01}}, {"awq/gain": {"mean": 0.06, "shuffled": 0.05}}),
    ("approach-awq", {"awq/gain": {"mean": 0.06, "shuffled": -0.01}}, {"awq/gain": {"mean": 0.005, "shuffled": -0.01}}),
    ("approach-gptq", {"gptq/obq": {"same": 100, "of": 100, "layer": "q"}}, {"gptq/obq": {"same": 90, "of": 100, "layer": "q"}}),
    (
        "gptq-each-matrix-alone",
        {"gptq/alone": {"same": 990, "control": 700, "of": 1000, "layer": "q"}},
        {"gptq/alone": {"same": 989, "control": 700, "of": 1000, "layer": "q"}},
    ),
    (
        "faq-requantize-new-version",
        {"nf4/new-version": {"old artifact": {"kl": 2, "kl_windows": [2, 2.1]}, "quantized again": {"kl": 1, "kl_windows": [1, 1]}}},
        {"nf4/new-version": {"old artifact": {"kl": 1, "kl_windows": [1, 1]}, "quantized again": {"kl": 2, "kl_windows": [2, 2.1]}}},
    ),
    ("bench-500-prompts", {"prompts": PROMPTS}, {"prompts": PROMPTS | {"count": 499}}),
    ("bench-500-prompts", {"prompts": PROMPTS}, {"prompts": PROMPTS | {"kinds": {"qa": 500}}}),
]
OWN = {  # claims that tests of their own turn
    "fp16-two-bytes", "awq-autoawq-recipe", "gptq-act-order-better", "gptq-asymmetric-better", "faq-awq-better-quality",
    "nf4-for-finetuning", "cpu-offload-nf4", "bench-memory-gguf-cpu", "speed-gguf", "speed-gguf-on-gpu", "speed-nf4",
}  # fmt: skip


@pytest.mark.parametrize(("claim", "good", "bad"), TURNS, ids=[turn[0] for turn in TURNS])
def test_one_result_changed_turns_the_verdict(claim: str, good: dict, bad: dict) -> None:
    assert verdict(claim, good) == HOLDS
    assert verdict(claim, good | bad) == FAILS
    assert verdict(claim, {}) == OPEN


def test_every_rule_on_measured_results_has_a_result_that_turns_it() -> None:
    measured = {claim["id"] for claim in load_claims() if claim["test"] == "measured"} & set(TESTS)
    assert measured - {turn[0] for turn in TURNS} - OWN == set()


def test_a_rule_of_arithmetic_turns_with_what_the_guide_says() -> None:
    def said(test: Rule) -> str:
        return test.decide({})[0]

    assert [said(memory_of_70b(["FP16"], size)) for size in (140, 125)] == [HOLDS, FAILS]
    assert [said(memory_of_70b(["INT2 g128", "INT3 g128"], low, 26)) for low in (18, 25)] == [FAILS, FAILS]  # INT3 is 31 GB
    assert said(memory_of_70b(["INT2 g128", "INT3 g128"], 21, 30)) == HOLDS
    assert [said(fits("A100 80GB SXM", count, "FP16", 4096)) for count in (2, 1)] == [HOLDS, FAILS]
    assert [said(speed_of_70b("RTX 4090", 2, "NF4 double quant", speed, in_turn=True)) for speed in (22, 28)] == [UNTESTABLE, FAILS]
    assert [own_table(1, low, -0.5)[0] for low in (-1.5, -1.0)] == [UNTESTABLE, FAILS]


def test_a_claim_on_small_models_is_not_judged_on_a_large_one() -> None:
    quality = {"loss_increase": 0.02, "loss_increase_stderr": 0.001}
    assert verdict("faq-small-models-lose", {"model": {"parameters": 13e9}, "quality/autogptq-w4g128": quality}) == UNTESTABLE


def test_prompts_that_were_not_answered_are_not_counted() -> None:
    assert verdict("bench-500-prompts", {"prompts": PROMPTS | {"answered": 32}}) == UNTESTABLE


@pytest.mark.parametrize(("claim", "record"), [("awq-small-calibration-set", "awq"), ("gptq-calibration-texts", "gptq")])
def test_a_single_amount_of_text_decides_nothing(claim: str, record: str) -> None:
    assert verdict(claim, {f"{record}/calibration": {"1": 0.05}}) == UNTESTABLE


def test_a_lesson_says_who_judges_what_it_has_no_result_for() -> None:
    own = {v.claim["id"]: v.measured for v in judge({}, "07_benchmarks")}["faq-outputs-alike"]
    assert own == ("this lesson has no result 'quality/autoawq-w4g128'; the report's first page looks for it in all lessons")
    whole = {v.claim["id"]: v.measured for v in judge({})}["faq-outputs-alike"]
    assert whole.endswith("run the lesson that records it, unless it left it out for this model")


def test_the_same_results_in_another_order_are_told_alike() -> None:
    ratios = {"1.q_proj": 17.0, "1.k_proj": 17.0, "0.q_proj": 2.0}
    said = [
        {v.claim["id"]: v.measured for v in judge({"channels/max-to-median": found, "prompts": prompts})}
        for found, prompts in (
            (ratios, PROMPTS),
            (dict(sorted(ratios.items())), PROMPTS | {"kinds": dict(sorted(PROMPTS["kinds"].items()))}),
        )
    ]
    assert said[0] == said[1]
    assert said[0]["awq-few-channels-matter"].endswith("the most is 17.0 times, in 1.k_proj")


def test_a_fine_tuning_on_four_bits_must_learn_and_save_memory() -> None:
    def results(fall: float, held: int, spread: float = 0.01, other: float | None = 2.5) -> dict:
        control = {"before": [3.0, 3.1], "after": [2.0, 2.1], "frozen_bytes": 400}
        four = {"before": [3.0, 3.1], "after": [3.0 - fall, 3.1 - fall - spread], "frozen_bytes": held}
        training = {"NF4 (QLoRA)": four, "unquantized (control)": control}
        if other is not None:
            training["GPTQ"] = {"before": [3.0, 3.1], "after": [other, other + 0.1 - spread]}
        return {"model": {"parameters": 100}, "nf4/training": training}

    assert verdict("nf4-for-finetuning", results(0.95, 60)) == HOLDS
    assert verdict("nf4-for-finetuning", results(0.5, 60)) == FAILS
    assert verdict("nf4-for-finetuning", results(0.95, 210)) == FAILS, "more bytes than FP16"
    assert verdict("nf4-for-finetuning", results(0.95, 60, spread=2.0)) == NOISE


def test_the_best_for_fine_tuning_is_better_than_another() -> None:
    def results(*others: float, spread: float = 0.001) -> dict:
        control = {"before": [3.0, 3.1], "after": [2.0, 2.1], "frozen_bytes": 400}
        training = {"NF4 (QLoRA)": control | {"frozen_bytes": 60}, "unquantized (control)": control}
        training |= {f"other {place}": {"before": [3.0, 3.1], "after": [2.0 + gap, 2.1 + gap + spread]} for place, gap in enumerate(others)}
        return {"model": {"parameters": 100}, "nf4/training": training}

    assert verdict("nf4-for-finetuning", results(0.1, 0.2)) == HOLDS
    assert verdict("nf4-for-finetuning", results(0.1, -0.1)) == FAILS, "one is better"
    assert verdict("nf4-for-finetuning", results(0.1, 0.0)) == NOISE
    found = next(v for v in judge(results()) if v.claim["id"] == "nf4-for-finetuning")
    assert found.verdict == UNTESTABLE
    assert found.measured.endswith("No other 4-bit format was trained: that NF4 is the best is not tested")
