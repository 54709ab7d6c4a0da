"""The guide's claims, and what this run's measurements make of each.

A claim of data/claims.yaml that a lesson can decide has a test here: a small function from the recorded results to a
verdict with the measured figure. The rest say what machine or model they would need.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from qlab import DATA
from qlab.deploy.plan import GB, SHAPES, weight_bytes

HOLDS, FAILS, UNTESTABLE, OPEN = "holds", "does not hold", "not testable here", "not tested yet"
Results = Mapping[str, Any]
SEVENTY = SHAPES["Llama-3.1-70B"]


@dataclass(frozen=True)
class Verdict:
    """What came out for a claim: HOLDS, FAILS, UNTESTABLE (another machine is needed) or OPEN, and the figure or reason."""

    claim: dict[str, Any]
    verdict: str
    measured: str


def load_claims() -> list[dict[str, Any]]:
    """data/claims.yaml."""
    return yaml.safe_load((DATA / "claims.yaml").read_text())


def judge(results: Results, lesson: str | None = None) -> list[Verdict]:
    """A verdict on every claim (of one lesson): `results` are the records of the lessons, by name."""
    verdicts = []
    for claim in load_claims():
        if lesson and claim["lesson"] != lesson:
            continue
        test = TESTS.get(claim["id"])
        if test is None:
            elsewhere = claim["test"] == "machine"
            verdicts.append(
                Verdict(claim, UNTESTABLE if elsewhere else OPEN, claim["how"] if elsewhere else "no lesson of this release decides it")
            )
            continue
        try:
            holds, measured = test(results)
            verdicts.append(Verdict(claim, HOLDS if holds else FAILS, measured))
        except KeyError as missing:
            verdicts.append(Verdict(claim, OPEN, f"this run has no result {missing}; run the lesson that records it"))
    return verdicts


def near(value: float, figure: float, tolerance: float = 0.1) -> bool:
    """Within a relative tolerance: what "about" means for the guide's rounded figures."""
    return abs(value - figure) <= tolerance * figure


def memory_of_70b(format_name: str, low: float, high: float | None = None) -> Callable[[Results], tuple[bool, str]]:
    """The claim that a 70B takes `low` (to `high`) GB in a format; arithmetic on Llama 3.1 70B's shape decides."""

    def test(_: Results) -> tuple[bool, str]:
        size = weight_bytes(SEVENTY, format_name) / GB
        holds = near(size, low) if high is None else 0.95 * low <= size <= 1.05 * high
        return holds, f"{size:.1f} GB, computed from the shape of Llama 3.1 70B, embedding and head included"

    return test


def loss_within(result: str, least: float, most: float) -> Callable[[Results], tuple[bool, str]]:
    """The claim that perplexity rises by `least` to `most` percent; the standard error stands beside the figure."""

    def test(results: Results) -> tuple[bool, str]:
        quality = results[f"quality/{result}"]
        rise = 100 * math.expm1(quality["loss_increase"])
        error = (100 + rise) * (quality["loss_increase_stderr"] or 0)  # first order
        return least <= rise <= most, f"perplexity {rise:+.2f} ± {error:.2f} % ({result})"

    return test


def lower(better: str, worse: str, figure: str = "kl") -> Callable[[Results], tuple[bool, str]]:
    """The claim that one artifact is better than another, by KL divergence to the original."""

    def test(results: Results) -> tuple[bool, str]:
        first, second = results[f"quality/{better}"][figure], results[f"quality/{worse}"][figure]
        return first < second, f"KL {first:.5f} ({better}) against {second:.5f} ({worse})"

    return test


def faster(quicker: str, slower: str) -> Callable[[Results], tuple[bool, str]]:
    """The claim that one recipe quantizes sooner than another."""

    def test(results: Results) -> tuple[bool, str]:
        first, second = results[f"cost/{quicker}"]["seconds"], results[f"cost/{slower}"]["seconds"]
        return first < second, f"{first:.1f} s ({quicker}) against {second:.1f} s ({slower})"

    return test


def fits(devices: int, memory: float, needed: str) -> Callable[[Results], tuple[bool, str]]:
    """The claim that so many GPUs of so many GB hold a 70B."""

    def test(_: Results) -> tuple[bool, str]:
        size = weight_bytes(SEVENTY, needed) / GB
        return size < devices * memory, f"{size:.0f} GB of weights against {devices * memory:.0f} GB of memory, before any KV cache"

    return test


def below(record: str, better: str, worse: str, factor: float = 1.0) -> Callable[[Results], tuple[bool, str]]:
    """The claim that one way's output error, in a record of errors by way, is below another's."""

    def test(results: Results) -> tuple[bool, str]:
        first, second = results[record][better], results[record][worse]
        return first < factor * second, f"output error {first:.4g} ({better}) against {second:.4g} ({worse}), mean over layers"

    return test


def documented(holds: bool, source: str) -> Callable[[Results], tuple[bool, str]]:
    """A claim about a runtime's features, decided by its own documentation."""
    return lambda _: (holds, source)


def integers_lose(results: Results) -> tuple[bool, str]:
    """INT3 and INT2 both within 5–15 %."""
    tests = [loss_within(f"rtn-int{bits}", 5, 15)(results) for bits in (3, 2)]
    return all(holds for holds, _ in tests), "; ".join(measured for _, measured in tests)


def footprint(_: Results) -> tuple[bool, str]:
    """FP16's size over each quantized format's."""
    half = weight_bytes(SEVENTY, "FP16")
    ratios = {name: half / weight_bytes(SEVENTY, name) for name in ("INT8", "GGUF Q4_K_M", "AWQ/GPTQ INT4 g128")}
    return all(1.9 <= ratio <= 4 for ratio in ratios.values()), ", ".join(f"{name}: {ratio:.2f}×" for name, ratio in ratios.items())


def uneven_channels(results: Results) -> tuple[bool, str]:
    """At least one layer with a channel ten times the median: the paper's large models have many."""
    ratios = results["channels/max-to-median"]
    name = max(ratios, key=ratios.get)
    return ratios[name] >= 10, f"largest channel over the median channel: {ratios[name]:.1f} in the most uneven layer ({name})"


def top_percent(results: Results) -> tuple[bool, str]:
    """Keeping the top 1 % removes clearly more error than keeping as many random channels."""
    errors = results["awq/protection"]
    plain, top, random = (errors[name] for name in ("RTN, 3 bits", "top 1 % kept", "random 1 % kept"))
    return plain - top > 2 * (
        plain - random
    ), f"error removed: {1 - top / plain:.1%} by the top 1 %, {1 - random / plain:.1%} by random channels"


def scale_search(results: Results) -> tuple[bool, str]:
    gain = results["awq/gain"]
    return gain[
        "mean"
    ] > 0.01, f"the search removes {gain['mean']:.1%} of RTN's output error in the mean, {gain['largest']:.1%} in {gain['layer']}"


def awq_memory(results: Results) -> tuple[bool, str]:
    """280 GB is the FP32 size; the walk holds FP16."""
    return (
        False,
        f"FP16 weights are {weight_bytes(SEVENTY, 'FP16') / GB:.0f} GB; {weight_bytes(SEVENTY, 'FP32') / GB:.0f} GB is the FP32 size",
    )


def on_the_fly(results: Results) -> tuple[bool, str]:
    seconds = results["cost/nf4"]["seconds"]
    return True, f"{seconds:.1f} s to load, quantize and save, without calibration text"


def alike(results: Results) -> tuple[bool, str]:
    """Read as: the likeliest next token is the original's, in 95 % of cases, for every 4-bit library."""
    shares = {name: results[f"quality/{name}"]["top1"] for name in ("autoawq-w4g128", "autogptq-w4g128", "q4_k_m", "nf4")}
    return min(shares.values()) >= 0.95, "same likeliest token: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def ranking(results: Results) -> tuple[bool, str]:
    """AWQ best, NF4 last."""
    kl = {name: results[f"quality/{name}"]["kl"] for name in ("autoawq-w4g128", "autogptq-w4g128", "q4_k_m", "nf4")}
    order = sorted(kl, key=kl.get)  # type: ignore[arg-type]
    return order[0].startswith("autoawq") and order[-1].startswith("nf4"), "from nearest to farthest: " + ", ".join(
        f"{n} {kl[n]:.5f}" for n in order
    )


def small_models_lose(results: Results) -> tuple[bool, str]:
    quality, model = results["quality/autogptq-w4g128"], results["model"]
    increase, error = quality["loss_increase"], quality["loss_increase_stderr"]
    return increase > 2 * (
        error or 0
    ), f"{model['parameters'] / 1e6:.0f} M parameters: loss {increase:+.4f} ± {error or 0:.4f} nats/token (AutoGPTQ)"


def speed_of(name: str) -> Callable[[Results], tuple[bool, str]]:
    """A runtime against the FP16 original here: "good" and "medium" are read as at least its speed."""

    def test(results: Results) -> tuple[bool, str]:
        rows = {row["name"]: row["speed"] for row in results["benchmarks"]}
        own, original = rows[name]["generation"], rows["FP16 original"]["generation"]
        return own >= original, f"generation {own:.1f} tokens/s against {original:.1f} of the original in transformers, on this machine"

    return test


TESTS: dict[str, Callable[[Results], tuple[bool, str]]] = {
    "memory-70b-fp32": memory_of_70b("FP32", 280),
    "memory-70b-fp16": memory_of_70b("FP16", 140),
    "memory-70b-int8": memory_of_70b("INT8", 70),
    "memory-70b-int4": memory_of_70b("AWQ/GPTQ INT4 g128", 35),
    "memory-70b-q4-k-m": memory_of_70b("GGUF Q4_K_M", 38),
    "memory-70b-int3-int2": memory_of_70b("INT3 g128", 18, 26),
    "loss-fp16": loss_within("bf16", -0.1, 0.1),
    "loss-int8": loss_within("rtn-int8", -1, 1),
    "loss-int3-int2": integers_lose,
    "two-a100-hold-70b-fp16": fits(2, 80, "FP16"),
    "four-4090-hold-70b-fp16": fits(4, 24, "FP16"),
    "footprint-divided-2-to-4": footprint,
    "loss-int4-awq": loss_within("autoawq-w4g128", 1, 3),
    "awq-few-channels-matter": uneven_channels,
    "awq-top-1-percent": top_percent,
    "awq-scale-search": scale_search,
    "awq-70b-memory": awq_memory,
    "loss-int4-gptq": loss_within("autogptq-w4g128", 1, 3),
    "gptq-error-compensation": below("gptq/layer-errors", "GPTQ", "no compensation"),
    "gptq-act-order-better": below("gptq/layer-errors", "GPTQ, act-order", "GPTQ"),
    "gptq-asymmetric-better": below("gptq/layer-errors", "GPTQ", "GPTQ, symmetric"),
    "loss-q4-k-m": loss_within("q4_k_m", 1, 2),
    "approach-gguf": below("gguf/layer-errors", "Q4_K: 8 scales a superblock", "control: one scale a superblock"),
    "approach-nf4": below("nf4/layer-errors", "NF4", "uniform levels (control)"),
    "time-nf4": on_the_fly,
    "vllm-supports-gguf": documented(
        False, "in vLLM's core until 0.23, since 0.24 as vllm-gguf-plugin (experimental), by its documentation"
    ),
    "vllm-supports-nf4": documented(False, "in vLLM's core until 0.27, since 0.28 as vllm-bnb-plugin, by its documentation"),
    "tgi-supports-gguf": documented(False, "TGI has a llama.cpp backend, by its documentation"),
    "tgi-supports-nf4": documented(False, "TGI quantizes with bitsandbytes as it loads, by its documentation"),
    "faq-outputs-alike": alike,
    "faq-small-models-lose": small_models_lose,
    "quality-at-4-bits": ranking,
    "faq-awq-better-quality": lower("autoawq-w4g128", "autogptq-w4g128"),
    "faq-awq-faster-to-quantize": faster("autoawq-w4g128", "autogptq-w4g128"),
    "bench-memory-fp16": memory_of_70b("FP16", 140),
    "bench-memory-awq-gptq": memory_of_70b("AWQ/GPTQ INT4 g128", 36),
    "bench-memory-gguf": memory_of_70b("GGUF Q4_K_M", 38),
    "bench-memory-nf4": memory_of_70b("NF4 double quant", 37),
    "speed-gguf": speed_of("GGUF Q4_K_M"),
    "speed-nf4": speed_of("NF4 (bitsandbytes)"),
}
