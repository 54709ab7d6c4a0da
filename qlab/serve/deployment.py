"""What is to be served, and how: one description, from which every runtime writes its command and its files."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qlab.formats.gguf.reading import PART, gguf_files
from qlab.models.configuration import read_config
from qlab.models.gguf import gguf_sizes
from qlab.models.locating import kind_of
from qlab.plan.plan import CACHES, Shape, check_cache
from qlab.plan.shapes import config_shape
from qlab.support.errors import UserError
from qlab.support.memory import disk_bytes
from qlab.support.reading import check_regular

FRENCH_SYSTEM_PROMPT = "Tu es un assistant technique précis. Réponds en français, de façon concise."
FRENCH_TEST_PROMPT = "Explique en deux phrases ce qu'est la quantification d'un modèle de langage."
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
KEY_FILE = 4096  # bytes of a key's file at most
KEY_VARIABLE = "QLAB_API_KEY"  # where Compose looks for the key


@dataclass(frozen=True)
class Deployment:
    """An artifact or model `folder` (or a GGUF file) as a server: `name` is what clients ask for, `sequences` are answered at a time.

    `gpus` is the tensor parallel size, 0 for none; `gpu_layers` how many layers of a GGUF file lie on them, the rest on the CPU,
    all where it is None. `cache`: what the KV cache is kept in, of qlab.plan.plan.CACHES. The key stays out of every text that this class
    makes of itself.

    Raises:
        UserError: a value that no runtime could take, or a server beyond loopback without a key.
    """

    folder: Path
    name: str
    context: int = 4096
    sequences: int = 4
    host: str = "127.0.0.1"
    port: int = 8000
    gpus: int = 0
    threads: int = 2
    gpu_layers: int | None = None
    cache: str = "f16"
    system: str = FRENCH_SYSTEM_PROMPT
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for path in (self.folder, *([self.gguf] if self.kind == "gguf" else [])):
            if not str(path).isprintable() or path.name != path.name.strip():  # they go into Compose, Kubernetes and Modelfiles
                raise UserError(
                    f"the path {str(path)!r} will not do: expected one without line breaks and control characters, and a name without "
                    "blanks at its ends; rename it"
                )
        if not NAME.fullmatch(self.name):
            raise UserError(f"the name {self.name!r} will not do: expected up to 63 letters, digits, dots, dashes or underscores")
        if not 1 <= self.port <= 65535:
            raise UserError(f"port {self.port}: expected 1 to 65535")
        if self.context < 16 or self.sequences < 1 or self.gpus < 0 or self.threads < 1:
            raise UserError("expected a context of 16 tokens or more, one sequence or more, no negative number of GPUs, one thread or more")
        if self.gpu_layers is not None and not (self.gpus and self.gpu_layers >= 0 and self.kind == "gguf"):
            raise UserError("layers are split between GPU and CPU for GGUF files alone, and where there is a GPU to serve on (--gpus 1)")
        check_cache(self.cache)
        if not self.loopback and not self.key:
            raise UserError(f"{self.host} can be reached from other machines: give a key (--api-key-file), or serve on 127.0.0.1")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            if "%" in self.host:  # a scope, which may hold anything
                raise ValueError
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError as error:
            raise UserError(f"host {self.host!r}: expected an address such as 127.0.0.1 or 0.0.0.0, not a name") from error

    @property
    def url(self) -> str:
        """Where a client on this machine finds it."""
        host = "127.0.0.1" if ipaddress.ip_address(self.host).is_unspecified else self.host
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

    @property
    def layers_on_gpu(self) -> int:
        """llama.cpp's n_gpu_layers: 999 stands for all."""
        return 0 if not self.gpus else 999 if self.gpu_layers is None else self.gpu_layers

    @property
    def kind(self) -> str:
        """The format: gguf, awq, gptq, bitsandbytes, or dense."""
        return kind_of(self.folder)

    @property
    def gguf(self) -> Path:
        """The GGUF file of the folder; of one in parts the first, by whose name llama.cpp finds the others.

        Raises:
            UserError: none, or several.
        """
        files = [self.folder] if self.folder.is_file() else sorted(self.folder.glob("*.gguf"))
        if files and PART.fullmatch(files[0].name):
            files = gguf_files(self.folder)[:1]
        if len(files) != 1:
            raise UserError(f"{self.folder.name}/ holds {len(files)} GGUF files; expected one")
        if not files[0].is_file():  # a folder, a pipe that never ends
            raise UserError(f"{files[0].name} in {self.folder.name}/ is not a regular file; expected a GGUF file")
        return files[0]

    @property
    def config(self) -> dict[str, Any]:
        """The model's configuration, from config.json or from the GGUF file."""
        return gguf_sizes(self.gguf) if self.kind == "gguf" else read_config(self.folder)

    @property
    def shape(self) -> Shape:
        """The sizes that decide its memory."""
        return replace(config_shape(self.config, self.name), cache_bits=CACHES[self.cache])

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(file.stat().st_size for file in gguf_files(self.gguf)) if self.kind == "gguf" else disk_bytes(self.folder)


def read_key(file: Path) -> str:
    """The key in a file that nobody else may read.

    Raises:
        UserError: no such file, none that is regular, one that others can read, or no usable key in it.
    """
    try:
        check_regular(file, KEY_FILE)
        mode, key = file.stat().st_mode, file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the key file {file.name}: {error.__class__.__name__}; expected a text file with the key in it"
        ) from error
    if mode & 0o077:
        raise UserError(f"{file.name} can be read by others; 'chmod 600 {file.name}' first")
    if not re.fullmatch(r"[\x21-\x7e]{16,512}", key):
        raise UserError(f"{file.name} holds no usable key: expected one line of 16 to 512 visible characters ('openssl rand -hex 32')")
    return key
