"""A GGUF file in numbered parts: the same settings and tensors to gguf-py, qlab and llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from qlab.artifacts.artifact import Artifact
from qlab.artifacts.converting import in_parts
from qlab.cli import call
from qlab.formats.gguf.file import split
from qlab.models.opening import OpenedModel, locate
from qlab.plan.footprint import footprint
from qlab.serve.deployment import Deployment
from qlab.serve.files import files_of
from qlab.serve.runtimes.llamacpp import LlamaCpp
from qlab.serve.runtimes.ollama import Ollama
from qlab.support.errors import UserError
from tests.formats.gguf.answering import OneProcess
from tests.formats.gguf.writing import write_gguf

OWN = ("GGUF.", "split.")  # what tells of a file, not of the model


@pytest.fixture
def file(tiny: OpenedModel, tmp_path: Path) -> Path:
    write_gguf(tiny.path, tiny.config, "q4_k_m", tmp_path / "m.gguf")
    return tmp_path / "m.gguf"


def settings(reader: gguf.GGUFReader) -> dict[str, Any]:
    return {
        name: (field.types[:1] + field.types[-1:], field.contents()) for name, field in reader.fields.items() if not name.startswith(OWN)
    }


def test_the_parts_together_are_the_file(file: Path, tmp_path: Path) -> None:
    most = 200_000
    assert call(["convert", str(file), "--parts", str(most), "--out", str(tmp_path / "parts")]) == 0
    whole, parts = gguf.GGUFReader(file), [gguf.GGUFReader(part) for part in sorted((tmp_path / "parts").glob("*.gguf"))]
    assert len(parts) > 2
    assert settings(parts[0]) == settings(whole)
    assert [part.fields["split.no"].contents() for part in parts] == list(range(len(parts)))
    together = [tensor for part in parts for tensor in part.tensors]
    assert [tensor.name for tensor in together] == [tensor.name for tensor in whole.tensors]
    assert all(np.array_equal(one.data, other.data) for one, other in zip(together, whole.tensors, strict=True))
    assert all(len(part.tensors) == 1 or sum(tensor.n_bytes for tensor in part.tensors) <= most for part in parts)
    found, source = locate(str(tmp_path / "parts")), locate(str(file))
    assert all(torch.equal(found.checkpoint.read(name), source.checkpoint.read(name)) for name in source.checkpoint.shapes)


def test_a_file_of_another_alignment_and_with_an_empty_list_is_divided_too(tmp_path: Path) -> None:
    """Parts have the usual alignment: gguf-py would say another in the first alone."""
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_custom_alignment(1024)
    writer.add_array("qlab.empty", [])
    tensors = {f"t{number}": np.arange(8 + 8 * number, dtype=np.float32) + number for number in range(40)}
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (tmp_path / "parts").mkdir()
    parts = split(tmp_path / "m.gguf", 1500, tmp_path / "parts")
    assert len(parts) > 2
    found = {tensor.name: tensor.data for part in parts for tensor in gguf.GGUFReader(part).tensors}
    assert found.keys() == tensors.keys()
    assert all(np.array_equal(found[name], tensor) for name, tensor in tensors.items())


def test_llama_cpp_answers_from_the_parts_as_from_the_file(file: Path, tmp_path: Path) -> None:
    made = in_parts(locate(str(file)), 200_000, tmp_path / "parts")
    first, *others = sorted(made.path.glob("*.gguf"))
    process = OneProcess()
    try:
        assert process.ask(first, range(1, 20), 5) == process.ask(file, range(1, 20), 5)
        others[-1].unlink()
        with pytest.raises(RuntimeError):
            process.ask(first, range(1, 20), 5)
    finally:
        process.close()


def test_a_server_is_started_and_planned_by_all_parts(file: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    whole, parts = Deployment(file.rename(alone / "m.gguf").parent, "m"), in_parts(locate(str(alone)), 200_000, tmp_path / "parts").path
    served = Deployment(parts, "m")
    assert served.gguf.name.startswith("m-00001-of-")
    assert served.weight_bytes == sum(part.stat().st_size for part in parts.glob("*.gguf")) > whole.weight_bytes
    assert footprint(parts, 512) == footprint(alone, 512)
    assert f"/model/{served.gguf.name}" in LlamaCpp().container(served).arguments
    with pytest.raises(UserError, match="m is in parts, and a Modelfile names one GGUF file: join them"):
        files_of(Ollama(), served)


def test_what_cannot_be_divided_is_refused(file: Path, tiny: OpenedModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="tiny is no GGUF file: --parts divides these"):
        in_parts(tiny, 1000, tmp_path / "out")
    for most in (0, 10**9):
        with pytest.raises(UserError, match=rf"parts of {most:,} bytes do not divide the tensors of m\.gguf"):
            in_parts(locate(str(file)), most, tmp_path / "out")
    made = in_parts(locate(str(file)), 200_000, tmp_path / "parts")
    assert isinstance(Artifact.open(made.path), Artifact)
    with pytest.raises(UserError, match=r"00001-of-\d+\.gguf is a part itself: join the parts first"):
        in_parts(made.source, 1000, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert call(["convert", str(file), "--out", str(tmp_path / "out")]) != 0
    assert "give either --layout" in capsys.readouterr().err
