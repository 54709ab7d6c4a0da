"""The card of an artifact: README.md in its folder, which says what it was made from and how, its figures, and how it is served.

The same inputs make the same card: no time, no path and no name of the machine stands in it. Names and remarks are text in it, whatever
they hold.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from qlab.artifacts.licence import CARD, licence_of
from qlab.artifacts.manifest import MANIFEST, Manifest, read_note
from qlab.models.locating import kind_of
from qlab.models.opening import OpenedModel
from qlab.support.disk.whole import write_whole
from qlab.support.memory import disk_bytes
from qlab.support.wording import listed

MARK = "<!-- qlab wrote this card, and writes it anew with new figures. Without this line it leaves the file alone. -->"
LONGEST = 400  # characters of a name or a remark
SYNTAX = re.compile(r"([\\`*_\[\]<>#|~&$])")  # what Markdown, or HTML in it, could take for more than text within a line
NOT_MEASURED = "Not measured yet: `qlab evaluate . --reference ORIGINAL` prints perplexity and the distance to the original."


class Original(NamedTuple):
    """What an artifact was made from: a model's name and fingerprint, its licence or "" where that is not stated, and the fingerprint of
    the adapter that was merged into it, if there was one."""

    name: str
    fingerprint: str
    licence: str
    adapter: str = ""


class Figures(NamedTuple):
    """Measured figures: rows of name, value and standard error, as they are shown, and in a sentence how they were measured."""

    rows: Sequence[tuple[str, str, str]]
    how: str


def original_of(source: OpenedModel) -> Original:
    """A model as the cards of its artifacts name it."""
    return Original(source.name, source.fingerprint, licence_of(source))


def card(folder: Path, name: str, manifest: Mapping[str, Any], original: Original, figures: Figures | None = None) -> str:
    """The card of the artifact `name`, whose files lie in `folder`, in Markdown."""
    front: dict[str, Any] = {"base_model": on_one_line(original.name)} | ({"license": original.licence} if original.licence else {})
    heading = f"{text(original.name)} as {text(name)}"
    parts = [
        f"---\n{yaml.safe_dump(front, allow_unicode=True, sort_keys=True)}---", MARK, f"# {heading}",
        f"Quantized by qlab {text(manifest['inputs']['versions'].get('qlab', ''))}, a research workbook on quantization.",
        table(("", ""), facts(folder, manifest, original)),
    ]  # fmt: skip
    if notes := manifest.get("notes"):
        parts += ["## Remarks", "\n".join(f"- {text(subject)}: {text(note)}" for subject, note in sorted(notes.items()))]
    parts += ["## Figures", *measured(figures), "## Serving", *serving(kind_of(folder))]
    return "\n\n".join(parts) + "\n"


def write_card(folder: Path, name: str, manifest: Mapping[str, Any], original: Original) -> None:
    """Write the card of a new artifact, whose other files are in `folder`.

    Raises:
        OSError: it cannot be written.
    """
    (folder / CARD).write_text(card(folder, name, manifest, original), encoding="utf-8")


def renew_card(folder: Path, original: Original, figures: Figures) -> bool:
    """Write the card of the artifact in `folder` anew, with figures. False where it is not qlab's, or not any more: then it stays.

    Raises:
        UserError: the artifact's manifest is damaged.
        OSError: it cannot be written.
    """
    manifest = read_note(folder / MANIFEST, Manifest).model_dump()
    there = folder / CARD
    if CARD not in manifest["files"] or there.is_symlink() or not there.is_file() or edited(there):
        return False
    write_whole(there, card(folder, folder.name, manifest, original, figures))
    return True


def edited(card: Path) -> bool:
    """Whether a card has become its user's own: without MARK, as the card itself says."""
    return MARK not in card.read_text(encoding="utf-8", errors="replace")


def facts(folder: Path, manifest: Mapping[str, Any], original: Original) -> list[tuple[str, str]]:
    """What it was made from and how."""
    inputs, errors = manifest["inputs"], manifest.get("errors") or {}
    options = ", ".join(f"{name} {value}" for name, value in inputs["recipe"].items() if name != "recipe")
    licence = f"{text(original.licence)}, as its card or header states" if original.licence else "not stated"
    rows = [("original", f"{text(original.name)} (fingerprint {text(original.fingerprint)})"), ("licence of the original", licence)]
    if original.adapter:
        rows.append(("adapter merged into it", f"LoRA, fingerprint {text(original.adapter)}"))
    rows += [
        ("recipe", f"{text(inputs['recipe'].get('recipe', ''))}: {text(options)}"),
        ("format", text(kind_of(folder))),
        ("calibration", text(calibration(manifest))),
        ("weights on disk", f"{disk_bytes(folder) / 1e6:,.1f} MB"),
    ]
    if errors:
        worst = max(errors, key=lambda layer: errors[layer])
        rows.append(("largest error of a layer", f"{errors[worst]:.2%} of the square of {what_errors_are_of(manifest)}, {text(worst)}"))
    versions = ", ".join(f"{name} {version}" for name, version in inputs["versions"].items() if version != "absent")
    return [*rows, ("computed on", text(inputs["device"])), ("versions", text(versions))]


def what_errors_are_of(manifest: Mapping[str, Any]) -> str:
    """What a manifest's errors are relative to: without calibration text nothing but the weights is known."""
    return "its output on the calibration text" if windows_used(manifest) else "its weights"


def windows_used(manifest: Mapping[str, Any]) -> list[int] | None:
    """How many windows of calibration text the recipe used, and of how many tokens; None where it needs none."""
    return manifest["inputs"]["calibration"].get("windows") if manifest.get("data", True) else None


def calibration(manifest: Mapping[str, Any]) -> str:
    """What was read for it, in words."""
    windows = windows_used(manifest)
    read = ", ".join(f"{one['name']} ({one['windows']})" for one in manifest.get("calibration") or [])
    if not windows:
        return "none"
    return f"{windows[0]} windows of {windows[1]} tokens" + (f" from {read}" if read else "")


def measured(figures: Figures | None) -> list[str]:
    """The figures as a table, and how they were measured."""
    if figures is None:
        return [NOT_MEASURED]
    rows = [(text(name), text(value), text(error)) for name, value, error in figures.rows]
    return [table(("figure", "value", "standard error"), rows), text(figures.how)]


def serving(kind: str) -> list[str]:
    """How the format is served."""
    from qlab.serve.runtimes.registry import RUNTIMES  # here: the client by which runtimes are asked takes long to import

    labels = [runtime.label for runtime in RUNTIMES.values() if kind in runtime.kinds]
    if not labels:
        return ["No runtime that qlab knows serves this format; transformers loads it."]
    return [
        f"{listed(labels)} {'serve' if len(labels) > 1 else 'serves'} this format. In this folder:",
        "```sh\nqlab serve .                  # checks first that the server's answers are this model's\n"
        "qlab serve . --write deploy   # only writes the files with which others serve it\n```",
    ]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, of cells that are Markdown already."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))


def text(value: object) -> str:
    """Something as text in Markdown, on one line."""
    return SYNTAX.sub(r"\\\1", on_one_line(str(value)))


def on_one_line(value: str) -> str:
    """A text without characters that steer a terminal or a reader, on one line, cut where it is long."""
    line = " ".join("".join(character if character.isprintable() else " " for character in value).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} …"
