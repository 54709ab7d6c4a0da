"""A runtime as the rest of qlab sees it: can it serve this, by what command, in what container, and how does it answer?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from qlab.plan.footprint import Footprint, footprint
from qlab.serve.deployment import Deployment
from qlab.serve.rounding import Rounding
from qlab.serve.runtimes.greedy import Greedy
from qlab.support.errors import UserError

if TYPE_CHECKING:
    from openai import OpenAI  # its import takes a second, which commands that ask no server would pay


@dataclass(frozen=True)
class Container:
    """How a runtime runs in a container: `arguments` follow the image's entry point, the model folder is mounted at /model.

    `comments` tell the reader of a file what to know about its flags.
    """

    image: str
    arguments: list[str]
    port: int
    health: str
    key_variable: str | None
    environment: dict[str, str] = field(default_factory=dict)
    comments: tuple[str, ...] = ()


class Runtime(Protocol):
    """A server program with an OpenAI-compatible interface.

    `name` as users type it, `label` as its makers write it; `kinds` are the formats that it serves; `caches` what it can keep the KV cache
    in, by the names of qlab.plan.plan.CACHES; `install` is the command that
    brings it; `health` the path that answers 200 once the model is loaded; `unknown_model` the HTTP status of a model name that it
    does not serve.
    """

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def kinds(self) -> tuple[str, ...]: ...
    @property
    def caches(self) -> tuple[str, ...]: ...
    @property
    def install(self) -> str: ...
    @property
    def health(self) -> str: ...
    @property
    def unknown_model(self) -> int: ...

    def present(self) -> bool:
        """Whether this machine has it."""

    def command(self, deployment: Deployment) -> list[str]:
        """The program and its arguments, one word each; no shell reads them. The key is never among them."""

    def rounding(self, deployment: Deployment) -> Rounding:
        """How it rounds activations, done to the model in PyTorch."""

    def environment(self, deployment: Deployment) -> dict[str, str]:
        """What it reads from its environment: the key, and that nothing is reported to anybody."""

    def check_processor(self, deployment: Deployment) -> None:
        """Raise the UserError of a format that it has no kernels for on this machine's processor."""

    def finish(self, deployment: Deployment) -> None:
        """What is left to do once the server is up."""

    def greedy(self, url: str, client: OpenAI, model: str, prompt: Sequence[int], count: int) -> Greedy:
        """`count` likeliest tokens after `prompt`, from the server at `url`, which `client` asks too."""

    def on_cpu(self, model: Footprint) -> Footprint | None:
        """What its server holds on a CPU of a model that takes so much by itself; None where nobody measured it."""

    def container(self, deployment: Deployment) -> Container:
        """The same in its published image."""


def check(runtime: Runtime, kind: str, name: str, cache: str = "f16") -> None:
    """Raise the UserError of a format `kind`, that of the artifact `name`, which the runtime does not serve, or of a KV cache in what it
    does not keep one."""
    if kind not in runtime.kinds:
        raise UserError(
            f"{runtime.label} serves {', '.join(runtime.kinds)}; {name} is {kind}. "
            f"Make one that it serves ('qlab quantize'), or choose another runtime"
        )
    if cache not in runtime.caches:
        raise UserError(f"{runtime.label} keeps its KV cache in {', '.join(runtime.caches)}, not in {cache}: choose one of these (--cache)")


def expected_memory(runtime: Runtime, deployment: Deployment) -> Footprint | None:
    """What a server on this machine's CPU will hold; None on GPUs, of which it takes the share that it is given, or where unknown."""
    return (
        None
        if deployment.gpus
        else runtime.on_cpu(footprint(deployment.folder, deployment.context * deployment.sequences, cache_in=deployment.cache))
    )


def require(runtime: Runtime) -> None:
    """Raise the UserError of a runtime that this machine lacks."""
    if not runtime.present():
        raise UserError(f"{runtime.label} is not on this machine; to install it: {runtime.install}")
