"""What to take for so many users at a time, and when not to quantize: the nearest to the original that is fast enough.

Without a GPU by what lesson 6 measured on this machine. For a GPU of some generation nothing is measured here: there it is arithmetic on
its card's published figures (qlab.plan.pace).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qlab.plan.pace import INT4, NONE, Generation, Request, generations, gpus, paces
from qlab.plan.plan import GB, Shape, cache_bytes, fit, weight_bytes
from qlab.serve.crowd import NEAR
from qlab.support.wording import Sentence, listed
from qlab.workbook.crowd.kept import Loads

REACHED = 0.5  # of a card's published figures is counted on: a guess on the safe side, since no kernel reaches them
LADDER = (1, 4, 16, 64, 256)
ORIGINALS = ("f16", "FP16")


@dataclass(frozen=True)
class Choice:
    """A format to take, or that nothing can be said, and why."""

    take: str
    why: str


def choose(shape: Shape, loads: Loads, gpu: str, users: int, request: Request, wanted: float) -> Choice:
    """For a model of this `shape`, so many `users` at a time, each of whom is to have `wanted` tokens/s; `gpu` is NONE or a generation.

    Raises:
        KeyError: no such generation.
    """
    return measured(loads, users, wanted) if gpu == NONE else counted(shape, generations()[gpu], users, request, wanted)


def measured(loads: Loads, users: int, wanted: float) -> Choice:
    """By the least level of load that has no fewer than `users` at a time, of those at which all of `loads` gave answers: with fewer than
    that each gets no less. What more get was not measured."""
    rates = {name: {level: rate / level for level, rate in by_level.items() if rate} for name, by_level in loads.items()}
    levels = set.intersection(*(set(by_level) for by_level in rates.values())) if rates else set()
    if not levels:
        return Choice(
            Sentence("not measured"), Sentence("no server of this model was measured here with the same `work`: lesson 6 does that")
        )
    if users > max(levels):
        return Choice(Sentence("not measured"), Sentence("lesson 6 had at most {most} users at a time", most=max(levels)))
    level = min(level for level in levels if level >= users)
    each = {name: by_level[level] for name, by_level in rates.items()}
    name = nearest_enough(each, wanted)
    text = "measured in lesson 6 with {level} at a time, whose prompts and answers are short: {name} gives each user {rate:,.1f} tokens/s"
    return chosen(name, Sentence(text, level=level, name=name, rate=each[name]), each, wanted)


def counted(shape: Shape, generation: Generation, users: int, request: Request, wanted: float) -> Choice:
    """By arithmetic on the published figures of the generation's card, of which REACHED is counted on."""
    card = generation.card["name"]
    each = {name: REACHED * rate / users for name, rate in paces(shape, generation, users, request).items()}
    if not each:
        tokens = request.prompt + request.answer
        needed = (weight_bytes(shape, INT4) + cache_bytes(shape, tokens, users)) / GB
        room = fit(shape, INT4, tokens, generation.card["memory_gb"], 1, users).usable
        text = "even 4-bit weights and the caches take {needed:.2f} GB, and {card} has room for {room:.2f}"
        return Choice(Sentence("more cards, or fewer users at a time"), Sentence(text, needed=needed, card=card, room=room))
    name = nearest_enough(each, wanted)
    text = "by arithmetic on half of {card}'s published figures {name} would give each user about {rate:,.0f} tokens/s"
    choice = chosen(name, Sentence(text, card=card, name=name, rate=each[name]), each, wanted)
    if others := [other for other in each if other != name and each[other] == each[name]]:
        return Choice(choice.take, Sentence("{why}; {others} as many", why=choice.why, others=listed(others)))
    return choice


def nearest_enough(each: Mapping[str, float], wanted: float) -> str:
    """The first of those that give each user what is `wanted`; where none does, the first of those that are about as fast as any."""
    best = max(each.values())
    enough = [name for name, rate in each.items() if rate >= wanted]
    return enough[0] if enough else next(name for name, rate in each.items() if best <= (1 + NEAR) * rate)


def chosen(name: str, found: Sentence, each: Mapping[str, float], wanted: float) -> Choice:
    """The format `name` with its reason, from what was `found` of it."""
    first, rate = next(iter(each.items()))
    values = {"found": found, "wanted": wanted, "near": NEAR, "first": first, "rate": rate}
    original = name in ORIGINALS
    take = Sentence("{name}: do not quantize", name=name) if original else name
    if each[name] < wanted:
        return Choice(take, Sentence("{found}, fewer than the {wanted:g} asked, but no other is more than {near:.0%} faster", **values))
    if original:
        return Choice(take, Sentence("{found}, and {wanted:g} are asked", **values))
    if first == name:
        return Choice(take, Sentence("{found}, and {wanted:g} are asked; nothing nearer to the original is at hand", **values))
    return Choice(take, Sentence("{found}, and {wanted:g} are asked; {first}: {rate:,.1f}", **values))


def every_choice(shapes: Mapping[str, Shape], loads: Loads, users: int, request: Request, wanted: float) -> list[dict[str, Any]]:
    """A row for each model of `shapes`, the first of which is the one that `loads` are of, each GPU, and each of LADDER and `users`."""
    own = next(iter(shapes))
    return [
        {"model": model, "GPU": gpu, "users": count} | asdict(choose(shape, loads if model == own else {}, gpu, count, request, wanted))
        for model, shape in shapes.items()
        for gpu in gpus()
        for count in sorted({*LADDER, users})
    ]
