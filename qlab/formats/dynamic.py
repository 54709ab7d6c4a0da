"""What single layers of a GPTQ checkpoint have in the place of what its configuration says for all: GPTQModel's `dynamic`.

Its keys are patterns that fit a layer's name from the beginning on. "-:" in front leaves layers out; the others, with "+:" in front
or nothing, have `bits`, `group_size`, `sym` and `desc_act` of their own. The first that fits counts, those that leave out before the
others: GPTQModel sorts them so (QuantizeConfig.__post_init__).
"""

from __future__ import annotations

from typing import Any

from qlab.formats.patterns import WHY, fits
from qlab.support.errors import UserError

OUT, IN = "-:", "+:"


def settings_of(layer: str, quantization: dict[str, Any]) -> dict[str, Any]:
    """What the configuration's `quantization_config` says of a layer that is stored quantized.

    Raises:
        UserError: as patterns_in; it leaves the layer out; or a pattern is none, or takes too long.
    """
    for pattern, changes in patterns_in(quantization).items():
        if fits(pattern.removeprefix(OUT).removeprefix(IN), layer):
            if pattern.startswith(OUT):
                raise UserError(f"{layer} is stored quantized, and {pattern[:80]!r} in the configuration's dynamic leaves it out: {WHY}")
            return quantization | changes
    return quantization


def all_settings(quantization: dict[str, Any]) -> list[dict[str, Any]]:
    """What the configuration says for all layers, and what it says for some: one or more, in which some may be the same.

    Raises:
        UserError: as patterns_in.
    """
    some = [quantization | changes for pattern, changes in patterns_in(quantization).items() if not pattern.startswith(OUT)]
    return [quantization, *some]


def patterns_in(quantization: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The patterns in the order in which they count, and what each changes.

    Raises:
        UserError: they are of another form.
    """
    found = quantization.get("dynamic") or {}
    if not isinstance(found, dict) or not all(isinstance(changes or {}, dict) for changes in found.values()):
        raise UserError(f"dynamic in the quantization_config is {str(found)[:80]!r}: expected patterns, and what each changes; {WHY}")
    return {pattern: found[pattern] or {} for pattern in sorted(found, key=lambda pattern: not pattern.startswith("-"))}
