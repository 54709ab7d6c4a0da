"""Train the embedded model: a small Llama on the docstrings of the environment's packages (`make embedded-model`).

Corpus, tokenizer, model and order of the text depend only on the pinned environment and the seed. The schedule holds the
learning rate after a warm-up and lowers it linearly over the last part (warm-up, stable, decay), so a run that was
interrupted before the decay may go on with another number of tokens and end as if that had been asked for at first.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qlab.models.texts.builtin import deduplicated, docstrings, fingerprint, python_reference, shuffled

PACKAGES = (
    *("numpy", "scipy", "pandas", "sklearn", "sympy", "networkx", "matplotlib", "seaborn", "torch", "transformers"),
    *("openai", "huggingface_hub", "datasets", "peft", "accelerate", "nltk", "mpmath", "IPython", "narwhals"),
)
END = "<|endoftext|>"
DECAY = 0.35  # share of the steps over which the learning rate falls to zero


def corpus() -> list[str]:
    """The training documents, shuffled; nothing of the evaluation text is in them."""
    return shuffled(deduplicated(docstrings(PACKAGES), without=python_reference()))


def train_tokenizer(documents: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE: every text in every language has tokens, and none is unknown."""
    tokenizer = Tokenizer(models.BPE())
    # Llama 3's pre-tokenizer pattern, which llama.cpp knows as "llama-bpe": digits in groups of at most three.
    pattern = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    from tokenizers import Regex

    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False)


def architecture(vocabulary: int) -> LlamaConfig:
    """11.0 M parameters: sizes are multiples of 256 (K-quants), head size 64 (vLLM), two key-value heads for eight queries."""
    return LlamaConfig(
        vocab_size=vocabulary, hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=1024, rms_norm_eps=1e-5, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip


def orthogonalized(momentum: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, by five Newton-Schulz steps (Jordan et al. 2024, Muon)."""
    x = momentum / (momentum.norm() + 1e-7)
    wide = x if x.shape[0] <= x.shape[1] else x.T
    for _ in range(5):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if x.shape[0] <= x.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalized, for matrices. torch.optim.Muon computes in bfloat16, which is slow on CPUs without AMX."""

    def __init__(self, parameters: list[nn.Parameter], lr: float, weight_decay: float, momentum: float = 0.95) -> None:
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                assert parameter.grad is not None
                velocity = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
                velocity.lerp_(parameter.grad, 1 - group["momentum"])
                update = orthogonalized(parameter.grad.lerp(velocity, group["momentum"]))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * math.sqrt(max(1.0, parameter.shape[0] / parameter.shape[1])))


def learning_rate_factor(step: int, steps: int) -> float:
    """Warm-up over 2 % of the steps, stable, then linear decay to zero."""
    return min(1.0, (step + 1) / max(1, steps // 50), (steps - step) / (DECAY * steps))


def train(model: LlamaForCausalLM, order: Tensor, options: argparse.Namespace, state: Path) -> None:
    """Train in place on the windows `order` [windows, length]; the state goes to disk once a minute, and a rerun goes on from there."""
    batch, steps = options.batch, len(order) // options.batch
    device = model.device
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    others = [p for n, p in model.named_parameters() if p.ndim == 1 or "embed" in n]
    optimizers = [Muon(matrices, 0.02, options.weight_decay), torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)]
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    first = 0
    if state.exists():
        saved = torch.load(state, weights_only=True, map_location=device)
        model.load_state_dict(saved["model"])
        for optimizer, values in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        first = saved["step"]
    started = saved_at = time.monotonic()
    for step in range(first, steps):
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * learning_rate_factor(step, steps)
        inputs = order[step * batch : (step + 1) * batch].to(device).long()
        total = torch.zeros((), device=device)
        for part in inputs.split(options.micro_batch):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.autocast == "bfloat16"):
                loss = model(input_ids=part, labels=part, use_cache=False).loss * (len(part) / batch)
            loss.backward()
            total += loss.detach()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % 25:
            continue
        left = (time.monotonic() - started) / (step + 1 - first) * (steps - step - 1)
        print(f"step {step + 1}/{steps}  loss {total.item():.3f}  {left / 60:.0f} min left", flush=True)
        if time.monotonic() - saved_at > 60:
            saved_at = time.monotonic()
            states = [optimizer.state_dict() for optimizer in optimizers]
            torch.save({"model": model.state_dict(), "optimizers": states, "step": step + 1}, state.with_suffix(".new"))
            state.with_suffix(".new").replace(state)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="folder of the finished model")
    parser.add_argument("--state", type=Path, default=Path("build/embedded"), help="folder of the interrupted state")
    parser.add_argument(
        "--tokens",
        type=int,
        default=8_000_000,
        help="training tokens (a million takes 15 minutes on two cores without AMX, 4 seconds on an H200)",
    )
    parser.add_argument("--window", type=int, default=512, help="tokens a training window")
    parser.add_argument("--batch", type=int, default=16, help="windows a step")
    parser.add_argument("--micro-batch", type=int, default=4, help="windows at a time; four keep the logits in a few tens of MB")
    parser.add_argument("--weight-decay", type=float, default=0.0, help="of the matrices; pays when the corpus is read many times")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--autocast", choices=["float32", "bfloat16"], default="float32", help="bfloat16 pays on AMX and CUDA")
    options = parser.parse_args()

    torch.manual_seed(0)
    options.state.mkdir(parents=True, exist_ok=True)
    prepared = options.state / "tokens.pt"
    if prepared.exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.state)
        tokens = torch.load(prepared, weights_only=True)
    else:
        documents = corpus()
        tokenizer = train_tokenizer(documents[:12000], options.vocabulary)
        ids = tokenizer([END + document for document in documents], add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([token for document in ids for token in document], dtype=torch.int16)
        tokenizer.save_pretrained(options.state)
        torch.save(tokens, prepared)
        print(f"{len(documents)} documents, {sum(map(len, documents))} characters, {len(tokens)} tokens, {fingerprint(''.join(documents))}")

    model = LlamaForCausalLM(architecture(options.vocabulary)).to(options.device)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters")
    needed = options.tokens // (options.window * options.batch) * options.batch * options.window
    epochs = -(-needed // len(tokens))
    order = tokens.repeat(epochs)[:needed].view(-1, options.window)
    train(model, order, options, options.state / "state.pt")
    options.out.mkdir(parents=True, exist_ok=True)
    model.to(torch.float16).save_pretrained(options.out)
    tokenizer.save_pretrained(options.out)
    recipe = {"tokens": needed, "window": options.window, "batch": options.batch, "weight_decay": options.weight_decay}
    recipe |= {"autocast": options.autocast, "device": torch.device(options.device).type}
    (options.out / "training.json").write_text(json.dumps(recipe, indent=1) + "\n")


if __name__ == "__main__":
    main()
