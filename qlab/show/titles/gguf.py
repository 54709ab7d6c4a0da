"""Lesson 4: superblocks, settled codes, and what a file holds."""

from __future__ import annotations

from collections.abc import Mapping

from qlab.workbook.language.spoken import say


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
        return say("Settled codes leave {left:.0%} of the error, from the same bytes; by H's diagonal alone {control:.0%}", **values)
    return say("Settled codes do not lower the error: {left:.0%} of it; by H's diagonal alone {control:.0%}", **values)


def bits(found: Mapping[str, float]) -> str:
    """Bits a weight by file: Q4_K_M against the model in 16 bits."""
    return say("Q4_K_M takes {bits:.2f} bits a weight with all that the file holds, FP16 {times:.1f} times as many",
               bits=found["q4_k_m"], times=found["f16"] / found["q4_k_m"])  # fmt: skip


def types(mix: str, counts: Mapping[str, int]) -> str:
    """Tensors of a file by type: which type most have, and how many do not."""
    most = max(counts, key=lambda name: counts[name])
    values = {"mix": mix, "count": counts[most], "all": sum(counts.values()), "type": most}
    if len(counts) == 1:
        return say("{mix}: all {all} tensors are {type}", **values)
    return say("{mix}: {count} of {all} tensors are {type}; {others} types in all", others=len(counts), **values)
