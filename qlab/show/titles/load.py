"""Lesson 7: which format a card's figures favour, at few users and at many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qlab.workbook.language.spoken import enumerated, say

Curves = Mapping[str, Sequence[tuple[int, float]]]  # by format: users at a time, tokens/s


def paces(model: str, card: str, curves: Curves) -> str:
    """Which format gives most tokens/s at the fewest users that any can serve, and whether it still does at the most."""
    rates: dict[int, dict[str, float]] = {}
    for name, points in curves.items():
        for users, rate in points:
            rates.setdefault(users, {})[name] = rate
    best = {users: enumerated([name for name, rate in each.items() if rate == max(each.values())]) for users, each in rates.items()}
    if not best:
        return say("{model} does not fit on one {card}", model=model, card=card)
    few, many = min(best), max(best)
    values = {"model": model, "card": card, "few": few, "many": many, "first": best[few], "last": best[many]}
    if best[few] == best[many]:
        return say("{model} on one {card}: {first} can give most tokens/s, at {few} and at {many} at a time", **values)
    return say("{model} on one {card}: {first} can give most tokens/s at {few} at a time, {last} at {many}", **values)
