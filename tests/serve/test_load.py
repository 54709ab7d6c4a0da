"""Load and proof against a real server, and what they must see."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from openai import OpenAI

from qlab.artifacts.artifact import quantize_model
from qlab.cli import call
from qlab.models.loading import load
from qlab.models.opening import OpenedModel, locate
from qlab.models.texts.prompts import load_prompts
from qlab.recipes import parse
from qlab.serve.load import Answer, parting, percentiles, run_load, saturation, summary
from qlab.serve.proof import compare, prove
from qlab.serve.rounding import eight_bit_inputs
from qlab.serve.runtimes.greedy import Greedy
from qlab.serve.runtimes.llamacpp import LlamaCpp, post
from qlab.serve.server import on_free_port, serving
from qlab.support.errors import UserError

PROMPTS = [entry["prompt"][:60] for entry in load_prompts()[::25]]


@pytest.fixture(scope="module")
def artifacts(tiny: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("artifacts")
    windows = torch.arange(4 * 32).view(4, 32) % 200
    return {made.path.name: made.path for made in quantize_model(tiny, [parse("q8_0"), parse("q2_k")], windows, out)}


def test_the_right_artifact_is_proved_and_a_wrong_one_is_caught(artifacts: dict[str, Path]) -> None:
    deployment = on_free_port(artifacts["q8_0"], key="a-key-of-twenty-four-chr")
    with serving(LlamaCpp(), deployment) as server:
        proof = prove(LlamaCpp(), deployment, server)
        assert proof.holds, proof.checks
        assert {check.name for check in proof.checks} >= {"a wrong key", "a prompt beyond the context", "streamed chat says the same"}
        wrong = prove(LlamaCpp(), replace(deployment, folder=artifacts["q2_k"]), server)
    assert [check.name for check in wrong.checks if not check.passed] == ["greedy tokens are the artifact's"]
    assert wrong.agreement.error > 2 * proof.agreement.error


def test_prompts_of_the_proof_begin_as_the_tokenizer_begins_a_text(tiny: OpenedModel, tmp_path: Path) -> None:
    """With BOS where it adds one: llama.cpp takes the ids as they are, adds no second, and agrees."""
    folder = tmp_path / "model"
    shutil.copytree(tiny.path, folder)
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["post_processor"]["single"].insert(0, {"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}})
    rules["post_processor"]["special_tokens"] = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}}
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    (made,) = quantize_model(locate(str(folder)), [parse("f16")], torch.ones(1, 32, dtype=torch.int64), tmp_path / "out")
    asked: list[list[int]] = []

    class Listening(LlamaCpp):
        def greedy(self, url: str, client: OpenAI, model: str, prompt: Sequence[int], count: int) -> Greedy:
            asked.append(list(prompt))
            return super().greedy(url, client, model, prompt, count)

    deployment = on_free_port(made.path)
    with serving(Listening(), deployment) as server:
        proof = prove(Listening(), deployment, server)
    assert {prompt[0] for prompt in asked} == {0}
    assert all(0 not in prompt[1:] for prompt in asked)
    assert proof.agreement.error < 0.01, proof.agreement


def test_agreement_is_perfect_with_itself_and_sees_one_wrong_token(tiny: OpenedModel) -> None:
    model = load(tiny)
    prompt = [5, 6, 7]
    with torch.inference_mode():
        chosen = model.generate(torch.tensor([prompt]), max_new_tokens=4, do_sample=False, pad_token_id=0)[0, 3:]
        logits = model(torch.tensor([[*prompt, *chosen.tolist()]])).logits[0, 2:-1].log_softmax(-1)
    reported = logits.gather(1, chosen[:, None])[:, 0].tolist()
    own = compare(model, [prompt], [chosen.tolist()], [reported], eight_bit_inputs)
    assert (own.identical, own.in_context) == (1, 1)
    assert own.margin == pytest.approx(0, abs=1e-5)
    assert own.error == pytest.approx(0, abs=1e-5)
    chosen = chosen.clone()
    chosen[1] = logits[1].argmin()
    assert compare(model, [prompt], [chosen.tolist()], [reported], eight_bit_inputs).margin > 0.1


def test_every_prompt_is_answered_at_every_concurrency(artifacts: dict[str, Path]) -> None:
    with serving(LlamaCpp(), on_free_port(artifacts["q8_0"], sequences=4)) as server:
        levels = run_load(server.url, "model", PROMPTS, (1, 4), 8)
    for level in levels:
        assert (level.requests, level.errors, level.wrong) == (20, {}, 0)
        assert level.output_throughput * level.seconds == pytest.approx(20 * 8)
        assert 0 < level.ttft["p50"] <= level.ttft["p99"] <= level.latency["p99"]
    assert levels[0].changed == 0


def test_a_server_that_dies_under_load_is_an_answer_not_a_hang(artifacts: dict[str, Path]) -> None:
    deployment = on_free_port(artifacts["q8_0"], sequences=4)
    with serving(LlamaCpp(), deployment) as server:
        (child,) = psutil.Process(server.process.pid).children()

        def kill() -> None:
            while not any(found.status == "ESTABLISHED" for found in child.net_connections()):
                time.sleep(0.01)
            for _ in range(8):  # in line with the others, some of whom are served meanwhile
                post(server.url, "/v1/completions", {"prompt": "a", "max_tokens": 8})
            child.kill()

        threading.Thread(target=kill, daemon=True).start()
        (level,) = run_load(server.url, "model", PROMPTS * 100, [4], 8, timeout=20)
    lost = sum(level.errors.values())
    assert 0 < lost < 2000
    assert "not sent: the server is gone" in level.errors
    with pytest.raises(UserError, match="needs prompts"):
        run_load(server.url, "model", [], [1], 8)


def test_figures_by_hand() -> None:
    first = [Answer("ab", 2, 3, 0.1, 0.3, [0.2], [1, 2], [-0.1, -0.2])]
    near, far = Answer("ac", 2, 3, 0.1, 0.3, [0.2], [1, 3], [-0.1, -0.3]), Answer("ad", 2, 3, 0.1, 0.3, [0.2], [1, 4], [-0.1, -2.0])
    assert parting(first[0], near) == pytest.approx(0.1)
    level = summary(1, [far], first, 2.0)
    assert (level.changed, level.wrong) == (1, 1)
    assert summary(1, [near], first, 2.0).wrong == 0
    assert level.tpot["mean"] == pytest.approx(0.2)
    assert level.total_throughput == pytest.approx(2.5)
    assert percentiles([1, 2, 3])["p50"] == 2
    grows = [replace(level, concurrency=c, output_throughput=t) for c, t in ((1, 100.0), (4, 300.0), (16, 320.0))]
    assert saturation(grows) == 4
    assert saturation(grows[:2]) is None


def test_the_command_line_proves_plans_and_refuses(artifacts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(artifacts["q8_0"])
    port = str(on_free_port(artifacts["q8_0"]).port)
    assert call(["serve", folder, "--port", port, "--context", "512", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["holds"]
    assert call(["serve", folder, "--runtime", "ollama", "--write", str(tmp_path / "files")]) == 0
    assert (tmp_path / "files/Modelfile").exists()
    assert call(["serve", folder, "--dry-run", "--port", port]) == 0
    assert f"--port={port}" in capsys.readouterr().out
    assert call(["serve", folder, "--host", "0.0.0.0"]) == 2
    assert "give a key" in capsys.readouterr().err
    assert call(["serve", folder, "--runtime", "vllm"]) == 2
    assert call(["load", "http://127.0.0.1:1", "--model", "m", "--concurrency", "one"]) == 2
    capsys.readouterr()
    assert call(["serve", folder, "--load", "1,0"]) == 2
    assert "--load: '0': expected a whole number from 1 to 10,000" in capsys.readouterr().err


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_serve_stops_in_order_though_a_shell_had_it_ignore_ctrl_c(artifacts: dict[str, Path], how: signal.Signals) -> None:
    port = str(on_free_port(artifacts["q8_0"]).port)
    words = [sys.executable, "-m", "qlab", "serve", str(artifacts["q8_0"]), "--port", port, "--context", "256", "--no-prove"]
    ignoring = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    process = subprocess.Popen([*ignoring, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline().startswith("deployed")
    members = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    assert process.wait(30) == 130
    assert not psutil.wait_procs(members, 10)[1]
