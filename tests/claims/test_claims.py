"""How claims are decided: what lies within the error decides nothing, every rule is said, every undecided claim says why."""

from __future__ import annotations

import pytest

from qlab.claims import ADVICE, FAILS, HOLDS, NOISE, OPEN, TESTS, UNTESTABLE, judge, load_claims, undecided
from qlab.claims.benchmarks import fastest
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


def speeds(own: tuple[float, float], device: str, name: str = "NF4 by bitsandbytes", original: tuple[float, float] = (156.0, 5.0)) -> dict:
    """Lesson 7's rows of the original and of `name`, each with a speed and its spread over the rounds, on a device."""

    def row(label: str, speed: tuple[float, float]) -> dict:
        found = {"generation": speed[0], "generation_sd": speed[1], "runtime": "a runtime", "conditions": {"device": device}}
        return {"name": label, "figures": {"speed": found}}

    absent = {"name": name, "figures": None, "problem": "not here"}
    return {"benchmarks": [absent, row("FP16 original", original), row(name, own)]}


def test_a_speed_within_the_spread_is_noise() -> None:
    assert verdict("speed-nf4", speeds((161.6, 2.7), "cuda")) == NOISE
    assert verdict("speed-nf4", speeds((300.0, 20.0), "cuda")) == HOLDS
    assert verdict("speed-nf4", speeds((60.0, 2.0), "cuda")) == FAILS


def test_a_speed_on_one_device_says_nothing_of_another() -> None:
    found = {device: speeds((300.0, 20.0), device, "GGUF Q4_K_M") for device in ("cpu", "cuda")}
    assert [verdict(claim, found["cpu"]) for claim in ("speed-gguf", "speed-gguf-on-gpu")] == [HOLDS, UNTESTABLE]
    assert [verdict(claim, found["cuda"]) for claim in ("speed-gguf", "speed-gguf-on-gpu")] == [UNTESTABLE, HOLDS]
    slow = {device: speeds((60.0, 2.0), device, "GGUF Q4_K_M") for device in ("cpu", "cuda")}
    assert verdict("speed-gguf", slow["cpu"]) == verdict("speed-gguf-on-gpu", slow["cuda"]) == FAILS
    assert verdict("speed-nf4", speeds((300.0, 20.0), "cpu")) == UNTESTABLE  # there its library unpacks at every call
    mixed = speeds((300.0, 20.0), "cpu", "GGUF Q4_K_M")  # llama.cpp on the CPU beside the original on a GPU
    mixed["benchmarks"][1] = speeds((300.0, 20.0), "cuda")["benchmarks"][1]
    assert verdict("speed-gguf", mixed) == verdict("speed-gguf-on-gpu", mixed) == UNTESTABLE
    said = next(v.measured for v in judge(found["cpu"]) if v.claim["id"] == "speed-gguf-on-gpu")
    assert said.startswith("GGUF Q4_K_M generates 300.0 ± 20.0 tokens/s in a runtime, the original 156.0 ± 5.0 in a runtime")


def test_a_speed_is_taken_where_rounds_agree() -> None:
    results = speeds((300.0, 20.0), "cpu", "GGUF Q4_K_M")
    wild = speeds((900.0, 800.0), "cpu", "GGUF Q4_K_M")["benchmarks"][-1]
    results["benchmarks"].append(wild)
    assert fastest(results, "GGUF Q4_K_M")["generation"] == 300.0
    assert fastest({"benchmarks": [wild]}, "GGUF Q4_K_M")["generation"] == 900.0


def test_what_ran_on_a_gpu_decides_no_claim_on_a_cpu() -> None:
    assert verdict("cpu-offload-nf4", speeds((60.0, 2.0), "cpu")) == FAILS
    assert verdict("cpu-offload-nf4", speeds((60.0, 2.0), "cuda")) == UNTESTABLE
    assert verdict("bench-memory-gguf-cpu", speeds((60.0, 2.0), "cpu", "GGUF Q4_K_M")) == HOLDS
    assert verdict("bench-memory-gguf-cpu", speeds((60.0, 2.0), "cuda", "GGUF Q4_K_M")) == UNTESTABLE


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


def test_a_layer_alone_is_not_judged_where_the_control_changes_no_code() -> None:
    codes = {"same": 1000, "control": 1000, "of": 1000, "layer": "q"}
    assert verdict("gptq-each-matrix-alone", {"gptq/alone": codes}) == UNTESTABLE
    for same, control, said in ((1000, 995, UNTESTABLE), (500, 500, FAILS), (985, 995, FAILS)):
        assert verdict("gptq-each-matrix-alone", {"gptq/alone": codes | {"same": same, "control": control}}) == said


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
