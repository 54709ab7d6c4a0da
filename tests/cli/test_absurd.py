"""Names and texts of the command line that nobody means: one short message each, soon, and nothing written."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from qlab.cli import call

LONG, NUMBER = "x" * 5000, "9" * 5000
EVALUATE, QUANTIZE, RELEASE = (
    ["evaluate", "embedded"],
    ["quantize", "--dry-run", "--out", "o"],
    ["release", "--out", "o", "--model", "none"],
)
RUN, SERVE, LOAD = (
    ["run", "--out", "o"],
    ["serve", "embedded", "--runtime", "vllm", "--dry-run"],
    ["load", "http://127.0.0.1:1", "--model", "m"],
)
ABSURD: list[list[str]] = [
    *([*EVALUATE, "--device", device] for device in (LONG, "", "meta", "mps", "hpu", "privateuseone", "cuda:" + NUMBER, "cpu\n", "☃")),
    *(["evaluate", model] for model in (LONG, "", "~nobody-here/x", "embedded\n", "☃/☃", ".", "/dev/zero")),
    *(["plan", model] for model in (NUMBER, NUMBER + "B", "0B", "nanB", "", "~nobody-here/x", "☃", "/dev/zero")),
    *(["plan", "7B", "--format", name] for name in (LONG, "", "☃")),
    *(["plan", "7B", "--gpu", name] for name in (LONG, "", "☃")),
    *([*QUANTIZE, "--recipe", name]
      for name in (LONG, "", "awq-w4g" + NUMBER, "awq-w" + NUMBER + "g1", "tuned-w4g128-steps" + NUMBER, "nf4\n", "../x", "awq-w4g0")),
    *([*QUANTIZE, "--recipe", "nf4", "--max-memory", size] for size in ("", "-1GiB", "nanGiB", LONG, "0")),
    *([*QUANTIZE, "--recipe", "nf4", "--calibration", text]
      for text in (LONG, "", ",", "prompts:" + NUMBER, "prompts:nan", "~nobody-here/x", "prompts,prompts", "prompts:1," * 2000)),
    *([*RELEASE, "--gate", gate] for gate in (LONG, "", "kl=" + NUMBER, "kl=nan", "top1=2", "kl=1e-400")),
    *([*RUN, name] for name in (LONG, "", "99")),
    *([*RUN, "07", "-p", setting]
      for setting in ("device=hpu", "runtimes=none", f"runtimes={LONG}", "tasks=none", "task_data=/none", f"task_data={LONG}",
                      "work=/dev/null", "gpu=Volta", f"gpu={LONG}", "users=0", "user_rate=fast",
                      "work=data/embedded", f"evaluation_text={LONG}", f"time_limit={NUMBER}", f"{LONG}=1", "=", "x")),
    *([*SERVE, "--name", name] for name in (LONG, "a b", "$(x)", "a\nb", "☃")),
    *([*SERVE, "--host", host] for host in (LONG, "", "localhost", "127.0.0.1%x", "0.0.0.0")),
    *([*LOAD, "--concurrency", levels] for levels in (LONG, "", NUMBER, "1," * 5000, "1,,2")),
]  # fmt: skip


@pytest.mark.parametrize("words", ABSURD, ids=lambda words: " ".join(words)[:60].encode("unicode_escape").decode())
def test_an_absurd_word_is_one_short_message(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    assert call(words) == 2
    printed = capsys.readouterr().err
    assert len(printed) < 1300
    assert "a fault of qlab's" not in printed
    assert time.monotonic() - started < 120  # seconds; it must not hang, and a busy machine is slow
    assert list(tmp_path.iterdir()) == []
