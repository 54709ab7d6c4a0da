"""Proof that a server serves the model that was measured: before it, nothing is called deployed.

Its greedy tokens and their log-probabilities are held against the same artifact run in this process, where its weights are
dequantized. Two runtimes round differently, so texts may part at a near tie; a wrong model is told by how far its
log-probabilities are off, token by token, on the very tokens that it chose. What is allowed is a little more than what the runtime's own
rounding does to this model, which is measured on the same tokens (qlab.serve.rounding).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from http.client import HTTPException
from typing import Any

import httpx2
import torch
from openai import APIError, APIStatusError, OpenAI
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from qlab.models.loading import load, load_tokenizer
from qlab.models.opening import locate
from qlab.models.texts.tokens import beginning
from qlab.serve.deployment import FRENCH_TEST_PROMPT, Deployment
from qlab.serve.rounding import Rounding
from qlab.serve.runtimes.runtime import Runtime
from qlab.serve.server import Server
from qlab.support.errors import UserError
from qlab.support.wording import Sentence

PROMPTS = (
    "The value of", "Return a list of the", "In the first", "If the file is",
    "A function that takes", "This is the same as", "He was born in", "For more information, see",
)  # fmt: skip
BROKEN = (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)  # what comes of an answer of another form
# A served model may be off by so many times what its runtime's rounding does, in the mean and at the largest, and by LEAST nats.
# Lesson 6 prints what is measured and what is allowed: on SmolLM2 llama.cpp is off by 1.04 times in the mean and 1.8 at the largest, and
# Q8_0 taken for Q4_K_M by 1.8 times in the mean.
MEAN_TIMES, LARGEST_TIMES, LEAST = 1.4, 3.0, 0.001
WRONG_KEY = "not-the-key-of-this-server"


@dataclass(frozen=True)
class Answer:
    """What came back, of how many tokens, and how soon."""

    text: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Agreement:
    """A runtime's greedy tokens against the reference's.

    `identical`: share equal where each goes its own way. `in_context`: share that the reference chooses too after the same tokens.
    `margin`: the most by which the reference prefers its own choice to the runtime's after the same tokens, in nats; a near tie is
    near 0. `error`: mean difference of the two log-probabilities of the runtime's tokens, in nats, over those that it tells.
    `rounding` and `largest_rounding`: the mean and the largest difference that the runtime's rounding makes to the reference's own.
    """

    identical: float
    in_context: float
    margin: float
    error: float
    rounding: float
    largest_rounding: float

    @property
    def allowed_error(self) -> float:
        """The largest `error` that the runtime's own rounding explains."""
        return MEAN_TIMES * self.rounding + LEAST

    @property
    def allowed_margin(self) -> float:
        """The largest `margin` that it explains."""
        return LARGEST_TIMES * self.largest_rounding + LEAST

    @property
    def holds(self) -> bool:
        """Whether the runtime's own rounding explains what differs."""
        return self.margin <= self.allowed_margin and self.error <= self.allowed_error


@dataclass(frozen=True)
class Check:
    """One thing that was tried, whether it came out as it must, and what came out."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Proof:
    """All checks of a server, and how far its answers agree with the artifact run in this process."""

    runtime: str
    agreement: Agreement
    checks: list[Check]

    @property
    def holds(self) -> bool:
        return all(check.passed for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"holds": self.holds}


def compare(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], logprobs: Sequence[Sequence[float | None]],
    rounding: Rounding,
) -> Agreement:  # fmt: skip
    """Hold a runtime's greedy continuations of `prompts`, token ids and the log-probabilities that it tells, against `model`; the runtime
    rounds as `rounding` does."""
    equal, same, margins, errors, moved = [], [], [], [], []
    for prompt, chosen_ids, reported in zip(prompts, tokens, logprobs):
        chosen = torch.tensor(chosen_ids)
        own = greedy(model, prompt, len(chosen_ids))
        equal.append(own == chosen)
        expected = log_probabilities(model, prompt, chosen_ids)
        with rounding(model):
            rounded = log_probabilities(model, prompt, chosen_ids)
        of_chosen = expected.gather(1, chosen[:, None])[:, 0]
        moved.append((rounded.gather(1, chosen[:, None])[:, 0] - of_chosen).abs())
        same.append(expected.argmax(1) == chosen)
        margins.append(expected.amax(1) - of_chosen)
        told = torch.tensor([float("nan") if value is None else value for value in reported])
        errors.append((of_chosen - told).abs()[~told.isnan()])
    means = [float(torch.cat(found).float().mean()) for found in (equal, same, errors, moved)]
    return Agreement(means[0], means[1], float(torch.cat(margins).max()), means[2], means[3], float(torch.cat(moved).max()))


@torch.inference_mode()
def log_probabilities(model: PreTrainedModel, prompt: Sequence[int], chosen: Sequence[int]) -> torch.Tensor:
    """Of every token, at each position of `chosen`: float32 [len(chosen), vocabulary]."""
    inputs = torch.tensor([[*prompt, *chosen]], device=model.device)
    return model(inputs).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1).cpu()


def greedy(model: PreTrainedModel, prompt: Sequence[int], count: int) -> torch.Tensor:
    """`count` tokens as transformers generates them, without stopping at an end of text: int64 [count]."""
    model.generation_config.eos_token_id = None
    ids = torch.tensor([list(prompt)], device=model.device)
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0)  # type: ignore[operator]
    return out[0, ids.shape[1] :].cpu()


def client_of(server: Server) -> OpenAI:
    """OpenAI's own client, as a program would ask; without its retries, since an answer that was lost must be seen."""
    return OpenAI(base_url=f"{server.url}/v1", api_key=server.key or "none", max_retries=0, timeout=300)


def ask(server: Server, prompt: str, tokens: int) -> Answer:
    """One completion; always the likeliest token."""
    started = time.perf_counter()
    answer = client_of(server).completions.create(model=server.model, prompt=prompt, max_tokens=tokens, temperature=0)
    seconds = time.perf_counter() - started
    return Answer(answer.choices[0].text, answer.usage.completion_tokens if answer.usage else 0, seconds)


def prove(runtime: Runtime, deployment: Deployment, server: Server, tokens: int = 32, device: str = "cpu") -> Proof:
    """Ask the server what its users will ask, and what they will get wrong; `tokens` greedy tokens of each of PROMPTS are compared.

    Raises:
        UserError: the server is gone, or what it answers has no form that is known.
    """
    source = locate(str(deployment.folder))
    model, tokenizer = load(source, device=device), load_tokenizer(source)
    client = client_of(server)
    agreement = agreement_with(runtime, model, tokenizer, client, deployment, tokens)
    with answering(runtime):
        listed = [str(found.id) for found in client.models.list().data]
        checks = [
            Check("the model is listed", deployment.name in listed, ", ".join(listed)),
            Check("greedy tokens are the artifact's", agreement.holds, in_words(agreement)),
            *conversations(client, deployment, bool(tokenizer.chat_template)),
            *refusals(client, server, deployment, runtime),
        ]
    return Proof(runtime.label, agreement, checks)


@contextmanager
def answering(runtime: Runtime) -> Iterator[None]:
    """Within the context a server is asked, and nothing else is done: whatever fails is an answer that is none.

    Raises:
        UserError: it failed.
    """
    try:
        yield
    except (APIError, httpx2.HTTPError, HTTPException, *BROKEN) as error:
        said = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{runtime.label}'s server does not answer as it must: not proved ({type(error).__name__}: {said}); see its log (--log)"
        ) from error


def agreement_with(
    runtime: Runtime, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, client: OpenAI, deployment: Deployment, tokens: int
) -> Agreement:
    """Ask for greedy continuations of PROMPTS, as token ids, and compare.

    Each begins with BOS where the tokenizer begins a text so, as in calibration and evaluation.
    """
    start, rows = beginning(tokenizer), model.config.get_text_config().vocab_size
    prompts = [start + tokenizer.encode(prompt, add_special_tokens=False) for prompt in PROMPTS]
    with answering(runtime):
        found = [
            runtime.greedy(deployment.url, client, deployment.name, prompt, min(tokens, deployment.context - len(prompt)))
            for prompt in prompts
        ]
        if (largest := max(max(answer.ids) for answer in found)) >= rows:
            raise ValueError(f"token {largest} of a model that has {rows}")
    rounding = runtime.rounding(deployment)
    return compare(model, prompts, [answer.ids for answer in found], [answer.logprobs for answer in found], rounding)


def in_words(agreement: Agreement) -> Sentence:
    text = (
        "{identical:.0%} identical, {in_context:.0%} after the same tokens; largest margin {margin:.4f} (at most {most:.4f}), "
        "log-probabilities off by {error:.4f} nats (at most {allowed:.4f})"
    )
    return Sentence(text, **asdict(agreement), most=agreement.allowed_margin, allowed=agreement.allowed_error)


def conversations(client: OpenAI, deployment: Deployment, template: bool) -> list[Check]:
    """Completion, chat and streaming, with the guide's French prompt; streamed or not, the text must be the same."""
    checks = []
    whole = client.completions.create(model=deployment.name, prompt=FRENCH_TEST_PROMPT, max_tokens=24, temperature=0)
    used = whole.usage.completion_tokens if whole.usage else 0
    checks.append(Check("completion of the French prompt", used > 0, repr(whole.choices[0].text)))
    messages: Any = [{"role": "system", "content": deployment.system}, {"role": "user", "content": FRENCH_TEST_PROMPT}]
    asked: dict[str, Any] = {"model": deployment.name, "messages": messages, "max_tokens": 24, "temperature": 0}
    asked["extra_body"] = {"cache_prompt": False}  # llama.cpp rounds otherwise where it has read the prompt before: a near tie turns
    try:
        chat = client.chat.completions.create(**asked)
    except APIStatusError as error:
        refused = not template and error.status_code == 400
        why = Sentence("refused ({status}): this model has no chat template", status=error.status_code) if refused else str(error)
        checks.append(Check("chat", refused, why))
        return checks
    streamed = "".join(part.choices[0].delta.content or "" for part in client.chat.completions.create(**asked, stream=True) if part.choices)
    text = chat.choices[0].message.content or ""
    checks.append(Check("chat", bool(chat.usage and chat.usage.completion_tokens), repr(text)))
    checks.append(Check("streamed chat says the same", streamed == text, repr(streamed)))
    return checks


def refusals(client: OpenAI, server: Server, deployment: Deployment, runtime: Runtime) -> list[Check]:
    """Errors that users will cause get the status that tells them so."""
    long = [5] * (deployment.context + 8)
    checks = [
        _status("a prompt beyond the context", 400, client, model=deployment.name, prompt=long, max_tokens=1),
        _status("a body of wrong types", 400, client, model=deployment.name, prompt="a", max_tokens="many"),
        _status("a model that is not served", runtime.unknown_model, client, model="no-such-model", prompt="a", max_tokens=1),
    ]
    if server.key:
        stranger = OpenAI(base_url=f"{server.url}/v1", api_key=WRONG_KEY, max_retries=0, timeout=60)
        checks.append(_status("a wrong key", 401, stranger, model=deployment.name, prompt="a", max_tokens=1))
    return checks


def _status(what: str, expected: int, client: OpenAI, **body: Any) -> Check:
    try:
        client.completions.create(**body)
        status = 200
    except APIStatusError as error:
        status = error.status_code
    except APIError as error:
        return Check(what, False, Sentence("no answer: {error}", error=str(error)))
    if status == expected:
        return Check(what, True, f"HTTP {status}")
    return Check(what, False, Sentence("HTTP {status}, expected {expected}", status=status, expected=expected))
