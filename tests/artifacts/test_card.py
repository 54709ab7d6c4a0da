"""The card of an artifact: what it was made from; names are text in it; it never takes the place of a user's."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import mistune
import pytest
import torch
import yaml

from qlab import EMBEDDED
from qlab.artifacts.artifact import Artifact, quantize_model
from qlab.artifacts.card import MARK, NOT_MEASURED, Figures, Original, card, original_of, renew_card
from qlab.artifacts.licence import CARD, licence_of
from qlab.artifacts.placing import check_replaceable
from qlab.models.opening import OpenedModel, locate
from qlab.recipes import parse
from qlab.support.errors import UserError

HOSTILE = "<script>alert(1)</script> | **b** `c`\n# d ![x](http://e) &amp; \x1b[31m"
FIGURES = Figures([("KL divergence", "0.0123", "0.0004"), (HOSTILE, "1", "")], f"Measured on {HOSTILE}.")


@pytest.fixture(scope="module")
def made(tiny: OpenedModel, calibration: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    (artifact,) = quantize_model(tiny, [parse("nf4")], calibration, tmp_path_factory.mktemp("card"))
    return artifact


def front(content: str) -> dict[str, str]:
    return yaml.safe_load(content.split("---\n")[1])


def test_an_artifact_has_its_card(made: Artifact, tiny: OpenedModel) -> None:
    content = (made.path / CARD).read_text()
    assert front(content) == {"base_model": "tiny"}
    assert "# tiny as nf4" in content
    assert f"| original | tiny (fingerprint {tiny.fingerprint}) |" in content
    assert "| licence of the original | not stated |" in content
    assert "| calibration | none |" in content
    assert "of the square of its weights, " in content
    assert f"| weights on disk | {made.disk_bytes / 1e6:,.1f} MB |" in content
    assert NOT_MEASURED in content
    assert "TGI serves this format" in content
    assert str(made.path.parent) not in content
    assert CARD in made.manifest["files"]


def test_a_recipe_that_reads_calibration_text_says_so(tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path) -> None:
    (artifact,) = quantize_model(tiny, [parse("gptq-w4g64")], calibration, tmp_path)
    content = (artifact.path / CARD).read_text()
    assert "| calibration | 8 windows of 64 tokens |" in content
    assert "of the square of its output on the calibration text, " in content


def test_figures_come_later_and_the_artifact_stays_replaceable(made: Artifact, tiny: OpenedModel) -> None:
    before = (made.path / CARD).read_text()
    assert renew_card(made.path, original_of(tiny), FIGURES)
    content = (made.path / CARD).read_text()
    assert "| KL divergence | 0.0123 | 0.0004 |" in content
    assert NOT_MEASURED not in content
    assert renew_card(made.path, original_of(tiny), FIGURES)
    assert (made.path / CARD).read_text() == content
    assert content.partition("## Figures")[0] == before.partition("## Figures")[0]
    check_replaceable(made.path)


def test_a_card_that_is_not_qlabs_any_more_is_left_alone(made: Artifact, tiny: OpenedModel, tmp_path: Path) -> None:
    copy = tmp_path / "nf4"
    shutil.copytree(made.path, copy)
    (copy / CARD).write_text((copy / CARD).read_text().replace(MARK, "Mine."))
    assert not renew_card(copy, original_of(tiny), FIGURES)
    assert "Mine." in (copy / CARD).read_text()
    with pytest.raises(UserError, match=r"qlab did not make README\.md"):
        check_replaceable(copy)
    (copy / CARD).unlink()
    assert not renew_card(copy, original_of(tiny), FIGURES)
    (copy / CARD).symlink_to(EMBEDDED / CARD)
    assert not renew_card(copy, original_of(tiny), FIGURES)


def test_whatever_names_hold_they_are_text(made: Artifact) -> None:
    manifest = made.manifest | {"notes": {HOSTILE: HOSTILE}, "calibration": [{"name": HOSTILE, "windows": 8}]}
    hostile = card(made.path, HOSTILE, manifest, Original(HOSTILE, HOSTILE, HOSTILE, HOSTILE), FIGURES)
    plain = card(
        made.path, "n", manifest | {"notes": {"n": "n"}}, Original("n", "n", "n", "n"), Figures([("n", "1", ""), ("n", "1", "")], "n")
    )
    assert "\x1b" not in hostile
    assert set(front(hostile)) == {"base_model", "license"}
    render = mistune.create_markdown(escape=False, plugins=["table"])
    body, expected = (str(render(content.split("---\n", 2)[2])) for content in (hostile, plain))
    for tag in ("<script", "<img", "<a ", "<strong>", "<h1", "<h2", "<td", "<tr", "<li", "<code"):
        assert body.count(tag) == expected.count(tag), tag
    assert "alert(1)" in body


@pytest.mark.parametrize(
    ("content", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n# m\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: qwen\n---\n", "qwen"),
        ("---\nlicense: [a, b]\n---\n", ""),
        ("# license: mit\n", ""),
        ("---\nlicense: mit\n", ""),
        ("---\n!!python/object/apply:os.system ['true']\n---\n", ""),
        ("---\na: &a [*a]\nlicense: [\n---\n", ""),
        ("---\nlicense: !!bool maybe\n---\n", ""),
        ('---\nlicense: !!int ""\n---\n', ""),
        ("---\nlicense: !!timestamp x\n---\n", ""),
    ],
)
def test_the_licence_is_what_the_card_states(content: str, licence: str, tiny: OpenedModel, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny.path, folder)
    (folder / CARD).write_text(content)
    assert licence_of(locate(str(folder))) == licence


def test_the_embedded_model_states_its_licence_and_a_gguf_file_in_its_header(
    tiny: OpenedModel, calibration: torch.Tensor, tmp_path: Path
) -> None:
    assert licence_of(locate("embedded")) == "apache-2.0"
    file = tmp_path / "m.gguf"
    (artifact,) = quantize_model(tiny, [parse("q8_0")], calibration, tmp_path / "out")
    reader, writer = gguf.GGUFReader(next(artifact.path.glob("*.gguf"))), gguf.GGUFWriter(file, "llama")
    writer.add_license("cc-by-4.0")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(name, field.contents(), kind, field.types[1] if kind == gguf.GGUFValueType.ARRAY else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert licence_of(locate(str(file))) == "cc-by-4.0"
    (tmp_path / CARD).write_text("---\nlicense: mit\n---\n")  # another model's, perhaps
    assert licence_of(locate(str(file))) == "cc-by-4.0"
    alone = shutil.copy(next(artifact.path.glob("*.gguf")), tmp_path / "none.gguf")
    assert licence_of(locate(str(alone))) == ""
