"""The tests of one claim alone: from the recorded results to a verdict and the measured figure. Shared rules are in `rules.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping

from qlab.claims.rules import (
    FAILS,
    HOLDS,
    SEVENTY,
    UNTESTABLE,
    Decided,
    Results,
    about,
    beyond,
    fastest,
    nearer,
    of_this_run,
    plain,
    worst,
)
from qlab.evaluate.quality import paired_difference
from qlab.plan.plan import GB, SHAPES, weight_bytes
from qlab.support.wording import Sentence, joined, plural, signed

SHAPE = SHAPES[SEVENTY]
GUIDE_TABLE = {"FP16": (3.12, 79.8), "AWQ": (3.21, 79.1), "GPTQ": (3.24, 78.9), "Q4_K_M": (3.19, 79.2), "NF4": (3.28, 78.5)}
"""The guide's own benchmark of a 70B: perplexity and MMLU (%), which two of its other claims can be held against."""
FOUR_BIT = ("autoawq-w4g128", "autogptq-w4g128", "llama.cpp's q4_k_m", "nf4")
"""What the guide's readers use: the libraries' own results, and NF4, which is bitsandbytes' to the byte."""
SAME_TOKEN = "same likeliest token: {shares}"


def two_bytes(results: Results) -> Decided:
    """Bytes of the model's own checkpoint over its parameters, where it is stored in 16 bits."""
    model = results["model"]
    if model["dtype"] not in ("float16", "bfloat16"):
        raise KeyError("a checkpoint in 16 bits")
    ratio = model["disk_bytes"] / model["parameters"]
    found = {"bytes": model["disk_bytes"], "weights": model["parameters"], "ratio": ratio}
    return plain(1.98 <= ratio <= 2.02), Sentence("{bytes:,} bytes for {weights:,} parameters: {ratio:.3f} bytes each", **found)


def keeps_output(results: Results) -> Decided:
    """Half the bits, and nearly always the same likeliest token."""
    shares = {bits: results[f"quality/rtn-int{bits}"]["top1"] for bits in (8, 4, 3, 2)}
    each = joined(", ", [Sentence("{share:.1%} at {bits} bits", share=share, bits=bits) for bits, share in shares.items()])
    return plain(shares[8] >= 0.95), Sentence(SAME_TOKEN, shares=each)


def footprint(_: Results) -> Decided:
    """FP16's size over each quantized format's."""
    half = weight_bytes(SHAPE, "FP16")
    ratios = {name: half / weight_bytes(SHAPE, name) for name in ("INT8", "GGUF Q4_K_M", "AWQ/GPTQ INT4 g128")}
    each = joined(", ", [Sentence("{name}: {ratio:.2f}×", name=name, ratio=ratio) for name, ratio in ratios.items()])
    return plain(all(about(2, ratio, 4) for ratio in ratios.values())), each


def uneven_channels(results: Results) -> Decided:
    """At least one layer with a channel ten times the median: the paper's large models have many."""
    ratios = results["channels/max-to-median"]
    name = max(ratios, key=ratios.get)
    text = "largest channel over the median channel: {ratio:.1f} in the most uneven layer ({layer})"
    return plain(ratios[name] >= 10), Sentence(text, ratio=ratios[name], layer=name)


def top_percent(results: Results) -> Decided:
    """Keeping the top 1 % removes clearly more error than keeping as many random channels."""
    errors = results["awq/protection"]
    base, top, random = (errors[name] for name in ("RTN, 3 bits", "top 1 % kept", "random 1 % kept"))
    text = Sentence(
        "error removed: {top:.1%} by the top 1 %, {random:.1%} by random channels", top=1 - top / base, random=1 - random / base
    )
    return plain(base - top > 2 * max(0, base - random)), text


def scale_search(results: Results) -> Decided:
    """The search's gain in the mean over layers."""
    gain = results["awq/gain"]
    text = "the search removes {mean:.1%} of RTN's output error in the mean, {largest:.1%} in {layer}"
    return plain(gain["mean"] > 0.01), Sentence(text, mean=gain["mean"], largest=gain["largest"], layer=gain["layer"])


def bits_of_q4_k_m(_: Results) -> Decided:
    """The bytes of a 70B's every tensor over its weights."""
    bits = 8 * weight_bytes(SHAPE, "GGUF Q4_K_M") / SHAPE.parameters
    text = "{bits:.2f} bits a weight, computed from the shape of Llama 3.1 70B, embedding and head included"
    return plain(about(4.8, bits, 4.8)), Sentence(text, bits=bits)


def awq_memory(_: Results) -> Decided:
    """280 GB is the FP32 size; loading in FP16, or a block at a time, takes less."""
    sizes = {name: weight_bytes(SHAPE, name) / GB for name in ("FP16", "FP32")}
    text = Sentence("FP16 weights are {half:.0f} GB; {full:.0f} GB is the FP32 size", half=sizes["FP16"], full=sizes["FP32"])
    return plain(about(280, sizes["FP16"], 280)), text


def hessian(results: Results) -> Decided:
    """The Hessian at the usual damping against one drowned in damping, which is nearly a multiple of the identity."""
    curves = {layer: dict(map(tuple, points)) for layer, points in results["gptq/damping"].items()}
    shares = {layer: 1 - points[0.01] / points[100.0] for layer, points in curves.items()}
    least = min(shares, key=lambda layer: shares[layer])
    found = {"least": shares[least], "layer": least, "most": max(shares.values())}
    return plain(shares[least] > 0), Sentence("removes {least:.0%} ({layer}) to {most:.0%} of the error left without it", **found)


def on_the_fly(results: Results) -> Decided:
    """bitsandbytes' own run: from the original checkpoint in one load."""
    cost = results["cost/bitsandbytes-nf4-double"]
    return HOLDS, Sentence("{seconds:.1f} s on {device} for bitsandbytes to load, quantize and save", **cost)


def alike(results: Results) -> Decided:
    """The share of tokens on which original and quantized model agree, with its binomial error."""
    verdicts, texts = [], []
    for name in (of_this_run(results, name) for name in FOUR_BIT):
        quality = results[f"quality/{name}"]
        share = quality["top1"]
        verdicts.append(beyond(share - 0.95, math.sqrt(share * (1 - share) / quality["tokens"])))
        texts.append(Sentence("{name} {share:.1%}", name=name, share=share))
    return worst(verdicts), Sentence(SAME_TOKEN, shares=joined(", ", texts))


def ranking(results: Results) -> Decided:
    """AWQ nearest, NF4 farthest, GPTQ and Q4_K_M between; FAILS if a pair is the other way round beyond its error."""
    awq, gptq, gguf, nf4 = names = [of_this_run(results, name) for name in FOUR_BIT]
    pairs = [(awq, gptq), (awq, gguf), (gptq, nf4), (gguf, nf4)]
    verdict = worst([nearer(results, better, other)[0] for better, other in pairs])
    order = sorted(names, key=lambda name: results[f"quality/{name}"]["kl"])
    far = ", ".join(f"{name} {results[f'quality/{name}']['kl']:.5f}" for name in order)
    return verdict, Sentence("from nearest to farthest: {names}", names=far)


def small_models_lose(results: Results) -> Decided:
    """The loss by AutoGPTQ against its own error."""
    quality, model = results[f"quality/{of_this_run(results, 'autogptq-w4g128')}"], results["model"]
    increase, error = quality["loss_increase"], quality["loss_increase_stderr"] or 0
    text = "{weights:.0f} M parameters: loss {increase} ± {error:.4f} nats/token (AutoGPTQ)"
    return beyond(increase, error), Sentence(text, weights=model["parameters"] / 1e6, increase=signed(increase, 4), error=error)


def small_calibration(results: Results) -> Decided:
    """AWQ with a fraction of the calibration text against AWQ with all of it."""
    curve = {int(windows): kl for windows, kl in results["awq/calibration"].items()}
    few, many = min(curve), max(curve)
    return plain(curve[few] < 1.1 * curve[many]), by_windows(curve)


def many_texts(results: Results) -> Decided:
    """GPTQ with ever more calibration text: whether it still gains when the text is doubled for the last time."""
    curve = sorted((int(windows), kl) for windows, kl in results["gptq/calibration"].items())
    (_, before), (most, last) = curve[-2:]
    text = by_windows(dict(curve))
    if most >= 512:
        return plain(last < 0.95 * before), text
    if last >= 0.95 * before:
        return FAILS, Sentence("{curve}: it has levelled off well before 512 texts", curve=text)
    return UNTESTABLE, Sentence("{curve}: it still gains. Needs -p calibration_windows 512, and the hours for it", curve=text)


def by_windows(curve: Mapping[int, float]) -> Sentence:
    """KL by the number of calibration windows."""
    counted = {windows: plural(windows, "1 window", "{count} windows") for windows in curve}
    return joined(", ", [Sentence("KL {kl:.5f} with {windows}", kl=kl, windows=counted[windows]) for windows, kl in sorted(curve.items())])


def folding(results: Results) -> Decided:
    """Scales folded, nothing rounded: the logits must be the original's; with the inverse left out they must not."""
    folded, control = results["awq/folding"]["folded"], results["awq/folding"]["control"]
    text = "the first block's output moves by {folded:.1e} of its size with the inverse folded in, by {control:.1e} without (control)"
    return plain(folded < 1e-4 and control > 100 * folded), Sentence(text, folded=folded, control=control)


def matrix_alone(results: Results) -> Decided:
    """The codes of a layer quantized alone, and in a walk over all layers; the control is a walk in which its inputs come from quantized
    blocks, and where that changes no code the measurement could not have failed."""
    found = results["gptq/alone"]
    text = Sentence(
        "{same:,} of {of:,} codes of {layer} are the same, alone and in a walk over all layers; {control:,} where blocks before it were "
        "quantized first (control; AutoGPTQ works in that way)",
        **found,
    )
    same, control = (found[which] >= 0.99 * found["of"] for which in ("same", "control"))
    if same and control:
        return UNTESTABLE, Sentence("{codes}: the control tells nothing", codes=text)
    return plain(same), text


def layerwise_obq(results: Results) -> Decided:
    """GPTQ's codes against those of Optimal Brain Quantization, its inverse updated step by step."""
    found = results["gptq/obq"]
    return plain(found["same"] >= 0.999 * found["of"]), Sentence(
        "{same:,} of {of:,} codes are those of OBQ in the same order ({layer})", **found
    )


def channel_aware(results: Results) -> Decided:
    """Scales by the channels' own activations against those of shuffled channels."""
    own, shuffled = results["awq/gain"]["mean"], results["awq/gain"]["shuffled"]
    text = "the search removes {own:.1%} of RTN's error, {shuffled:.1%} with the channels shuffled (control)"
    return plain(own > 2 * max(0.0, shuffled)), Sentence(text, own=own, shuffled=shuffled)


def qlora(results: Results) -> Decided:
    """Adapters trained on NF4 against the same on the unquantized model: how far the loss falls on the same windows, and the bytes held."""
    four, full = (results["nf4/training"][name] for name in ("NF4 (QLoRA)", "unquantized (control)"))
    (fall, error), (whole, _) = (paired_difference(part["before"], part["after"]) for part in (four, full))
    share = four["frozen_bytes"] / (2 * results["model"]["parameters"])
    text = Sentence(
        "on the same windows the loss falls by {fall:.3f} ± {error:.3f} on NF4, by {whole:.3f} unquantized; "
        "the frozen weights take {share:.0%} of their bytes in FP16",
        fall=fall, error=error, whole=whole, share=share,
    )  # fmt: skip
    return worst([beyond(fall, error), plain(fall > 0.9 * whole and share < 1)]), text


def quantize_again(results: Results) -> Decided:
    """The old version's artifact against one made anew, both held against the new version, window by window."""
    old, anew = (results["nf4/new-version"][name] for name in ("old artifact", "quantized again"))
    text = Sentence("KL to the new version: {old:.5f} of the old artifact, {anew:.5f} of one made anew", old=old["kl"], anew=anew["kl"])
    return beyond(*paired_difference(old["kl_windows"], anew["kl_windows"])), text


def prompts_of_the_guide(results: Results) -> Decided:
    """The prompts that lie in data/, by language and kind."""
    found = results["prompts"]
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["kinds"].items())
    languages = ", ".join(f"{count} {language}" for language, count in found["languages"].items())
    text = Sentence("{count} prompts: {kinds}; {languages}", count=found["count"], kinds=kinds, languages=languages)
    return plain(found["count"] >= 500 and {"fr", "en"} <= set(found["languages"])), text


def in_ram(results: Results) -> Decided:
    """The size of the file, and that this run's server had no layer on a GPU."""
    speed = fastest(results, "GGUF Q4_K_M")
    size = weight_bytes(SHAPE, "GGUF Q4_K_M") / GB
    text = Sentence("{size:.1f} GB of RAM for a 70B; here the file ran with no layer on a GPU", size=size)
    return plain(speed["conditions"]["device"] == "cpu"), text


def nf4_on_cpu(results: Results) -> Decided:
    """A model that runs wholly on the CPU can leave layers there."""
    speed = fastest(results, "NF4 by bitsandbytes")
    if speed["conditions"]["device"] != "cpu":
        raise KeyError("a run of NF4 on the CPU")
    text = "bitsandbytes ran it wholly on the CPU, at {speed:.0f} tok/s; layers can be left there (device_map)"
    return FAILS, Sentence(text, speed=speed["generation"])


def own_table(column: int, low: float, high: float) -> Decided:
    """The guide's claim on models of 13B and more against the guide's own table of a 70B."""
    before = GUIDE_TABLE["FP16"][column]
    changes = {name: row[column] - before for name, row in GUIDE_TABLE.items() if name != "FP16"}
    table = ", ".join(f"{name} {signed(change, 2)}" for name, change in changes.items())
    if all(low - 1e-9 <= change <= high + 1e-9 for change in changes.values()):
        text = "the guide's own table of a 70B: {table}: it agrees with itself. Needs a model of 13B or more to be measured"
        return UNTESTABLE, Sentence(text, table=table)
    return FAILS, Sentence("the guide's own table of a 70B: {table}: it contradicts itself", table=table)
