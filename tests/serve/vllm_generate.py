"""Run by the python of vLLM's own environment: continue prompts greedily with each of some checkpoints, and write what came out as JSON.

    .venv-vllm/bin/python tests/serve/vllm_generate.py REQUEST ANSWER

REQUEST: {"checkpoints": {name: folder}, "dtypes": {name: dtype}, "prompts": [[token, ...], ...], "tokens": n,
"length": most tokens of prompt and continuation}.
ANSWER: {"version", "device", "checkpoints": {name: {"kernels", "tokens", "logprobs"} or {"error"}}}.
"""

import json
import sys
from pathlib import Path
from typing import Any

import vllm
from vllm.distributed import cleanup_dist_env_and_memory
from vllm.platforms import current_platform


def kernels(model: Any) -> list[str]:
    """What multiplies by the quantized layers' weights."""
    layers = [module for name, module in model.named_modules() if name.endswith("_proj") and hasattr(module, "quant_method")]
    methods = [getattr(layer, "scheme", layer.quant_method) for layer in layers]  # compressed-tensors has one method, and a scheme a layer
    return sorted({type(getattr(method, "kernel", method)).__name__ for method in methods})


def generate(checkpoint: str, dtype: str, asked: dict[str, Any]) -> dict[str, Any]:
    llm = vllm.LLM(
        checkpoint,
        dtype=dtype,
        max_model_len=asked["length"],
        max_num_seqs=len(asked["prompts"]),
        gpu_memory_utilization=0.2,
        enforce_eager=True,  # nothing to compile
        seed=0,
    )
    greedy = vllm.SamplingParams(temperature=0, max_tokens=asked["tokens"], logprobs=1, ignore_eos=True)
    results = llm.generate([{"prompt_token_ids": prompt} for prompt in asked["prompts"]], greedy, use_tqdm=False)
    outputs = [result.outputs[0] for result in results]
    return {
        "kernels": llm.apply_model(kernels)[0],
        "tokens": [list(output.token_ids) for output in outputs],
        "logprobs": [[step[token].logprob for token, step in zip(output.token_ids, output.logprobs)] for output in outputs],
    }


def main(request: str, answer: str) -> None:
    asked = json.loads(Path(request).read_text())
    found: dict[str, Any] = {"version": vllm.__version__, "device": current_platform.device_type, "checkpoints": {}}
    for name, folder in asked["checkpoints"].items():
        try:
            found["checkpoints"][name] = generate(folder, asked["dtypes"][name], asked)
        except Exception as error:  # a refusal is an answer too
            found["checkpoints"][name] = {"error": str(error)}
        cleanup_dist_env_and_memory()
    Path(answer).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
