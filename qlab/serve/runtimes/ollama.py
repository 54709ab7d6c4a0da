"""Ollama: a GGUF file behind a Modelfile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from qlab.formats.gguf.reading import gguf_files
from qlab.plan.footprint import Footprint
from qlab.serve.cached import with_cache
from qlab.serve.deployment import Deployment
from qlab.serve.rounding import Rounding, eight_bit_inputs
from qlab.serve.runtimes.greedy import Greedy, from_openai
from qlab.serve.runtimes.runtime import Container
from qlab.support.disk.scratch import Scratch
from qlab.support.errors import UserError
from qlab.support.reading import read_json

if TYPE_CHECKING:
    from openai import OpenAI

IMAGE = "ollama/ollama:0.12.6"
COMMENTS = (
    "Before the first question: 'ollama create NAME -f Modelfile' in this container, which reads /model/Modelfile.",
    "Ollama knows no keys: it is published on loopback only. For other machines put a proxy with authentication before it.",
)


@dataclass(frozen=True)
class Ollama:
    """`ollama serve`; the model is registered by `ollama create` with the Modelfile once the server is up."""

    name = "ollama"
    label = "Ollama"
    kinds = ("gguf",)
    caches = ("f16", "q8_0", "q4_0")
    install = "conda install -c conda-forge ollama"
    health = "/api/version"
    unknown_model = 404

    def present(self) -> bool:
        return shutil.which("ollama") is not None

    def command(self, deployment: Deployment) -> list[str]:
        if deployment.key or not deployment.loopback:
            raise UserError("Ollama knows no keys: serve it on 127.0.0.1, and put a proxy with authentication before it")
        return ["ollama", "serve"]

    def rounding(self, deployment: Deployment) -> Rounding:
        """Inputs of linear layers to 8 bits."""
        return with_cache(eight_bit_inputs, deployment.cache)

    def environment(self, deployment: Deployment) -> dict[str, str]:
        where = {"OLLAMA_HOST": f"{deployment.host}:{deployment.port}", "OLLAMA_NUM_PARALLEL": str(deployment.sequences)}
        return where | cache_settings(deployment)

    def check_processor(self, deployment: Deployment) -> None:
        """It runs on any."""

    def finish(self, deployment: Deployment) -> None:
        """Register the model, by a Modelfile that names the file where it lies."""
        with Scratch() as work:
            file = work / "Modelfile"
            file.write_text(modelfile(deployment, str(deployment.gguf.resolve())))
            command = ["ollama", "create", deployment.name, "-f", str(file)]
            done = subprocess.run(command, env=os.environ | self.environment(deployment), capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"'ollama create' failed:\n{done.stderr[-1000:]}")

    def greedy(self, url: str, client: OpenAI, model: str, prompt: Sequence[int], count: int) -> Greedy:
        return from_openai(client, model, prompt, count)

    def on_cpu(self, model: Footprint) -> None:
        """Not measured."""

    def container(self, deployment: Deployment) -> Container:
        environment = {"OLLAMA_HOST": "0.0.0.0:11434", "OLLAMA_MODELS": "/tmp/models", "HOME": "/tmp"} | cache_settings(deployment)
        return Container(IMAGE, ["serve"], 11434, self.health, None, environment, COMMENTS)


def cache_settings(deployment: Deployment) -> dict[str, str]:
    """What Ollama is told of the KV cache: only its flash attention reads another than FP16."""
    return {} if deployment.cache == "f16" else {"OLLAMA_KV_CACHE_TYPE": deployment.cache, "OLLAMA_FLASH_ATTENTION": "1"}


def modelfile(deployment: Deployment, file: str) -> str:
    """The guide's Modelfile over the GGUF `file`: temperature, context, all layers on a GPU if there is one, a French system prompt.

    `file` holds no line break: Deployment sees to that.

    A chat template that is stored in the GGUF file is Ollama's own business: it translates the usual ones; a base model gets the
    template that hands the prompt on as it is.

    Raises:
        UserError: the file is one of several parts.
    """
    if len(gguf_files(deployment.gguf)) > 1:
        raise UserError(f"{deployment.name} is in parts, and a Modelfile names one GGUF file: join them (llama-gguf-split --merge)")
    lines = [f"FROM {file}", "PARAMETER temperature 0.7", f"PARAMETER num_ctx {deployment.context}"]
    lines += [f"PARAMETER num_gpu {min(99, deployment.layers_on_gpu)}"]  # layers on the GPU; the guide's 99 stands for all
    if not has_chat_template(deployment.folder):
        lines.append("TEMPLATE {{ .Prompt }}")
    return "\n".join([*lines, f'SYSTEM """{quoted(deployment.system)}"""']) + "\n"


def quoted(text: str) -> str:
    """A system prompt that cannot end the quotation round it.

    Raises:
        UserError: it holds three quotation marks, for which a Modelfile has no escape, or characters that are not text.
    """
    if '"""' in text or re.search(r"[\x00-\x08\x0b-\x1f\x7f]", text) or text.endswith('"'):
        raise UserError('the system prompt must not hold """, end with a quotation mark, or contain control characters')
    return text


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer beside the weights says how a conversation is written down."""
    file = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").exists() or (file.exists() and bool(read_json(file).get("chat_template")))
