"""Every claim that this release decides, by its id; the tests of one claim alone stand here, the shared rules in `rules.py`."""

from __future__ import annotations

import math

from qlab.claims.rules import (
    ABOUT_RULE,
    HOLDS,
    SEVENTY,
    Decided,
    Results,
    Test,
    about,
    below,
    beyond,
    documented,
    faster,
    fits,
    loss_within,
    lower,
    memory_of_70b,
    nearer,
    plain,
    settings,
    speed_of,
    worst,
)
from qlab.deploy.plan import GB, SHAPES, weight_bytes
from qlab.wording import signed

SHAPE = SHAPES[SEVENTY]
FOUR_BIT = ("autoawq-w4g128", "autogptq-w4g128", "q4_k_m", "nf4")


def two_bytes(results: Results) -> Decided:
    """Bytes of the model's own checkpoint over its parameters, where it is stored in 16 bits."""
    model = results["model"]
    if model["dtype"] not in ("float16", "bfloat16"):
        raise KeyError("a checkpoint in 16 bits")
    ratio = model["disk_bytes"] / model["parameters"]
    return plain(1.98 <= ratio <= 2.02), f"{model['disk_bytes']:,} bytes for {model['parameters']:,} parameters: {ratio:.3f} bytes each"


def keeps_output(results: Results) -> Decided:
    """Half the bits, and nearly always the same likeliest token."""
    shares = {bits: results[f"quality/rtn-int{bits}"]["top1"] for bits in (8, 4, 3, 2)}
    return plain(shares[8] >= 0.95), "same likeliest token: " + ", ".join(f"{share:.1%} at {bits} bits" for bits, share in shares.items())


def footprint(_: Results) -> Decided:
    """FP16's size over each quantized format's."""
    half = weight_bytes(SHAPE, "FP16")
    ratios = {name: half / weight_bytes(SHAPE, name) for name in ("INT8", "GGUF Q4_K_M", "AWQ/GPTQ INT4 g128")}
    return plain(all(about(2, ratio, 4) for ratio in ratios.values())), ", ".join(f"{n}: {ratio:.2f}×" for n, ratio in ratios.items())


def uneven_channels(results: Results) -> Decided:
    """At least one layer with a channel ten times the median: the paper's large models have many."""
    ratios = results["channels/max-to-median"]
    name = max(ratios, key=ratios.get)
    return plain(ratios[name] >= 10), f"largest channel over the median channel: {ratios[name]:.1f} in the most uneven layer ({name})"


def top_percent(results: Results) -> Decided:
    """Keeping the top 1 % removes clearly more error than keeping as many random channels."""
    errors = results["awq/protection"]
    base, top, random = (errors[name] for name in ("RTN, 3 bits", "top 1 % kept", "random 1 % kept"))
    text = f"error removed: {1 - top / base:.1%} by the top 1 %, {1 - random / base:.1%} by random channels"
    return plain(base - top > 2 * max(0, base - random)), text


def scale_search(results: Results) -> Decided:
    """The search's gain in the mean over layers."""
    gain = results["awq/gain"]
    text = f"the search removes {gain['mean']:.1%} of RTN's output error in the mean, {gain['largest']:.1%} in {gain['layer']}"
    return plain(gain["mean"] > 0.01), text


def awq_memory(_: Results) -> Decided:
    """280 GB is the FP32 size; loading in FP16, or a block at a time, takes less."""
    sizes = {name: weight_bytes(SHAPE, name) / GB for name in ("FP16", "FP32")}
    return plain(about(280, sizes["FP16"], 280)), f"FP16 weights are {sizes['FP16']:.0f} GB; {sizes['FP32']:.0f} GB is the FP32 size"


def hessian(results: Results) -> Decided:
    """The Hessian at the usual damping against one drowned in damping, which is nearly a multiple of the identity."""
    curves = {layer: dict(map(tuple, points)) for layer, points in results["gptq/damping"].items()}
    shares = {layer: 1 - points[0.01] / points[100.0] for layer, points in curves.items()}
    least = min(shares, key=lambda layer: shares[layer])
    return plain(shares[least] > 0), f"removes {shares[least]:.0%} ({least}) to {max(shares.values()):.0%} of the error left without it"


def on_the_fly(results: Results) -> Decided:
    """bitsandbytes' own run: from the original checkpoint in one load."""
    seconds = results["cost/bitsandbytes-nf4-double"]["seconds"]
    return HOLDS, f"{seconds:.1f} s for bitsandbytes to load, quantize and save"


def alike(results: Results) -> Decided:
    """The share of tokens on which original and quantized model agree, with its binomial error."""
    verdicts, texts = [], []
    for name in FOUR_BIT:
        quality = results[f"quality/{name}"]
        share = quality["top1"]
        verdicts.append(beyond(share - 0.95, math.sqrt(share * (1 - share) / quality["tokens"])))
        texts.append(f"{name} {share:.1%}")
    return worst(verdicts), "same likeliest token: " + ", ".join(texts)


def ranking(results: Results) -> Decided:
    """AWQ nearest, NF4 farthest, GPTQ and Q4_K_M between; FAILS if a pair is the other way round beyond its error."""
    awq, gptq, gguf, nf4 = FOUR_BIT
    pairs = [(awq, gptq), (awq, gguf), (gptq, nf4), (gguf, nf4)]
    verdict = worst([nearer(results, better, other)[0] for better, other in pairs])
    order = sorted(FOUR_BIT, key=lambda name: results[f"quality/{name}"]["kl"])
    return verdict, "from nearest to farthest: " + ", ".join(f"{name} {results[f'quality/{name}']['kl']:.5f}" for name in order)


def small_models_lose(results: Results) -> Decided:
    """The loss by AutoGPTQ against its own error."""
    quality, model = results["quality/autogptq-w4g128"], results["model"]
    increase, error = quality["loss_increase"], quality["loss_increase_stderr"] or 0
    text = f"{model['parameters'] / 1e6:.0f} M parameters: loss {signed(increase, 4)} ± {error:.4f} nats/token (AutoGPTQ)"
    return beyond(increase, error), text


TESTS: dict[str, Test] = {
    "fp16-two-bytes": Test("the checkpoint's bytes over the model's parameters, within 1 %", two_bytes),
    "fewer-bits-keep-output": Test("read as: half the bits (INT8) keep the likeliest token in at least 95 % of cases", keeps_output),
    "memory-70b-fp32": memory_of_70b(["FP32"], 280),
    "memory-70b-fp16": memory_of_70b(["FP16"], 140),
    "memory-70b-int8": memory_of_70b(["INT8"], 70),
    "memory-70b-int4": memory_of_70b(["AWQ/GPTQ INT4 g128"], 35),
    "memory-70b-q4-k-m": memory_of_70b(["GGUF Q4_K_M"], 38),
    "memory-70b-int3-int2": memory_of_70b(["INT2 g128", "INT3 g128"], 18, 26),
    "loss-fp16": loss_within(["bf16"], -0.1, 0.1),
    "loss-int8": loss_within(["rtn-int8"], -1, 1),
    "loss-int3-int2": loss_within(["rtn-int3", "rtn-int2"], 5, 15),
    "two-a100-hold-70b-fp16": fits("A100 80GB SXM", 2, "FP16", 4096),
    "four-4090-hold-70b-fp16": fits("RTX 4090", 4, "FP16", 4096),
    "vllm-context-16384": fits("RTX 4090", 2, "AWQ/GPTQ INT4 g128", 16384),
    "footprint-divided-2-to-4": Test(ABOUT_RULE, footprint),
    "loss-int4-awq": loss_within(["autoawq-w4g128"], 1, 3),
    "awq-few-channels-matter": Test("read as: some layer has a channel ten times its median channel", uneven_channels),
    "awq-top-1-percent": Test("read as: keeping them removes more than twice the error that random channels do", top_percent),
    "awq-scale-search": Test("read as: more than 1 % of the error, in the mean over layers", scale_search),
    "awq-autoawq-recipe": settings("autoawq-w4g128", {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}),
    "awq-70b-memory": Test(f"{ABOUT_RULE}; a checkpoint is loaded in 16 bits", awq_memory),
    "loss-int4-gptq": loss_within(["autogptq-w4g128"], 1, 3),
    "gptq-error-compensation": below("gptq/layer-errors", "GPTQ", "no compensation"),
    "gptq-inverse-hessian": Test("read as: less error at damping 0.01 than at 100 (next to no Hessian), in each layer looked at", hessian),
    "gptq-autogptq-recipe": settings("autogptq-w4g128", {"bits": 4, "group_size": 128, "damp_percent": 0.01}),
    "gptq-act-order-better": below("gptq/layer-errors", "GPTQ, act-order", "GPTQ"),
    "gptq-asymmetric-better": below("gptq/layer-errors", "GPTQ", "GPTQ, symmetric"),
    "loss-q4-k-m": loss_within(["q4_k_m"], 1, 2),
    "approach-gguf": below("gguf/layer-errors", "Q4_K: 8 scales a superblock", "control: one scale a superblock"),
    "approach-nf4": below("nf4/layer-errors", "NF4", "uniform levels (control)"),
    "time-nf4": Test("read as: made from the original checkpoint in one load, without calibration text, which this run did", on_the_fly),
    "vllm-supports-gguf": documented(
        False, "in vLLM's core until 0.23, since 0.24 as vllm-gguf-plugin (experimental), by its documentation"
    ),
    "vllm-supports-nf4": documented(False, "in vLLM's core until 0.27, since 0.28 as vllm-bnb-plugin, by its documentation"),
    "tgi-supports-gguf": documented(False, "TGI has a llama.cpp backend, by its documentation"),
    "tgi-supports-nf4": documented(False, "TGI quantizes with bitsandbytes as it loads, by its documentation"),
    "faq-outputs-alike": Test(
        "read as the same likeliest next token in 95 % of cases, for each of four formats; noise within twice the error", alike
    ),
    "faq-small-models-lose": Test("read as a rise of the loss beyond twice its standard error", small_models_lose),
    "quality-at-4-bits": Test(
        "read as an order: AWQ nearest to the original, NF4 farthest; pairs by KL, window by window, noise within twice the error", ranking
    ),
    "faq-awq-better-quality": lower("autoawq-w4g128", "autogptq-w4g128"),
    "faq-awq-faster-to-quantize": faster("autoawq-w4g128", "autogptq-w4g128"),
    "bench-memory-fp16": memory_of_70b(["FP16"], 140),
    "bench-memory-awq-gptq": memory_of_70b(["AWQ/GPTQ INT4 g128"], 36),
    "bench-memory-gguf": memory_of_70b(["GGUF Q4_K_M"], 38),
    "bench-memory-nf4": memory_of_70b(["NF4 double quant"], 37),
    "speed-gguf": speed_of("GGUF Q4_K_M", '"good"'),
    "speed-nf4": speed_of("NF4 by bitsandbytes", '"medium"'),
}
