"""The licence that a model's own card states, or the header of its GGUF file. Nothing is guessed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from qlab.formats.gguf.reading import GGUFFiles
from qlab.models.opening import OpenedModel
from qlab.support.errors import UserError
from qlab.support.reading import check_regular

CARD = "README.md"
LARGEST = 8 << 20  # bytes of a card
LONGEST = 100  # characters of a licence's name


def licence_of(source: OpenedModel) -> str:
    """The licence's name as the model's card or GGUF header has it, such as apache-2.0; empty where neither states one."""
    header: Any = GGUFFiles(source.gguf).settings.get("general.license") if source.gguf else None
    if source.gguf and not source.path.is_dir():  # a card beside a single file may be another model's
        return name_in({"license": header})
    return name_in({"license": header}) or name_in(front_matter(source.path / CARD))


def front_matter(card: Path) -> dict[str, Any]:
    """The YAML at the beginning of a card, as the hub's cards have it; empty where there is none that can be read."""
    try:
        check_regular(card, LARGEST)
        first, _, rest = card.read_text(encoding="utf-8").partition("\n")
        block, end, _ = rest.partition("\n---")
        found = yaml.safe_load(block) if first.strip() == "---" and end else None
    except (UserError, OSError, ValueError, LookupError, AttributeError, TypeError, yaml.YAMLError, RecursionError):
        # the last but two of PyYAML's own, of values that are not what their tag says: !!bool maybe
        return {}
    return found if isinstance(found, dict) else {}


def name_in(stated: dict[str, Any]) -> str:
    """The name of the licence in the words of a card; of one that is "other", the name that the card gives it."""
    name = stated.get("license")
    if name == "other" and isinstance(stated.get("license_name"), str):
        name = stated["license_name"]
    return " ".join(name.split())[:LONGEST] if isinstance(name, str) else ""
