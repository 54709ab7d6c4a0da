"""The tests of one claim alone: from the recorded results to a verdict and the measured figure. Shared rules are in `rules.py`."""

from __future__ import annotations

from collections.abc import Mapping

from qlab.claims.benchmarks import agrees
from qlab.claims.rules import FAILS, HOLDS, MARGIN, SEVENTY, UNTESTABLE, Decided, Results, about, beyond, plain, worst
from qlab.evaluate.quality import paired_difference
from qlab.plan.plan import GB, SHAPES, weight_bytes
from qlab.support.wording import Sentence, joined, plural, signed

SHAPE = SHAPES[SEVENTY]
LARGE = 10  # times the median channel: what AWQ's "large activations" are read as
AS_OBQ, ALONE = 0.999, 0.99  # of the codes: from here on they are read as OBQ's, and as those of a matrix quantized alone
QLORA, UNQUANTIZED = "NF4 (QLoRA)", "unquantized (control)"  # names in the record of trainings


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
    qualities = {bits: results[f"quality/rtn-int{bits}"] for bits in (8, 4, 3, 2)}
    each = joined(", ", [Sentence("{share:.1%} at {bits} bits", share=found["top1"], bits=bits) for bits, found in qualities.items()])
    return agrees(qualities[8], 0.95), Sentence("rounded to nearest, the same likeliest token: {shares}", shares=each)


def footprint(_: Results) -> Decided:
    """FP16's size over each quantized format's."""
    half = weight_bytes(SHAPE, "FP16")
    ratios = {name: half / weight_bytes(SHAPE, name) for name in ("INT8", "GGUF Q4_K_M", "AWQ/GPTQ INT4 g128")}
    each = joined(", ", [Sentence("{name}: {ratio:.2f}×", name=name, ratio=ratio) for name, ratio in ratios.items()])
    return plain(all(about(2, ratio, 4) for ratio in ratios.values())), each


def uneven_channels(results: Results) -> Decided:
    """A channel ten times the median, in at least half of the layers: in one alone it is no property of the model."""
    ratios = results["channels/max-to-median"]
    large = sum(ratio >= LARGE for ratio in ratios.values())
    name = max(sorted(ratios), key=lambda layer: ratios[layer])  # of several that read one input the first, in every lesson
    text = "{large} of {all} layers have a channel of {limit} times their median channel; the most is {ratio:.1f} times, in {layer}"
    found = {"large": large, "all": len(ratios), "limit": LARGE, "ratio": ratios[name], "layer": name}
    return plain(large >= len(ratios) / 2), Sentence(text, **found)


def top_percent(results: Results) -> Decided:
    """Keeping the top 1 % removes clearly more error than keeping as many random channels."""
    errors = results["awq/protection"]
    base, top, random = (errors[name] for name in ("RTN, 3 bits", "top 1 % kept", "random 1 % kept"))
    text = Sentence(
        "error removed at 3 bits: {top:.1%} by the top 1 %, {random:.1%} by random channels", top=1 - top / base, random=1 - random / base
    )
    return plain(base - top > max(MARGIN * base, 2 * (base - random))), text


def scale_search(results: Results) -> Decided:
    """The search's gain in the mean over layers."""
    gain = results["awq/gain"]
    text = (
        "scales alone, each layer's own, at 4 bits: the search removes {mean:.1%} of RTN's output error in the mean, {largest:.1%} in "
        "{layer}"
    )
    return plain(gain["mean"] > MARGIN), Sentence(text, mean=gain["mean"], largest=gain["largest"], layer=gain["layer"])


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
    text = "asymmetric GPTQ at 4 bits, columns as they stand: removes {least:.0%} ({layer}) to {most:.0%} of the error left without it"
    return plain(shares[least] > 0), Sentence(text, **found)


def on_the_fly(results: Results) -> Decided:
    """By the library's documentation; bitsandbytes' own run went that way, and its seconds stand beside it."""
    cost = results["cost/bitsandbytes-nf4-double"]
    return HOLDS, Sentence("{seconds:.1f} s on {device} for bitsandbytes to load, quantize and save", **cost)


def normal_float(results: Results) -> Decided:
    """bitsandbytes' weights are those of levels at a normal distribution's quantiles, and these lose less than uniform ones."""
    errors, difference = results["nf4/layer-errors"], results["nf4/difference-to-bitsandbytes"]
    own, uniform = errors["NF4"], errors["uniform levels (control)"]
    text = Sentence(
        "bitsandbytes gives the weights of a normal distribution's quantiles but for {difference:.1e} of the largest; output error "
        "{own:.4g} with them, {uniform:.4g} with uniform levels (control), absmax in FP32",
        difference=difference, own=own, uniform=uniform,
    )  # fmt: skip
    return plain(difference < 1e-6 and own < (1 - MARGIN) * uniform), text


def small_calibration(results: Results) -> Decided:
    """AWQ's scales with a fraction of the calibration text against those with all of it."""
    curve = {int(windows): kl for windows, kl in results["awq/calibration"].items()}
    few, many = min(curve), max(curve)
    text = Sentence("AWQ's scales alone, each layer's own: {curve}", curve=by_windows(curve))
    if many < 4 * few:
        return UNTESTABLE, Sentence("{curve}. Needs calibration_windows of 4 or more", curve=text)
    return plain(curve[few] < 1.1 * curve[many]), text


def many_texts(results: Results) -> Decided:
    """GPTQ with ever more calibration text: whether it still gains with the last increase of it."""
    curve = sorted((int(windows), kl) for windows, kl in results["gptq/calibration"].items())
    text = Sentence("asymmetric GPTQ in group order, H as it is: {curve}", curve=by_windows(dict(curve)))
    if len(curve) < 2:
        return UNTESTABLE, Sentence("{curve}. Needs calibration_windows of 4 or more", curve=text)
    (_, before), (most, last) = curve[-2:]
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
        "qlab's GPTQ: {same:,} of {of:,} codes of {layer} are the same, alone and in a walk over all layers; {control:,} where blocks "
        "before it were quantized first (control; AutoGPTQ works in that way)",
        **found,
    )
    same, control = (found[which] >= ALONE * found["of"] for which in ("same", "control"))
    if same and control:
        return UNTESTABLE, Sentence("{codes}: the control tells nothing", codes=text)
    return plain(same), text


def layerwise_obq(results: Results) -> Decided:
    """GPTQ's codes against those of Optimal Brain Quantization, its inverse updated step by step."""
    found = results["gptq/obq"]
    return plain(found["same"] >= AS_OBQ * found["of"]), Sentence(
        "{same:,} of {of:,} codes are those of OBQ in the same order ({layer})", **found
    )


def channel_aware(results: Results) -> Decided:
    """Scales by the channels' own activations against those of shuffled channels."""
    own, shuffled = results["awq/gain"]["mean"], results["awq/gain"]["shuffled"]
    text = "scales alone, at 4 bits: the search removes {own:.1%} of RTN's error, {shuffled:.1%} with the channels shuffled (control)"
    return plain(own > max(MARGIN, 2 * shuffled)), Sentence(text, own=own, shuffled=shuffled)


def qlora(results: Results) -> Decided:
    """Adapters trained on NF4 against the same on the unquantized model: how far the loss falls on the same windows, and the bytes held;
    and against the same on other 4-bit formats, without which nothing can be called the best."""
    training = results["nf4/training"]
    four, full = training[QLORA], training[UNQUANTIZED]
    if len(four["after"]) < 2:
        return UNTESTABLE, Sentence("needs two calibration windows or more: one has no standard error")
    others = {name: part["after"] for name, part in training.items() if name not in (QLORA, UNQUANTIZED)}
    (fall, error), (whole, _) = (paired_difference(part["before"], part["after"]) for part in (four, full))
    share = four["frozen_bytes"] / (2 * results["model"]["parameters"])
    text = Sentence(
        "on the same windows the loss falls by {fall:.3f} ± {error:.3f} on NF4, by {whole:.3f} unquantized; "
        "the frozen weights take {share:.0%} of their bytes in FP16",
        fall=fall, error=error, whole=whole, share=share,
    )  # fmt: skip
    learned = worst([beyond(fall, error), plain(fall > 0.9 * whole and share < 1)])
    if not others:
        text = Sentence("{text}. No other 4-bit format was trained: that NF4 is the best is not tested", text=text)
        return (UNTESTABLE if learned == HOLDS else learned), text
    verdicts, texts = [learned], [text]
    for name, after in others.items():
        difference, error = paired_difference(after, four["after"])
        verdicts.append(beyond(difference, error))
        said = "loss afterwards, NF4 less {name}: {difference} ± {error:.4f}"
        texts.append(Sentence(said, name=name, difference=signed(-difference, 4), error=error))
    return worst(verdicts), joined("; ", texts)


def quantize_again(results: Results) -> Decided:
    """The old version's artifact against one made anew, both held against the new version, window by window."""
    old, anew = (results["nf4/new-version"][name] for name in ("old artifact", "quantized again"))
    text = "NF4, double quantization, KL to the new version: {old:.5f} of the old artifact, {anew:.5f} of one made anew"
    return beyond(*paired_difference(old["kl_windows"], anew["kl_windows"])), Sentence(text, old=old["kl"], anew=anew["kl"])
