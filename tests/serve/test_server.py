"""A server's life with llama.cpp, for real: it answers, it stops, and nothing of it outlives whoever wanted it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path

import psutil
import pytest
import torch

from qlab.artifacts.artifact import make_artifact, quantize_model
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from qlab.serve.deployment import Deployment
from qlab.serve.runtimes.llamacpp import LlamaCpp, post
from qlab.serve.runtimes.runtime import expected_memory
from qlab.serve.runtimes.vllm import VLLM, has_kernels, pool
from qlab.serve.server import on_free_port, serving
from qlab.support.errors import UserError
from tests.formats.gguf.writing import write_gguf

KEY = "a-key-of-twenty-four-chr"


@pytest.fixture(scope="module")
def file(tiny: OpenedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(tiny.path, tiny.config, "q8_0", out)
    return out


@pytest.fixture(scope="module")
def eight_bits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the embedded model in Q8_0."""
    windows = torch.arange(1, 65).view(4, 16)
    return make_artifact(parse("q8_0"), locate("embedded"), windows, str(tmp_path_factory.mktemp("embedded"))).path


def family(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def gone(processes: list[psutil.Process], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    running = lambda p: p.is_running() and p.status() != psutil.STATUS_ZOMBIE  # noqa: E731
    while any(map(running, processes)) and time.monotonic() < end:
        time.sleep(0.1)
    return not any(map(running, processes))


def test_it_answers_on_loopback_and_stops(file: Path) -> None:
    deployment = on_free_port(file)
    with serving(LlamaCpp(), deployment) as server:
        listening = [c.laddr for c in psutil.net_connections("tcp") if c.laddr and c.laddr.port == deployment.port and c.status == "LISTEN"]
        assert {address.ip for address in listening} == {"127.0.0.1"}
        answer = post(server.url, "/v1/completions", {"prompt": "return the", "max_tokens": 5, "temperature": 0})
        assert answer["usage"]["completion_tokens"] == 5
        members = family(psutil.Process(server.process.pid))
    assert len(members) >= 2
    assert gone(members)
    with pytest.raises(urllib.error.URLError):
        post(server.url, "/v1/completions", {"prompt": "anyone?"})


def test_llamacpp_holds_what_was_expected(eight_bits: Path) -> None:
    """What a model and its context take is held to 10 %. The total is held to a quarter: most of it is Python and the libraries here,
    whose pages differ between machines and are shared with the other worker of these tests."""
    (little, little_own, expected_little), (much, much_own, expected_much) = (
        held(on_free_port(eight_bits, context=c)) for c in (1024, 33 << 10)
    )
    assert much_own - little_own == pytest.approx(expected_much - expected_little, rel=0.1)
    assert (little, much) == (pytest.approx(expected_little, rel=0.25), pytest.approx(expected_much, rel=0.25))


def test_a_smaller_cache_saves_what_was_expected(eight_bits: Path) -> None:
    found = {cache: held(on_free_port(eight_bits, context=33 << 10, cache=cache)) for cache in LlamaCpp.caches}
    assert set(found) == {"f16", "q8_0", "q4_0"}
    (_, whole, planned), *smaller = found.values()
    assert planned > 30e6
    for (_, own, expected), share in zip(smaller, (8.5 / 16, 4.5 / 16), strict=True):
        assert whole - own == pytest.approx(planned - expected, rel=0.1)
        assert planned - expected == pytest.approx((1 - share) * found_cache(eight_bits), rel=1e-6)


def found_cache(folder: Path) -> float:
    """Bytes of the whole cache in FP16, as planned."""
    expected = expected_memory(LlamaCpp(), on_free_port(folder, context=33 << 10))
    assert expected
    return expected.cached


def held(deployment: Deployment) -> tuple[int, int, float]:
    """What a server of llama.cpp holds: in all, that which is its own alone, and what was expected; bytes."""
    with serving(LlamaCpp(), deployment) as server:
        post(server.url, "/v1/completions", {"prompt": [5] * 600, "max_tokens": 1})  # what a prompt needs is taken with the first
        own = sum(process.memory_full_info().uss for process in family(psutil.Process(server.process.pid)))
        expected = expected_memory(LlamaCpp(), deployment)
        assert expected
        return server.held_bytes(), own, expected.total


@pytest.mark.skipif(not VLLM().present() or not has_kernels(), reason="needs vLLM (make vllm) and a processor that it has kernels for")
def test_vllm_holds_what_was_expected(calibration: torch.Tensor, tmp_path: Path) -> None:
    deployment = on_free_port(make_artifact(parse("rtn-w4g128"), locate("embedded"), calibration, str(tmp_path)).path)
    with serving(VLLM(), deployment) as server:
        expected = expected_memory(VLLM(), deployment)
        assert expected
        assert server.held_bytes() == pytest.approx(expected.total, rel=0.1)


X86 = {"architecture": "x86_64"}


@pytest.mark.parametrize(
    ("able", "refused"), [(X86 | {"avx512_f": False}, True), (X86 | {"avx512_f": True}, False), ({"architecture": "aarch64"}, False)]
)
def test_a_processor_that_vllm_has_no_kernels_for_is_named(
    able: dict, refused: bool, tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    (made,) = quantize_model(tiny, [parse("rtn-w4g128")], calibration, tmp_path)
    with pytest.raises(UserError, match=r"AVX-512.*q4_k_m") if refused else nullcontext():
        VLLM().check_processor(on_free_port(made.path))
    VLLM().check_processor(on_free_port(made.path, gpus=1))
    VLLM().check_processor(on_free_port(tiny.path))


def test_vllm_asks_no_public_address_for_its_own(tiny: OpenedModel) -> None:
    assert VLLM().environment(on_free_port(tiny.path))["VLLM_HOST_IP"] == "127.0.0.1"


def test_the_pool_for_vllms_cache_is_whole_gibibytes_and_enough() -> None:
    assert [pool(size) >> 30 for size in (1, 1 << 30, (1 << 30) + 1)] == [1, 1, 2]


def test_the_key_is_wanted_and_shown_to_nobody(file: Path, tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    with serving(LlamaCpp(), on_free_port(file, key=KEY), log=log) as server:
        with pytest.raises(RuntimeError, match=r"the server answered /v1/completions with 401: .*[Kk]ey"):
            post(server.url, "/v1/completions", {"prompt": "a", "max_tokens": 1})
        post(server.url, "/v1/completions", {"prompt": "a", "max_tokens": 1}, KEY)
        for process in family(psutil.Process(server.process.pid)):
            assert KEY not in " ".join(process.cmdline())
    assert log.read_text()
    assert KEY not in log.read_text() + repr(server)


def test_a_truncated_file_is_a_message_with_the_log(file: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with (
        pytest.raises(UserError, match=r"(?s)llama.cpp's server ended with exit code.*cut\.gguf"),
        serving(LlamaCpp(), on_free_port(tmp_path)),
    ):
        pass


def test_a_port_that_is_taken_is_said_before_anything_starts(file: Path) -> None:
    first = on_free_port(file)
    with (
        serving(LlamaCpp(), first),
        pytest.raises(UserError, match=f"cannot serve on 127.0.0.1 port {first.port}"),
        serving(LlamaCpp(), Deployment(file, "second", port=first.port)),
    ):
        pass


@pytest.mark.parametrize("how", ["closed", "ended", "failed"])
def test_temporary_files_go_with_the_server(how: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    (base := Path("/tmp") / f"qlab-test-{os.getpid()}").mkdir()  # a short name, as the usual one is
    request.addfinalizer(lambda: shutil.rmtree(base))
    monkeypatch.setenv("TMPDIR", str(base))
    code = "import os, sys, tempfile, time; os.mkdir(tempfile.mkdtemp() + '/left'); print('up', flush=True); "
    code += {"closed": "time.sleep(600)", "ended": "", "failed": "sys.exit(3)"}[how]
    command = [sys.executable, "-m", "qlab.serve.supervisor", sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdin
        assert keeper.stdout
        assert keeper.stdout.readline() == b"up\n"
        if how == "closed":
            assert len(list(base.glob("*/*/left"))) == 1  # in the keeper's folder
            keeper.stdin.close()
        assert keeper.wait(20) == {"closed": 128 + signal.SIGTERM, "ended": 0, "failed": 3}[how]
    assert not list(base.iterdir())


class Confined(LlamaCpp):
    """llama.cpp where a process may have 2 GiB of addresses."""

    def command(self, deployment: Deployment) -> list[str]:
        return ["prlimit", f"--as={2 << 30}", *super().command(deployment)]


def test_too_little_memory_ends_in_a_message_not_in_a_hang(file: Path) -> None:
    greedy = on_free_port(file, context=1 << 24)  # a KV cache of many GB
    with pytest.raises(UserError, match=r"(?s)ended with exit code.*memory too small"), serving(Confined(), greedy, limit=60):
        pass
    with serving(Confined(), on_free_port(file)):  # it is the memory, not the confinement
        pass


def test_a_log_that_cannot_be_written_stops_no_server(file: Path) -> None:
    with serving(LlamaCpp(), on_free_port(file), log=Path("/dev/full")) as server:
        assert post(server.url, "/v1/completions", {"prompt": "a", "max_tokens": 1})["usage"]["completion_tokens"] == 1
        assert "the log file ends here: No space left on device" in server.tail(200)


def test_a_server_that_is_killed_is_seen_to_be_dead(file: Path) -> None:
    with serving(LlamaCpp(), on_free_port(file)) as server:
        for child in psutil.Process(server.process.pid).children():
            child.kill()
        server.process.wait(20)
        assert not server.alive
        assert server.process.returncode == 128 + signal.SIGKILL


def test_a_server_ends_with_its_keeper_however_that_ends(file: Path) -> None:
    with serving(LlamaCpp(), on_free_port(file)) as server:
        members = family(psutil.Process(server.process.pid))
        assert len(members) >= 2
        members[0].kill()
        assert gone(members)


# Of each line that it reads, a copy of itself has a server; what both import takes ten seconds.
PARENTS = """
import os, pathlib, signal, sys, time
from qlab.serve.runtimes.llamacpp import LlamaCpp
from qlab.serve.server import on_free_port, serving
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while sys.stdin.readline():
    if os.fork():
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where these tests run in the background of a shell
    with serving(LlamaCpp(), on_free_port(pathlib.Path(sys.argv[1]))):
        print(os.getpid(), flush=True)
        time.sleep(600)
"""


@pytest.fixture(scope="module")
def parents(file: Path) -> Iterator[Callable[[], psutil.Process]]:
    """Starts a process with a server of its own, which is up."""
    command, started = [sys.executable, "-c", PARENTS, str(file)], list[psutil.Process]()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin
        assert process.stdout

        def start() -> psutil.Process:
            process.stdin.write(b"\n")
            process.stdin.flush()
            started.append(psutil.Process(int(process.stdout.readline())))
            return started[-1]

        yield start
        process.stdin.close()
        for one in started:
            with suppress(psutil.NoSuchProcess):
                one.kill()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_outlives_the_parent(parents: Callable[[], psutil.Process], how: signal.Signals) -> None:
    parent = parents()
    members = parent.children(recursive=True)
    assert len(members) >= 2
    parent.send_signal(how)
    assert gone([parent, *members], 30)
