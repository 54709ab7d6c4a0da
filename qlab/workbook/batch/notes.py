"""What stands in the way of a run on a model, or makes it another than expected; and for each what to do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qlab.artifacts.artifact import fit
from qlab.artifacts.budget import predict
from qlab.formats import awq
from qlab.models.configuration import quantization_of
from qlab.models.loading import load_tokenizer
from qlab.models.opening import OpenedModel
from qlab.models.texts.conversations import has_template
from qlab.peers.recipes import AutoAWQ, AutoGPTQ, BitsAndBytes
from qlab.plan import choose
from qlab.recipes import Recipe, parse
from qlab.recipes.fitting import fitted_size, layers_of, summary, unquantized
from qlab.support.errors import UserError
from qlab.support.wording import first_and_number, joined
from qlab.workbook.language.amounts import bytes_said
from qlab.workbook.language.spoken import gettext, say
from qlab.workbook.lesson import GROUP_SIZE
from qlab.workbook.refused import check_recipe, refusal

LENGTHS = ("calibration_length", "evaluation_length")  # parameters that a model's context bounds
WINDOWS = (128, 512)  # of calibration, as `qlab quantize` takes them


@dataclass(frozen=True)
class Note:
    """What is the matter, and what to do; `stops`: the run would end with an error for it."""

    said: str
    todo: str = ""
    stops: bool = False


def notes_on(source: OpenedModel, values: Mapping[str, Mapping[str, Any]]) -> Iterator[Note]:
    """All that the model's configuration, shapes and tokenizer tell, for lessons with these parameters."""
    if rounded_before(source):
        stored = source.checkpoint.description if source.checkpoint.quantized else quantization_of(source.config).get("quant_method", "")
        text = "Its weights are stored as {stored}: they were rounded before, and every figure is a distance to these weights."
        yield Note(say(text, stored=stored), gettext("For the distance to the original, give the original in FP16 or BF16."))
    yield from of_lengths(source, values)
    yield from of_tokenizer(source)
    yield from of_groups(source)
    yield from of_libraries(source)


def rounded_before(source: OpenedModel) -> bool:
    """Whether the model's weights are stored quantized, as far as is known without them."""
    return source.checkpoint.quantized or (source.on_paper and bool(quantization_of(source.config)))


def of_lengths(source: OpenedModel, values: Mapping[str, Mapping[str, Any]]) -> Iterator[Note]:
    """Windows that are longer than the context that the model was made for."""
    longest = source.longest
    asked = {name for chosen in values.values() for name in LENGTHS if longest and chosen.get(name, 0) > longest}
    if asked:
        text = "It was made for texts of at most {longest:,} tokens, and the lessons would give it longer ones."
        options = " ".join(f"-p {name} {longest}" for name in sorted(asked))
        yield Note(say(text, longest=longest), say("Add to the command: {options}", options=options), stops=True)


def of_tokenizer(source: OpenedModel) -> Iterator[Note]:
    """No tokenizer, or no chat template."""
    try:
        tokenizer = load_tokenizer(source)
    except UserError as error:
        yield Note(str(error), gettext("Put tokenizer.json and tokenizer_config.json of the original beside the weights."), stops=True)
        return
    if not has_template(tokenizer):
        said = gettext("It has no chat template. Lesson 1 has it continue beginnings of texts instead of answering questions.")
        yield Note(said, gettext("Nothing is to be done, unless you want to calibrate with conversations: these need a template."))


def of_groups(source: OpenedModel) -> Iterator[Note]:
    """Rows that groups of the usual size do not divide."""
    layers = layers_of(source.layout)
    size, why = fitted_size(GROUP_SIZE, layers, awq.unfit)
    if why:
        text = "Groups of {asked} weights do not divide all its rows, so every recipe takes groups of {size} ({why})."
        yield Note(say(text, asked=GROUP_SIZE, size=size, why=why), gettext("Nothing is to be done; smaller groups take more bits."))
    kept = unquantized(layers, size, awq.unfit)
    if kept and len(kept) < len(layers):
        text = "Some layers stay in half precision in AWQ's and GPTQ's layouts: {layers}."
        yield Note(say(text, layers=joined("; ", summary(kept))), gettext("NF4 and GGUF take rows of any length."))
    elif kept:
        text = "No layer has rows that groups of 32 weights or more divide ({layers}): only NF4 can be made of this model."
        todo = gettext("Quantize it with --recipe nf4; the lessons need groups.")
        yield Note(say(text, layers=first_and_number(list(kept))), todo, stops=True)


def of_libraries(source: OpenedModel) -> Iterator[Note]:
    """Libraries beside ours that cannot take the model, each with the reason."""
    peers: dict[str, Recipe] = {"AutoAWQ": AutoAWQ(), "AutoGPTQ": AutoGPTQ(), "bitsandbytes": BitsAndBytes()}
    for name, recipe in peers.items():
        if reason := refusal(recipe, lambda recipe: check_recipe(recipe, source)):
            yield Note(
                say("{library} is left out: {reason}.", library=name, reason=reason),
                gettext("Nothing is to be done; qlab's own recipes run."),
            )


def too_small(source: OpenedModel, memory: float, free: float, disk: float, free_disk: float) -> Iterator[Note]:
    """What this machine lacks for lessons that take so much `memory` and `disk`, where so much is free; bytes."""
    if memory > free:
        text = "The lessons hold the whole model. They need {needed} of memory, and {free} are free here."
        yield Note(say(text, needed=bytes_said(memory), free=bytes_said(free)), without_lessons(source), stops=True)
    if disk > free_disk:
        text = "They need {needed} of disk, and {free} are free here."
        todo = gettext("Make room, or put the artifacts on another disk: -p work /path/to/folder")
        yield Note(say(text, needed=bytes_said(disk), free=bytes_said(free_disk)), todo, stops=True)


def too_small_gpu(device: str, memory: float, free: float) -> Note:
    """What a GPU lacks for lessons that take so much of its `memory`, where so much is free; bytes."""
    text = "They need {needed} of the memory of {device}, and {free} are free there."
    todo = gettext("See with nvidia-smi who uses it, or have the lessons compute on the CPU: -p device cpu")
    return Note(say(text, needed=bytes_said(memory), device=device, free=bytes_said(free)), todo, stops=True)


def without_lessons(source: OpenedModel) -> str:
    """What a model too large for the lessons can still be done with: a walk has one block in memory at a time."""
    recipe = parse(choose.AWQ.format(GROUP_SIZE))
    text = gettext("Take a smaller model of the same family.")
    try:
        budget = predict(source, [each.recipe for each in fit(source, [recipe])], WINDOWS)
    except UserError:
        return text
    more = "To quantize this one, 'qlab quantize' has one block in memory at a time and needs {needed}."
    return f"{text} {say(more, needed=bytes_said(budget.total))}"
