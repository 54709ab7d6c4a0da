"""Where a model lies: `embedded`, a folder, a GGUF file or a hub id becomes a folder and weight files that are seen to be whole."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from qlab.formats.folder import COMPANIONS as COPIED
from qlab.formats.gguf.reading import gguf_files
from qlab.models.configuration import quantization_of, read_config
from qlab.models.named import NAMES, named_folder
from qlab.support.errors import UserError
from qlab.support.reading import check_regular, path_of, read_json

HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)(?:@([\w.-]+))?")  # with a commit, a branch or a tag, if one is named
COMPANIONS = ("*.json", "*.model", "*.txt", "*.jinja")
HUB_FILES = ("*.safetensors", *COMPANIONS, "README.md")  # no pickles, no Python; the card states the licence
HUB_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")  # of these, what is left out where the shapes of the weights are enough
TEMPLATES = "additional_chat_templates"  # a folder of them, beside the one of every conversation
FUNCTION = (  # what a model computes and is given depends on these, beside its weights
    "config.json", "quantize_config.json", "*.safetensors.index.json", *COPIED,
    "*.model", "*.spm", "*.tiktoken", "tekken.json", f"{TEMPLATES}/*.jinja",
)  # fmt: skip
WHOLE = 256 << 20  # a weight file up to this many bytes is in the fingerprint whole; of a larger one, so many samples
SAMPLES, SAMPLE_BYTES = 1024, 65536


def find_folder(name: str, weights: bool = True) -> tuple[str, Path]:
    """The name to show and the folder, or the GGUF file, that `name` means; a hub id is shown without the revision that it may name, and
    without `weights` only what is small is fetched of it.

    Raises:
        UserError: no such folder or hub id, one whose licence was not accepted, a named model that was not fetched, or no network.
    """
    if (named := named_folder(name)) is not None:
        return name, named
    path = path_of(name) if name else None
    if path and path.is_dir():
        return path.resolve().name, path.resolve()
    if path and path.suffix == ".gguf" and path.is_file():
        return path.stem, path.resolve()
    if match := hub_match(name):
        return match[1], download(match[1], match[2], weights)
    raise UserError(
        f"no model {name!r}: expected {', '.join(map(repr, NAMES))}, a folder with config.json and *.safetensors, a .gguf file, "
        "or a hub id such as Qwen/Qwen2.5-0.5B, which may name a revision (Qwen/Qwen2.5-0.5B@main)"
    )


def lasting(name: str, place: Path) -> str:
    """A word that means what `name` means now, found at `place`, from any folder and whatever the hub publishes later."""
    if named_folder(name) is not None:
        return name
    match = hub_match(name)
    return f"{match[1]}@{place.name}" if match else str(place)  # a snapshot is called by its commit


def hub_match(name: str) -> re.Match[str] | None:
    """A hub id and its revision, where a name can be one; a folder of that name goes first."""
    return None if name.startswith((".", "~")) or path_of(name).exists() else HUB_ID.fullmatch(name)


def is_hub_id(name: str) -> bool:
    """Whether a name can be a hub id, with a revision or without."""
    return hub_match(name) is not None


def download(hub_id: str, revision: str | None = None, weights: bool = True) -> Path:
    """The local snapshot of a hub model: from the cache where it is complete, else fetched, safetensors only; `weights`: these too.

    Raises:
        UserError: there is no such model, its licence was not accepted, or it can be had neither from the hub nor from the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError

    try:
        left = None if weights else list(HUB_WEIGHTS)
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=list(HUB_FILES), ignore_patterns=left))
    except GatedRepoError as error:
        raise UserError(
            f"{hub_id} is given only to who has accepted its licence: open its page on the hub in a browser, accept it there, "
            "then log in with 'hf auth login'"
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"the hub has no model {hub_id!r} that you may read, and there is no such folder; "
            "check the spelling, or log in with 'hf auth login'"
        ) from error
    except Exception as error:  # the client raises many kinds when the network is away; all mean the same here
        raise UserError(
            f"could not fetch {hub_id!r} from the hub ({type(error).__name__}), and it is not in the local cache; "
            "there is no folder of that name either. Without a network, give a folder: --model /path/to/model"
        ) from error


def still_to_fetch(name: str) -> int:
    """Bytes of the files of a hub model, a hub id with a revision or without, that are not in the local cache; 0 without a network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import DryRunError

    hub_id, revision = HUB_ID.fullmatch(name).groups()  # type: ignore[union-attr]
    try:
        files = snapshot_download(hub_id, revision=revision, allow_patterns=list(HUB_FILES), dry_run=True)
    except DryRunError:  # it cannot reach the hub: what is in the cache is all there will be
        return 0
    return sum(file.file_size or 0 for file in files if file.will_download)


def check_folder(folder: Path) -> None:
    """See that whatever is read of a model's folder is a file that ends, before anything of it is read.

    Raises:
        UserError: a folder, a pipe, a device or a broken link has the name of such a file, or it is too large to be one.
        OSError: the folder cannot be read.
    """
    for name in sorted(os.listdir(folder)):
        if any(fnmatch(name, pattern) for pattern in COMPANIONS):
            check_regular(folder / name)
        elif name.endswith((".safetensors", ".gguf")):
            check_regular(folder / name, most=None)
    for file in sorted((folder / TEMPLATES).glob("*.jinja")):
        check_regular(file)


def checked_files(place: Path) -> list[Path]:
    """The weight files of a model folder, or the GGUF file `place` itself, each of them there; safetensors files are seen to be whole.

    Raises:
        UserError: none, pickled ones only, one that is missing, or one that is damaged.
    """
    weights = weight_files(place)
    folder = place if place.is_dir() else place.parent
    if weights and weights[0].suffix == ".gguf":
        return weights
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder.name}/ has no config.json: it is not a Hugging Face model folder")
    if not weights:
        pickled = sorted(file.name for pattern in ("*.bin", "*.pt", "*.pth") for file in folder.glob(pattern))
        hint = f" ({pickled[0]} is a pickle, which can run code: convert it to safetensors first)" if pickled else ""
        raise UserError(f"{folder.name}/ has no weights: expected *.safetensors{hint}")
    if missing := [file.name for file in weights if not file.is_file()]:
        raise UserError(f"{folder.name}/ lacks {len(missing)} of {len(weights)} weight files: {missing[0]} …; download it again")
    for file in weights:
        with opened(file) as tensors:
            tensors.keys()
    return weights


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file, open while its header and its tensors are read.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    shown = f"{file.parent.name}/{file.name}"
    try:
        with safe_open(file, "pt") as found:
            yield found
    except SafetensorError as error:
        raise UserError(f"{shown} is damaged ({str(error)[:160]}); download or copy it again") from error
    except OSError as error:
        raise UserError(f"cannot read {shown} ({str(error)[:160]}); expected a safetensors file that this user may read") from error


def weight_files(place: Path) -> list[Path]:
    """The files that hold the weights of a folder: those that the index names, or model.safetensors, or all safetensors files there are;
    the parts of a GGUF file where there is no safetensors file, or where `place` is such a file.

    Raises:
        UserError: the index cannot be read, or names files outside the folder; several GGUF models, or one that lacks parts.
    """
    if place.is_file():
        return gguf_files(place)
    index, single = place / "model.safetensors.index.json", place / "model.safetensors"
    if index.exists():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
            raise UserError(f"{place.name}/{index.name} has no 'weight_map' from tensors to files; download or copy it again")
        names = sorted(set(places.values()))
        if outside := [name for name in names if Path(name).name != name or not name.endswith(".safetensors")]:
            raise UserError(f"{place.name}/{index.name} names {outside[0]!r}: expected safetensors files that lie beside it")
        return [place / name for name in names]
    if single.exists():
        return [single]
    found = sorted(place.glob("*.safetensors"))
    return found if found or not any(place.glob("*.gguf")) else gguf_files(place)


def kind_of(place: Path) -> str:
    """The format of the model in a folder, or of a GGUF file: gguf, awq, gptq, bitsandbytes, or dense where nothing is quantized."""
    if any(file.suffix == ".gguf" for file in weight_files(place)):
        return "gguf"
    config = read_config(place) if (place / "config.json").exists() else {}
    return str(quantization_of(config).get("quant_method") or "dense")


def fingerprint(folder: Path | None, weights: list[Path]) -> str:
    """A hash of what a model is: configuration, tokenizer, chat templates and generation settings in a folder, if there is one, each with
    its name, and of weights.

    Of files over 256 MiB only samples are read, so that a 70B takes seconds, not minutes.
    """
    digest = hashlib.sha256()
    beside = {file for pattern in FUNCTION for file in folder.glob(pattern) if file.is_file()} if folder else set()
    for file in [*sorted(beside - set(weights)), *weights]:
        size = file.stat().st_size
        digest.update(f"{file.relative_to(folder) if file in beside and folder else file.name}:{size}:".encode())
        with file.open("rb") as stream:
            if size <= WHOLE:
                digest.update(stream.read())
                continue
            for sample in range(SAMPLES):
                stream.seek(max(0, size - SAMPLE_BYTES) * sample // (SAMPLES - 1))
                digest.update(stream.read(SAMPLE_BYTES))
    return digest.hexdigest()[:16]
