"""How claims are decided: what lies within the error decides nothing, every rule is said, every undecided claim says why."""

from __future__ import annotations

import pytest

from qlab.claims import ADVICE, FAILS, HOLDS, NOISE, OPEN, TESTS, UNTESTABLE, judge, load_claims, undecided
from qlab.claims.rules import between, beyond
from qlab.serve.runtimes.registry import RUNTIMES
from qlab.workbook.language.spoken import VARIABLE, say


def verdict(claim: str, results: dict) -> str:
    return next(v for v in judge(results) if v.claim["id"] == claim).verdict


def test_noise_decides_nothing() -> None:
    assert [beyond(d, 1.0) for d in (3.0, 2.0, -1.0, -3.0)] == [HOLDS, NOISE, NOISE, FAILS]
    assert [between(1, value, 2, 0.2) for value in (1.5, 1.9, 2.2, 3.0, 0.0)] == [HOLDS, NOISE, NOISE, FAILS, FAILS]


@pytest.mark.parametrize(("gap", "expected"), [(0.01, HOLDS), (-0.01, FAILS), (0.0, NOISE)])
def test_methods_are_ranked_by_pairs_of_windows(gap: float, expected: str) -> None:
    """Windows differ by far more than the methods; only the pairs can tell, and a single pair that differs cannot."""
    easy, wobble = [0.1, 0.5, 0.2, 0.9], [1e-4, -1e-4, 2e-4, -2e-4]
    other = [x + gap + w for x, w in zip(easy, wobble, strict=True)]
    results = {f"quality/{name}": {"kl": sum(k) / 4, "kl_windows": k} for name, k in (("autoawq-w4g128", easy), ("autogptq-w4g128", other))}
    assert verdict("faq-awq-better-quality", results) == expected


def test_a_speed_within_the_spread_is_noise() -> None:
    def results(own: float, spread: float) -> dict:
        speeds = {"FP16 original": (156.0, 5.0), "NF4 by bitsandbytes": (own, spread)}
        measured = {n: {"speed": {"generation": v, "generation_sd": sd}} for n, (v, sd) in speeds.items()}
        absent = [{"name": "NF4 by bitsandbytes", "figures": None, "problem": "not here"}]
        return {"benchmarks": absent + [{"name": name, "figures": figures} for name, figures in measured.items()]}

    assert verdict("speed-nf4", results(161.6, 2.7)) == NOISE
    assert verdict("speed-nf4", results(300.0, 20.0)) == HOLDS
    assert verdict("speed-nf4", results(60.0, 2.0)) == FAILS


def test_settings_are_read_from_the_artifact() -> None:
    stored = {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm", "quant_method": "awq"}
    assert verdict("awq-autoawq-recipe", {"settings/autoawq-w4g128": stored}) == HOLDS
    assert verdict("awq-autoawq-recipe", {"settings/autoawq-w4g128": stored | {"group_size": 64}}) == FAILS
    assert verdict("awq-autoawq-recipe", {}) == OPEN


def test_rules_follow_the_group_size_of_the_run() -> None:
    def results(size: int) -> dict:
        near, far = {"kl": 0.1, "kl_windows": [0.1, 0.11]}, {"kl": 0.2, "kl_windows": [0.2, 0.21]}
        return {"group-size": 64, f"quality/autoawq-w4g{size}": near, f"quality/autogptq-w4g{size}": far}

    found = next(v for v in judge(results(64)) if v.claim["id"] == "faq-awq-better-quality")
    assert found.verdict == HOLDS
    assert "(autoawq-w4g64)" in found.measured  # one label, one method
    assert verdict("faq-awq-better-quality", results(128)) == OPEN
    made = {"bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}
    assert verdict("awq-autoawq-recipe", {"group-size": 64, "settings/autoawq-w4g64": made}) == UNTESTABLE


def test_superblocks_are_not_judged_on_a_model_without_them() -> None:
    assert verdict("approach-gguf", {"gguf/layer-errors": {"Q5_0: a scale for 32": 0.1, "Q8_0": 0.01}}) == UNTESTABLE


def test_sixteen_bits_are_two_bytes_only_in_a_checkpoint_of_sixteen() -> None:
    model = {"parameters": 1000, "disk_bytes": 2010, "dtype": "float16"}
    assert verdict("fp16-two-bytes", {"model": model}) == HOLDS
    assert verdict("fp16-two-bytes", {"model": model | {"disk_bytes": 4000}}) == FAILS
    assert verdict("fp16-two-bytes", {"model": model | {"dtype": "float32"}}) == OPEN


def test_every_rule_is_said_and_every_undecided_claim_says_why() -> None:
    assert all(test.rule for test in TESTS.values())
    missing = {runtime.label for runtime in RUNTIMES.values() if not runtime.present()}
    for found in judge({}):
        if found.claim["id"] in TESTS:
            assert found.rule
        elif found.claim["test"] == "advice":
            assert found.verdict == ADVICE
        elif found.verdict == UNTESTABLE:
            assert found.measured.startswith("Needs")
        else:
            assert found.verdict == OPEN
            assert found.claim["how"] in found.measured or not any(name in found.measured for name in missing)


def test_a_runtime_that_is_missing_is_said_in_french(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = next(iter(RUNTIMES.values()))
    claim = {"id": f"{runtime.name}-new", "test": "measured", "how": "It serves an artifact."}
    monkeypatch.setenv(VARIABLE, "fr")
    monkeypatch.setattr(type(runtime), "present", lambda self: False)
    assert say(undecided(claim)[1]) == f"Il faut {runtime.label}, qui n'est pas sur cette machine. Pour l'obtenir\u00a0: {runtime.install}"
    monkeypatch.setattr(type(runtime), "present", lambda self: True)
    assert say(undecided(claim)[1]).startswith(f"{runtime.label} est sur cette machine, mais")
    other = say(undecided(claim | {"id": "another"})[1])
    assert other == "Aucune leçon de cette version ne le fait encore. Ce qui le ferait\u00a0: It serves an artifact."


def test_advice_has_no_test() -> None:
    assert not {claim["id"] for claim in load_claims() if claim["test"] == "advice"} & set(TESTS)


TURNS = [  # a claim, results under which it holds, and what in them to change so that it does not
    ("awq-fold-inverse-scale", {"awq/folding": {"folded": 1e-7, "control": 0.2}}, {"awq/folding": {"folded": 0.2, "control": 0.2}}),
    ("awq-small-calibration-set", {"awq/calibration": {"1": 0.041, "16": 0.040}}, {"awq/calibration": {"1": 0.060, "16": 0.040}}),
    ("gptq-calibration-texts", {"gptq/calibration": {"256": 0.05, "512": 0.04}}, {"gptq/calibration": {"8": 0.041, "16": 0.040}}),
    ("approach-awq", {"awq/gain": {"mean": 0.06, "shuffled": 0.01}}, {"awq/gain": {"mean": 0.06, "shuffled": 0.05}}),
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
    (
        "bench-500-prompts",
        {"prompts": {"count": 500, "kinds": {"qa": 500}, "languages": {"fr": 250, "en": 250}}},
        {"prompts": {"count": 499, "kinds": {"qa": 499}, "languages": {"fr": 250, "en": 249}}},
    ),
]


@pytest.mark.parametrize(("claim", "good", "bad"), TURNS, ids=[turn[0] for turn in TURNS])
def test_one_result_changed_turns_the_verdict(claim: str, good: dict, bad: dict) -> None:
    assert verdict(claim, good) == HOLDS
    assert verdict(claim, bad) == FAILS
    assert verdict(claim, {}) == OPEN


def test_a_layer_alone_is_not_judged_where_the_control_changes_no_code() -> None:
    codes = {"same": 1000, "control": 1000, "of": 1000, "layer": "q"}
    assert verdict("gptq-each-matrix-alone", {"gptq/alone": codes}) == UNTESTABLE
    for same, control, said in ((1000, 995, UNTESTABLE), (500, 500, FAILS), (985, 995, FAILS)):
        assert verdict("gptq-each-matrix-alone", {"gptq/alone": codes | {"same": same, "control": control}}) == said


def test_a_fine_tuning_on_four_bits_must_learn_and_save_memory() -> None:
    def results(fall: float, held: int, spread: float = 0.01) -> dict:
        control = {"before": [3.0, 3.1], "after": [2.0, 2.1], "frozen_bytes": 400}
        four = {"before": [3.0, 3.1], "after": [3.0 - fall, 3.1 - fall - spread], "frozen_bytes": held}
        return {"model": {"parameters": 100}, "nf4/training": {"NF4 (QLoRA)": four, "unquantized (control)": control}}

    assert verdict("nf4-for-finetuning", results(0.95, 60)) == HOLDS
    assert verdict("nf4-for-finetuning", results(0.5, 60)) == FAILS
    assert verdict("nf4-for-finetuning", results(0.95, 210)) == FAILS, "more bytes than FP16"
    assert verdict("nf4-for-finetuning", results(0.95, 60, spread=2.0)) == NOISE


def test_options_of_gptq_are_judged_one_at_a_time_on_unseen_text() -> None:
    def results(**windows: list[float]) -> dict:
        return {f"quality/autogptq-w4g128{name}": {"kl": sum(w) / len(w), "kl_windows": w} for name, w in windows.items()}

    plain, asymmetric, ordered = "", "-asym", "-asym-actorder"
    found = results(**{plain: [0.30, 0.31], asymmetric: [0.20, 0.21], ordered: [0.25, 0.26]})
    assert verdict("gptq-asymmetric-better", found) == HOLDS
    assert verdict("gptq-act-order-better", found) == FAILS
    found = results(**{plain: [0.20, 0.21], asymmetric: [0.30, 0.31], ordered: [0.25, 0.26]})
    assert verdict("gptq-asymmetric-better", found) == FAILS
    assert verdict("gptq-act-order-better", found) == HOLDS


def test_bits_and_gigabytes_of_one_sentence_are_judged_apart() -> None:
    assert verdict("bits-70b-q4-k-m", {}) == HOLDS
    assert verdict("memory-70b-q4-k-m", {}) == FAILS


def test_speeds_beyond_bandwidth_are_refuted_by_arithmetic() -> None:
    """42.1 GB a token from one RTX 4090 after the other, at 1008 GB/s each: 24 tokens/s at most, and the guide says 28."""
    assert verdict("bench-gguf-2x4090", {}) == FAILS
    assert verdict("bench-awq-2x4090", {}) == UNTESTABLE
    found = {v.claim["id"]: v.measured for v in judge({})}
    assert found["bench-gguf-2x4090"].startswith("24 tok/s is the most")
    assert "54 tok/s is the most" in found["bench-awq-2x4090"]
    assert "72% of it" in found["bench-fp16-4xa100"]
