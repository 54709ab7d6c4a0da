"""The jobs of a sweep: commands of qlab with what they need, what they will take, and the key under which their result is kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from qlab.artifacts.artifact import LIBRARIES, model_folder
from qlab.models.locating import lasting
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.mixture import absolute, check_texts, files_of
from qlab.support.versions import version_of
from qlab.sweep.plan import Sweep

ARTIFACTS = "artifacts"  # in the folder of a sweep: of each model by its name and fingerprint
JOBS, LESSONS, LOGS = "jobs", "lessons", "logs"  # there too: results of jobs, reports of lessons, what jobs print
FORM = 2  # of results: one more wherever they say more than before
PROCESS = 0.6e9  # bytes of a process that has loaded PyTorch and transformers
WEIGHTS_A_SECOND = 4e10  # that one thread multiplies, for the prediction alone


@dataclass(frozen=True)
class Job:
    """A command of qlab, `words`, for `model`, and for `recipe` where it is of one artifact alone; of a lesson, its name.

    `key`: of all that its result depends on. `needs`: keys of jobs that must be done before. `memory`: bytes predicted at the peak;
    `seconds` predicted, of one thread. `place`: the model or artifact that is measured; of a lesson, its page. `alone`: it is timed, so no
    other job may work beside it.
    """

    kind: str
    model: str
    recipe: str
    words: tuple[str, ...]
    key: str
    needs: tuple[str, ...] = ()
    memory: float = 0.0
    seconds: float = 0.0
    place: str = ""
    alone: bool = False

    @property
    def name(self) -> str:
        """For people: quantize embedded, evaluate embedded nf4."""
        return " ".join(part for part in (self.kind, self.model, self.recipe) if part)


class Subject(NamedTuple):
    """A model of a sweep: `word` is how a command takes it, this very one, from any folder (qlab.models.locating.lasting)."""

    word: str
    source: OpenedModel


@dataclass(frozen=True)
class Format:
    """A model as it came, or an artifact of it: what jobs measure.

    `recipe` is ORIGINAL, or the name of what the model can take of a recipe. `kind`: its format, such as gguf. `word`: how a command takes
    it. `inputs`: of all that its bytes depend on. `needs`: keys of the jobs that make it.
    """

    model: str
    source: OpenedModel
    recipe: str
    kind: str
    word: str
    place: str
    inputs: tuple[str, ...]
    needs: tuple[str, ...] = ()


def opened(sweep: Sweep) -> dict[str, Subject]:
    """The models of a sweep, by the names that they have in folders and tables; one that is named twice, or lies in two places, once.

    Raises:
        UserError: a model that cannot be used.
    """
    found = dict[str, Subject]()
    for name in sweep.models:
        source = locate(name)
        found.setdefault(source.fingerprint, Subject(lasting(name, source.path), source))
    return {model_folder(subject.source): subject for subject in found.values()}


def key_of(words: Sequence[str], inputs: Sequence[str]) -> str:
    """The key of a command: of its words without the places that it reads and writes, of these inputs, and of the versions of qlab and the
    libraries that compute."""
    places = ("--out", "--model", "--reference", "--text", "--calibration", "--prompts", "evaluate", "bench", "serve")
    said = [word for before, word in zip(("", *words), words) if before not in places]
    return hashlib.sha256(json.dumps([FORM, versions(), said, list(inputs)]).encode()).hexdigest()[:16]


@cache
def versions() -> dict[str, str]:
    """Of qlab and of every library that results depend on, by name."""
    return {name: version_of(name) for name in LIBRARIES}


def said_of(names: Sequence[str]) -> list[str]:
    """What results depend on of texts: their names as they stand in the file, and a hash of what the files among them hold.

    Raises:
        UserError: a text that cannot be read.
    """
    check_texts(names)
    digest = hashlib.sha256()
    for file in sorted({file for text in names for file in files_of(text)}):
        content = file.read_bytes()
        digest.update(f"{len(content)}:".encode() + content)
    return [*names, digest.hexdigest()]


def texts(option: str, named: Sequence[str]) -> list[str]:
    """The option for each text; files by their whole paths."""
    return [word for text in named for word in (option, absolute(text))]
