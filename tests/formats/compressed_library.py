"""Run by the python of vLLM's own environment: what the compressed-tensors library makes of checkpoints, as safetensors files.

    .venv-vllm/bin/python tests/formats/compressed_library.py REQUEST

REQUEST: {"checkpoints": {name: folder}, "out": folder}. OUT/NAME.safetensors: each quantized weight of NAME, decompressed; INPUTS, some
made-up activations, and ROUNDED, the same as the library rounds them before a layer, where it does. OUT/answer.json: {"version",
"quantized": {name: layers that the configuration says are}}.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from compressed_tensors.utils.match import is_match
from safetensors.torch import load_file, save_file

TOKENS = 16


def decompressed(folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(quantization)
    stored, found, quantized = load_file(folder / "model.safetensors"), {}, []
    linear = torch.nn.Linear(1, 1)
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in stored if name.endswith(("_proj.weight", "_proj.weight_packed"))):
        groups = [group for group in config.config_groups.values() if is_match(layer, linear, group.targets, config.ignore)]
        if not groups:
            continue
        quantized.append(layer)
        (scheme,) = groups
        state = {name.removeprefix(f"{layer}."): tensor for name, tensor in stored.items() if name.startswith(f"{layer}.weight")}
        compressor = BaseCompressor.get_value_from_registry(scheme.format or config.format)
        weight = compressor.decompress(state, scheme)["weight"]
        found[f"{layer}.weight"] = weight
        if scheme.input_activations and "INPUTS" not in found:
            linear.quantization_status = QuantizationStatus.FROZEN
            if (scale := stored.get(f"{layer}.input_scale")) is not None:  # one that is stored for all tokens
                linear.input_scale, linear.input_zero_point = scale, None
            inputs = torch.randn(1, TOKENS, weight.shape[1], generator=torch.Generator().manual_seed(0))
            inputs[0, :, 3] *= 100
            found |= {"INPUTS": inputs, "ROUNDED": forward_quantize(linear, inputs, "input", scheme.input_activations)}
    return found, quantized


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out, quantized = Path(request["out"]), {}
    for name, folder in request["checkpoints"].items():
        tensors, quantized[name] = decompressed(Path(folder))
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, out / f"{name}.safetensors")
    (out / "answer.json").write_text(json.dumps({"version": version("compressed-tensors"), "quantized": quantized}))


if __name__ == "__main__":
    main()
