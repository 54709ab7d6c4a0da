"""Every claim that this release decides, by its id, and the rule that decides it."""

from __future__ import annotations

from qlab.claims.benchmarks import (
    CPU,
    GPU,
    alike,
    in_ram,
    nf4_on_cpu,
    own_table,
    prompts_of_the_guide,
    ranking,
    small_models_lose,
    speed_of,
)
from qlab.claims.each import (
    awq_memory,
    bits_of_q4_k_m,
    channel_aware,
    folding,
    footprint,
    hessian,
    keeps_output,
    layerwise_obq,
    many_texts,
    matrix_alone,
    normal_float,
    on_the_fly,
    qlora,
    quantize_again,
    scale_search,
    small_calibration,
    top_percent,
    two_bytes,
    uneven_channels,
)
from qlab.claims.rules import (
    ABOUT_RULE,
    Test,
    below,
    documented,
    faster,
    fits,
    loss_within,
    lower,
    memory_of_70b,
    settings,
    speed_of_70b,
)
from qlab.support.wording import Sentence

TESTS: dict[str, Test] = {
    "fp16-two-bytes": Test("the checkpoint's bytes over the model's parameters, within 1 %", two_bytes),
    "fewer-bits-keep-output": Test(
        "read as: half the bits (INT8) keep the likeliest token in at least 95 % of cases; noise within twice the error", keeps_output
    ),
    "memory-70b-fp32": memory_of_70b(["FP32"], 280),
    "memory-70b-fp16": memory_of_70b(["FP16"], 140),
    "memory-70b-int8": memory_of_70b(["INT8"], 70),
    "memory-70b-int4": memory_of_70b(["AWQ/GPTQ INT4 g128"], 35),
    "bits-70b-q4-k-m": Test(ABOUT_RULE, bits_of_q4_k_m),
    "memory-70b-q4-k-m": memory_of_70b(["GGUF Q4_K_M"], 38),
    "memory-70b-int3-int2": memory_of_70b(["INT2 g128", "INT3 g128"], 18, 26),
    "loss-fp16": loss_within(["fp16", "bf16"], -0.1, 0.1),
    "loss-int8": loss_within(["rtn-int8"], -1, 1),
    "loss-int3-int2": loss_within(["rtn-int3", "rtn-int2"], 5, 15),
    "two-a100-hold-70b-fp16": fits("A100 80GB SXM", 2, "FP16", 4096),
    "four-4090-hold-70b-fp16": fits("RTX 4090", 4, "FP16", 4096),
    "vllm-context-16384": fits("RTX 4090", 2, "AWQ/GPTQ INT4 g128", 16384),
    "footprint-divided-2-to-4": Test(ABOUT_RULE, footprint),
    "loss-int4-awq": loss_within(["autoawq-w4g128"], 1, 3),
    "awq-few-channels-matter": Test("read as: at least half of the layers have a channel ten times their median channel", uneven_channels),
    "awq-top-1-percent": Test(
        "read as: keeping them removes more than 1 % of the error, and more than twice what random channels do", top_percent
    ),
    "awq-scale-search": Test("read as: more than 1 % of the error, in the mean over layers", scale_search),
    "awq-autoawq-recipe": settings("autoawq-w4g128", {"bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}),
    "awq-70b-memory": Test(f"{ABOUT_RULE}; a checkpoint is loaded in 16 bits", awq_memory),
    "loss-int4-gptq": loss_within(["autogptq-w4g128"], 1, 3),
    "gptq-error-compensation": below(
        "gptq/layer-errors", "GPTQ", "no compensation", Sentence("at 4 bits, asymmetric grids, columns as they stand")
    ),
    "gptq-inverse-hessian": Test("read as: less error at damping 0.01 than at 100 (next to no Hessian), in each layer looked at", hessian),
    "gptq-autogptq-recipe": settings("autogptq-w4g128", {"bits": 4, "group_size": 128, "damp_percent": 0.01}),
    "gptq-act-order-better": lower("autogptq-w4g128-asym-actorder", "autogptq-w4g128-asym"),
    "gptq-asymmetric-better": lower("autogptq-w4g128-asym", "autogptq-w4g128"),
    "loss-q4-k-m": loss_within(["llama.cpp's q4_k_m"], 1, 2),
    "approach-gguf": below(
        "gguf/layer-errors",
        "Q4_K: 8 scales a superblock",
        "control: one scale a superblock",
        Sentence("grids searched for the least error of the weights"),
    ),
    "approach-nf4": Test(
        "read as: bitsandbytes' weights are those of levels at a normal distribution's quantiles, to a millionth, and these levels have "
        "over 1 % less error than uniform ones",
        normal_float,
    ),
    "time-nf4": Test("by transformers' documentation of load_in_4bit; this run loaded the model in that way", on_the_fly),
    "vllm-supports-gguf": documented(
        False, "in vLLM's core until 0.23, since 0.24 as vllm-gguf-plugin (experimental), by its documentation"
    ),
    "vllm-supports-nf4": documented(False, "in vLLM's core until 0.27, since 0.28 as vllm-bnb-plugin, by its documentation"),
    "tgi-supports-gguf": documented(False, "TGI has a llama.cpp backend, by its documentation"),
    "tgi-supports-nf4": documented(False, "TGI quantizes with bitsandbytes as it loads, by its documentation"),
    "faq-outputs-alike": Test(
        "read as the same likeliest next token in 95 % of cases, for each of four formats; noise within twice the error", alike
    ),
    "faq-small-models-lose": Test("read as a rise of the loss beyond twice its standard error, on such a model", small_models_lose),
    "quality-at-4-bits": Test(
        "read as an order: AWQ nearest to the original, NF4 farthest; pairs by KL, window by window, noise within twice the error", ranking
    ),
    "faq-awq-better-quality": lower("autoawq-w4g128", "autogptq-w4g128"),
    "faq-awq-faster-to-quantize": faster("autoawq-w4g128", "autogptq-w4g128"),
    "bench-memory-fp16": memory_of_70b(["FP16"], 140),
    "bench-memory-awq-gptq": memory_of_70b(["AWQ/GPTQ INT4 g128"], 36),
    "bench-memory-gguf": memory_of_70b(["GGUF Q4_K_M"], 38),
    "bench-memory-nf4": memory_of_70b(["NF4 double quant"], 37),
    "awq-small-calibration-set": Test("read as: with the least text tried, KL is less than a tenth above the last", small_calibration),
    "awq-fold-inverse-scale": Test("read as: the function is unchanged to rounding, and is not where the inverse is left out", folding),
    "approach-awq": Test(
        "read as: scales by a channel's own activations remove more than 1 % of the error, and over twice what another's do", channel_aware
    ),
    "gptq-each-matrix-alone": Test(
        "read as: alone, from the original's inputs, a layer gets the codes that a walk over all layers gives it, but for near ties (99 %)",
        matrix_alone,
    ),
    "gptq-calibration-texts": Test("read as: so many are needed; it does not hold where KL has levelled off with fewer", many_texts),
    "gptq-act-order-slower": faster("autogptq-w4g128-asym", "autogptq-w4g128-asym-actorder"),
    "approach-gptq": Test("read as: its codes are those of Optimal Brain Quantization in the same order, on a small layer", layerwise_obq),
    "vllm-supports-awq": documented(True, "quant_method awq, by vLLM's documentation; tests/serve/test_vllm.py serves qlab's in it"),
    "vllm-supports-gptq": documented(True, "quant_method gptq, on Marlin kernels where symmetric, by vLLM's documentation"),
    "tgi-supports-awq": documented(True, "--quantize awq, by the documentation of TGI's launcher (read-only since 2026-03)"),
    "tgi-supports-gptq": documented(True, "--quantize gptq, by the documentation of TGI's launcher (read-only since 2026-03)"),
    "ollama-supports-gguf": documented(True, "FROM takes a .gguf, by Ollama's documentation of the Modelfile"),
    "ollama-supports-awq-gptq-nf4": documented(True, "it imports GGUF and FP16 or BF16 safetensors, by Ollama's documentation"),
    "cpu-offload-awq-gptq": documented(
        False, "vLLM's --cpu-offload-gb keeps part of the weights in RAM, by its documentation; with GPTQ-Marlin since 0.5.5 (issue 7204)"
    ),
    "cpu-offload-gguf": documented(True, "llama.cpp's --n-gpu-layers, by its documentation; with none on a GPU it runs here, in lesson 7"),
    "cpu-offload-nf4": Test(
        "read as: its layers cannot run on a CPU; it does not hold where a library runs them there, which lesson 7 measures", nf4_on_cpu
    ),
    "vllm-serve-command": documented(True, "all three options exist, by vLLM's documentation; --quantization is better left out now"),
    "vllm-gpu-memory-utilization": documented(True, "the option exists, by vLLM's documentation; its default is 0.92 now"),
    "vllm-completions-request": documented(True, "an OpenAI-compatible /v1/completions, by vLLM's documentation; lesson 6 sends its like"),
    "tgi-serve-command": documented(True, "all four options exist, by the documentation of TGI 3.3's launcher; there will be no later one"),
    "ollama-modelfile": documented(True, "FROM, PARAMETER and SYSTEM, by Ollama's documentation; lesson 6 writes such a file"),
    "ollama-create-run": documented(True, "both commands exist, by Ollama's documentation"),
    "covered-models": documented(
        True,
        "qlab's walk is tested on llama, mistral, qwen2 and cohere, and AutoAWQ has classes for all; AutoGPTQ 0.7.1 has none for cohere",
    ),
    "nf4-for-finetuning": Test(
        "read as: on the same windows, before training and after, its loss falls by more than twice the error and at least 0.9 times as "
        "far as unquantized; the frozen weights take fewer bytes than in FP16; and the loss afterwards is below that on every other 4-bit "
        "format trained, by more than twice the error (GPTQ was calibrated on the same text)",
        qlora,
    ),
    "faq-requantize-new-version": Test("by KL to the new version, paired; within noise below twice the standard error", quantize_again),
    "bench-500-prompts": Test("read as: so many, of these kinds and languages, were answered in this run", prompts_of_the_guide),
    "bench-fp16-4xa100": speed_of_70b("A100 80GB SXM", 4, "FP16", 42),
    "bench-awq-2x4090": speed_of_70b("RTX 4090", 2, "AWQ/GPTQ INT4 g128", 38),
    "bench-gptq-2x4090": speed_of_70b("RTX 4090", 2, "AWQ/GPTQ INT4 g128", 36),
    "bench-gguf-2x4090": speed_of_70b("RTX 4090", 2, "GGUF Q4_K_M", 28, in_turn=True),
    "bench-gguf-64-cores": speed_of_70b("AMD EPYC 9554, 12 channels of DDR5-4800", 1, "GGUF Q4_K_M", 8),
    "bench-nf4-2x4090": speed_of_70b("RTX 4090", 2, "NF4 double quant", 22, in_turn=True),
    "bench-memory-gguf-cpu": Test("by arithmetic, and by this run's own server", in_ram),
    "faq-13b-perplexity": Test("read against the guide's own table, which measures a 70B", lambda _: own_table(0, 0.5, 3.0)),
    "faq-13b-mmlu": Test("read against the guide's own table, which measures a 70B", lambda _: own_table(1, -1.5, -0.5)),
    "speed-gguf": speed_of("GGUF Q4_K_M", '"good"', CPU),
    "speed-gguf-on-gpu": speed_of("GGUF Q4_K_M", '"good"', GPU),
    "speed-nf4": speed_of("NF4 by bitsandbytes", '"medium"', GPU),
}
