"""Decision tree, commands and the server's life."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import psutil
import pytest

from qlab.deploy import choose, commands, llamacpp
from qlab.errors import UserError
from qlab.formats.gguf import write_gguf
from qlab.model import Source


@pytest.fixture(scope="module")
def file(tiny: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny.path, tiny.config, "q8_0", out)
    return out


def test_the_tree_is_the_guides() -> None:
    assert choose.recommend("production on vLLM or TGI") == "AWQ"
    assert choose.recommend("fine-tuning").startswith("NF4")
    assert choose.recommend("something else", "yes") == "GGUF Q4_K_M"
    assert choose.recommend("something else").startswith("Is GPU memory short")
    assert len(choose.leaves()) == 5


def test_commands_bind_loopback_and_quote_what_users_name() -> None:
    folder = "my models/it's; rm -rf x"
    for command in (commands.vllm_command(folder, 4096), commands.tgi_command(folder, "gptq", 8192)):
        assert "127.0.0.1" in command
        assert any(folder in word for word in shlex.split(command))
    assert '-v "$PWD"/awq:/data' in commands.tgi_command("awq", "awq", 8192)  # a bare name would be an empty volume
    assert "-v /models/awq:/data" in commands.tgi_command("/models/awq", "awq", 8192)
    modelfile = commands.ollama_modelfile("m.gguf", 8192)
    assert "FROM ./m.gguf" in modelfile
    assert "PARAMETER num_gpu 99" in modelfile


def test_a_missing_runtime_is_named_with_its_remedy() -> None:
    runtimes = {runtime.name: runtime for runtime in commands.runtimes()}
    assert set(runtimes) == {"llama.cpp", "vLLM", "TGI", "Ollama"}
    assert runtimes["llama.cpp"].present
    assert all(runtime.install for runtime in runtimes.values())


def test_the_server_answers_on_loopback_and_stops(file: Path) -> None:
    with llamacpp.serving(file) as url:
        port = int(url.rpartition(":")[2])
        listening = [c.laddr for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == port and c.status == "LISTEN"]
        assert {address.ip for address in listening} == {"127.0.0.1"}
        answer = llamacpp.post(url, "/v1/completions", {"prompt": "return the", "max_tokens": 5, "temperature": 0})
        assert answer["usage"]["completion_tokens"] == 5
        asked = llamacpp.ask(url, "return the", 5)
        assert (asked.tokens, asked.text) == (5, answer["choices"][0]["text"])
    with pytest.raises(urllib.error.URLError):
        llamacpp.post(url, "/v1/completions", {"prompt": "anyone?"})


def test_a_broken_file_is_a_message_with_the_log(tmp_path: Path) -> None:
    (tmp_path / "broken.gguf").write_bytes(b"GGUF but not really")
    with (
        pytest.raises(UserError, match=r"llama.cpp's server (ended with exit code|was not ready)"),
        llamacpp.serving(tmp_path / "broken.gguf", limit=20),
    ):
        pass


def test_the_server_does_not_outlive_its_parent(file: Path) -> None:
    code = (
        f"import pathlib, time\nfrom qlab.deploy.llamacpp import serving\nwith serving(pathlib.Path({str(file)!r})):\n"
        "    print('up', flush=True)\n    time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout
    assert parent.stdout.readline() == b"up\n"
    (server,) = psutil.Process(parent.pid).children()
    parent.kill()
    parent.wait()
    end = time.monotonic() + 20
    while server.is_running() and server.status() != psutil.STATUS_ZOMBIE and time.monotonic() < end:
        time.sleep(0.2)
    assert not server.is_running() or server.status() == psutil.STATUS_ZOMBIE
