"""Lesson 4: superblocks, settled codes, and what a file holds."""

from __future__ import annotations

from collections.abc import Mapping

from qlab.workbook.language.spoken import enumerated, say


def superblock(errors: Mapping[str, float], way: str, control: str, groups: str) -> str:
    """Output error by way: `way` against fewer scales (`control`) and against plain rounding in groups as fine."""
    kind = way.partition(":")[0]
    less, plain = errors[way] / errors[control], errors[way] / errors[groups]
    values = {"kind": kind, "less": less, "control": control.removeprefix("control: "), "groups": groups, "plain": plain}
    if less < 1 and plain < 1:
        return say("{kind} leaves {less:.0%} of the error of {control}, and {plain:.0%} of that of {groups}", **values)
    if less < 1:
        return say("{kind} leaves {less:.0%} of the error of {control}, but {plain:.0%} of that of {groups}", **values)
    return say("{kind} is no better than {control}: {less:.0%} of its error, and {plain:.0%} of that of {groups}", **values)


def settled(errors: Mapping[str, float]) -> str:
    """Output error of searched grids, settled by the diagonal alone (the control), and settled in two rounds."""
    searched = next(error for way, error in errors.items() if way.endswith(" by importance"))
    control, last = errors["control: settled by H's diagonal"], errors["settled, two rounds"]
    values = {"left": last / searched, "control": control / searched}
    if last < searched:
        return say("Settled codes leave {left:.0%} of the error, in as many bytes; by H's diagonal alone {control:.0%}", **values)
    return say("Settled codes do not lower the error: {left:.0%} of it; by H's diagonal alone {control:.0%}", **values)


def rounds(errors: Mapping[str, float]) -> str:
    """What each round of settling leaves of the error of searched grids."""
    searched = next(error for way, error in errors.items() if way.endswith(" by importance"))
    first, second = (errors[way] / searched for way in ("settled, one round", "settled, two rounds"))
    values = {"first": first, "second": second}
    if round(first, 2) <= round(second, 2):  # as they are printed
        return say("One round leaves {first:.0%} of the error, and a second one lowers it no further ({second:.0%})", **values)
    return say("One round leaves {first:.0%} of the error, a second one {second:.0%}", **values)


def bits(found: Mapping[str, float]) -> str:
    """Bits a weight by file: Q4_K_M against the model in 16 bits."""
    return say("Q4_K_M takes {bits:.2f} bits a weight with all that the file holds, FP16 {times:.1f} times as many",
               bits=found["q4_k_m"], times=found["f16"] / found["q4_k_m"])  # fmt: skip


def types(mix: str, counts: Mapping[str, int]) -> str:
    """Tensors of a file by type: how many matrices have which, the most frequent first. Norms and biases, in F32, are not counted."""
    matrices = {name: count for name, count in counts.items() if name != "F32"} or counts
    if len(matrices) == 1:
        return say("{mix}: all {all} matrices are {type}", mix=mix, all=sum(matrices.values()), type=next(iter(matrices)))
    each = [say("{count} are {type}", count=matrices[name], type=name) for name in sorted(matrices, key=lambda name: -matrices[name])]
    return say("{mix}: of {all} matrices {each}", mix=mix, all=sum(matrices.values()), each=enumerated(each))


def places(types: Mapping[str, str]) -> list[str]:
    """Which matrices have another type than most: a line for each such type, the blocks of a kind in brackets. `types` by GGUF's names of
    tensors, such as blk.3.attn_v.weight."""
    matrices = {name: kind for name, kind in types.items() if kind != "F32"}
    usual = max(matrices.values(), key=list(matrices.values()).count)
    found: dict[str, dict[str, list[str]]] = {}
    for name, type_ in matrices.items():
        block, _, part = name.removeprefix("blk.").removesuffix(".weight").partition(".")
        blocks = found.setdefault(type_, {}).setdefault(part or block, [])
        if part:
            blocks.append(block)
    named = {
        type_: [f"{part} ({', '.join(blocks)})" if blocks else part for part, blocks in parts.items()] for type_, parts in found.items()
    }
    return [f"{type_}: {', '.join(parts)}" for type_, parts in named.items() if type_ != usual]
