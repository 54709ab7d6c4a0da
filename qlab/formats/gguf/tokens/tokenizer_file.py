"""tokenizer.json as the GGUF writer reads it: its parts are seen to be what the tokenizers library writes, before they are looked at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from qlab.support.errors import UserError
from qlab.support.reading import read_json

Merge = Annotated[str, Field(pattern=r"^(?s:.+ .+)$")] | Annotated[list[str], Field(min_length=2, max_length=2)]


class Part(BaseModel):
    """Something of which the rest is left as it is."""

    model_config = ConfigDict(extra="allow", strict=True)


class Added(Part):
    """A token beside the model's own."""

    id: NonNegativeInt
    content: str
    special: bool


class Step(Part):
    """A step of the normalizer or the pre-tokenizer; a sequence holds several."""

    type: str
    normalizers: list[Step] | None = None
    pretokenizers: list[Step] | None = None
    pattern: dict[str, str] | None = None
    content: str | None = None
    prepend: str | None = None

    @model_validator(mode="after")
    def complete(self) -> Step:
        needed = {"Replace": ("pattern", "content"), "Prepend": ("prepend",), "Split": ("pattern",)}
        if missing := [name for name in needed.get(self.type, ()) if getattr(self, name) is None]:
            raise ValueError(f"{self.type} without {missing[0]}")
        if self.type == "Sequence" and self.normalizers is None and self.pretokenizers is None:
            raise ValueError("a sequence without steps")
        return self


class Model(Part):
    """The model; of other kinds than BPE only the name of the kind is looked at."""

    type: str | None = None
    vocab: Any = None
    merges: Any = None

    @model_validator(mode="after")
    def complete(self) -> Model:
        if self.type == "BPE":
            BPE.model_validate({"vocab": self.vocab, "merges": self.merges})
        return self


class BPE(Part):
    """What a BPE model needs."""

    vocab: dict[str, NonNegativeInt]
    merges: list[Merge]


class Description(Part):
    """A whole tokenizer.json."""

    model: Model
    added_tokens: list[Added] = []
    normalizer: Step | None = None
    pre_tokenizer: Step | None = None
    post_processor: dict[str, Any] | None = None


def read_description(file: Path) -> dict[str, Any]:
    """The object in a tokenizer.json, as it stands there.

    Raises:
        UserError: it cannot be read, or is not as the tokenizers library writes it.
    """
    found = read_json(file)
    try:
        Description.model_validate(found)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:80]
        raise UserError(f"{file.parent.name}/{file.name} is damaged ({where}: {first['msg'][:100]}); copy the original's again") from error
    return found
