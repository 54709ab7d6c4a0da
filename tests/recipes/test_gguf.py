"""Options of GGUF recipes: types tensor by tensor, and importance from files, measured here or by others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from qlab.artifacts.artifact import Artifact, fit, quantize_model
from qlab.formats.gguf import encoding
from qlab.formats.imatrix import Entry, Imatrix, ImatrixFile, merged, write_imatrix
from qlab.models.loading import load
from qlab.models.opening import OpenedModel
from qlab.peers.recipes import LlamaCpp
from qlab.recipes import GGUF, parse
from qlab.recipes.importance import measure
from qlab.support.errors import UserError
from tests.walk.families import FAMILIES, make

DOWN = "blk.0.ffn_down.weight"
TYPED = GGUF("q4_k_m", "plain", (("ffn_down", "IQ4_XS"), (r"blk\.1\.", "Q3_K")), "Q8_0", "Q5_K")


def tensors(artifact: Artifact) -> dict[str, gguf.ReaderTensor]:
    (file,) = artifact.path.glob("*.gguf")
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


@pytest.fixture(scope="module")
def importance(tiny: OpenedModel, calibration: Tensor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("importance")
    write_imatrix(folder / "i.gguf", measure(tiny, calibration, ["random"], folder, "cpu"))
    return folder / "i.gguf"


def test_tensors_have_the_types_asked_for_and_the_first_pattern_counts(tiny: OpenedModel, calibration: Tensor, tmp_path: Path) -> None:
    (made,) = quantize_model(tiny, [TYPED], calibration, tmp_path)
    found = {name: tensor.tensor_type.name for name, tensor in tensors(made).items()}
    assert made.path.name == "q4_k_m-types-plain"
    assert found["token_embd.weight"] == "Q5_K"  # it serves as the output too: what is asked for the embedding counts
    assert (found[DOWN], found["blk.1.ffn_down.weight"]) == ("IQ4_XS", "IQ4_XS")
    assert (found["blk.0.attn_q.weight"], found["blk.1.attn_q.weight"], found["blk.1.attn_norm.weight"]) == ("Q4_K", "Q3_K", "F32")
    assert made.manifest["inputs"]["recipe"]["tensor_types"] == [["ffn_down", "IQ4_XS"], ["blk\\.1\\.", "Q3_K"]]
    assert torch.isfinite(load(made.source)(input_ids=calibration[:1, :8]).logits).all()
    other = replace(TYPED, embedding_type="")
    assert other.types.asked_type("token_embd.weight", tiny.config) == "Q8_0"
    assert other.types.asked_type("token_embd.weight", {"tie_word_embeddings": False}) == ""


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_type": "Q7_K"}, "there is no tensor type 'Q7_K' here: expected one of Q8_0, .*IQ4_XS, F16, F32"),
        (
            {"tensor_types": (("ffn_donw", "Q6_K"),)},
            "'ffn_donw' of --tensor-type fits none of the model's 15 tensors .* such as blk.0.attn_q",
        ),
        ({"tensor_types": (("attn_norm", "Q6_K"),)}, "'attn_norm' of --tensor-type fits none"),
        ({"tensor_types": (("(", "Q6_K"),)}, r"'\(' of --tensor-type is no regular expression: missing"),
    ],
)
def test_types_that_no_tensor_can_have_are_refused(changes: dict[str, Any], message: str, tiny: OpenedModel) -> None:
    with pytest.raises(UserError, match=message):
        fit(tiny, [replace(TYPED, **changes)])


def test_a_type_that_does_not_divide_the_rows_names_the_tensor_and_what_does() -> None:
    from qlab.formats.gguf.mix import Mix, check_types

    with pytest.raises(UserError, match=r"blk\.0\.ffn_up\.weight cannot be Q6_K: blocks of 256 do not divide its rows of 320") as caught:
        check_types(Mix("q4_k_m", (("ffn", "Q6_K"),)), {"blk.0.ffn_up.weight": (8, 320)}, {})
    assert "Expected one of Q8_0, Q5_1, Q5_0, Q4_0, IQ4_NL, F16, F32" in str(caught.value)


def test_what_is_measured_is_the_mean_square_of_each_layers_inputs(tiny: OpenedModel, calibration: Tensor, tmp_path: Path) -> None:
    found, seen = measure(tiny, calibration, ["random"], tmp_path, "cpu"), list[Tensor]()
    model = load(tiny)
    hook = model.model.layers[1].mlp.down_proj.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, 1)))
    with torch.no_grad():
        model(input_ids=calibration)
    hook.remove()
    means = found.entries["blk.1.ffn_down.weight"].means
    torch.testing.assert_close(means[0], torch.cat(seen).square().mean(0), rtol=0.05, atol=1e-9)  # some CPUs multiply in BF16 in a walk
    assert found.entries[DOWN].counts.tolist() == [float(calibration.numel())]
    assert len(found.entries) == 14
    assert (found.chunks, found.chunk_size) == tuple(calibration.shape)
    halves = merged([(str(i), measure(tiny, part, ["random"], tmp_path, "cpu")) for i, part in enumerate(calibration.split(4))])
    torch.testing.assert_close(halves.entries[DOWN].means, found.entries[DOWN].means, rtol=0.01, atol=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("recipe", [GGUF("iq4_xs", "importance"), LlamaCpp("iq4_xs", "importance")], ids=lambda recipe: recipe.name)
def test_a_file_gives_what_the_text_gives(recipe: GGUF, tiny: OpenedModel, calibration: Tensor, importance: Path, tmp_path: Path) -> None:
    """The same bytes, in qlab's encoder and in llama.cpp's; and with a file no calibration is asked for."""
    filed = replace(recipe, imatrix=(ImatrixFile(importance),))
    assert recipe.data
    assert not filed.data
    read, measured = (quantize_model(tiny, [each], calibration, tmp_path / "out")[0] for each in (filed, recipe))
    ours, its = tensors(read), tensors(measured)
    assert all(np.array_equal(ours[name].data, its[name].data) for name in its)
    assert read.path.name != measured.path.name
    assert read.manifest["inputs"]["recipe"]["imatrix"] == [str(ImatrixFile(importance))]
    assert str(tmp_path) not in str(read.manifest)
    flat = Imatrix({name: Entry(torch.ones(1, 512 if "down" in name else 256), torch.ones(1)) for name in its if name.startswith("blk.")})
    write_imatrix(tmp_path / "flat.gguf", flat)
    (other,) = quantize_model(tiny, [replace(recipe, imatrix=(ImatrixFile(tmp_path / "flat.gguf"),))], calibration, tmp_path / "flat")
    assert not np.array_equal(tensors(other)[DOWN].data, ours[DOWN].data)


def test_with_a_file_codes_are_settled_by_the_calibration_text(
    tiny: OpenedModel, calibration: Tensor, importance: Path, tmp_path: Path
) -> None:
    recipe = replace(GGUF("q4_k_m"), imatrix=(ImatrixFile(importance),))
    assert recipe.data
    assert recipe.name == "q4_k_m-imatrix"
    settled, searched = quantize_model(tiny, [recipe, replace(recipe, search="importance")], calibration, tmp_path)
    assert settled.errors[f"model.layers.0.mlp.{'gate'}_proj"] > 0
    assert not np.array_equal(tensors(settled)[DOWN].data, tensors(searched)[DOWN].data)


def test_importance_of_another_model_is_refused_and_what_lacks_is_told(tiny: OpenedModel, tmp_path: Path) -> None:
    def using(entries: dict[str, Entry]) -> GGUF:
        write_imatrix(tmp_path / f"{len(list(tmp_path.iterdir()))}.gguf", Imatrix(entries))
        return GGUF("q4_k_m", imatrix=(ImatrixFile(sorted(tmp_path.iterdir())[-1]),))

    with pytest.raises(UserError, match=rf"{DOWN} in 0\.gguf has 100 values: expected 512, of 512 input channels"):
        fit(tiny, [using({DOWN: Entry(torch.ones(1, 100), torch.ones(1))})])
    with pytest.raises(UserError, match=r"1\.gguf knows none of this model's tensors"):
        fit(tiny, [using({"blk.7.ffn_down.weight": Entry(torch.ones(1, 512), torch.ones(1))})])
    partly = using({DOWN: Entry(torch.ones(1, 512), torch.ones(1))})
    fit(tiny, [partly])
    assert partly.remarks(tiny)["importance"] == (
        "the files know 1 of the blocks' 14 tensors; the others, blk.0.attn_q.weight among them, are searched without"
    )


def test_each_expert_has_an_importance_of_its_own(calibration: Tensor, tmp_path: Path) -> None:
    source = make(tmp_path / "source", FAMILIES["mixtral"])
    found = measure(source, calibration, ["random"], tmp_path, "cpu")
    experts = found.entries["blk.0.ffn_gate_exps.weight"]
    assert experts.sums.shape == (4, 64)
    assert len(set(experts.counts.tolist())) > 1  # the router does not share tokens out evenly
    write_imatrix(tmp_path / "i.gguf", found)
    recipe = GGUF("q4_k_m", "importance")
    filed = replace(recipe, imatrix=(ImatrixFile(tmp_path / "i.gguf"),))
    ours, its = (tensors(quantize_model(source, [each], calibration, tmp_path / "out")[0]) for each in (filed, recipe))
    assert all(np.array_equal(ours[name].data, its[name].data) for name in its)
    short = Imatrix({"blk.0.ffn_gate_exps.weight": Entry(torch.ones(3, 64), torch.ones(3))})
    write_imatrix(tmp_path / "short.gguf", short)
    with pytest.raises(UserError, match="has 192 values: expected 256, of 64 input channels of 4 experts"):
        fit(source, [replace(recipe, imatrix=(ImatrixFile(tmp_path / "short.gguf"),))])


@pytest.mark.gpu
def test_on_a_gpu_embedding_and_head_are_encoded_there(
    tiny: OpenedModel, calibration: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here")
    seen, encode = dict[str, str](), encoding.encode_tensor

    def watched(name: str, tensor: Tensor, *rest: Any) -> dict[str, Tensor]:
        seen[name] = tensor.device.type
        return encode(name, tensor, *rest)

    monkeypatch.setattr(encoding, "encode_tensor", watched)
    GGUF("q4_k_m", "plain").quantize(tiny, calibration, tmp_path, "cuda")
    assert seen[tiny.layout.embedding] == "cuda"
    assert set(seen.values()) == {"cuda"}


def test_what_is_encoded_outside_the_blocks(tiny: OpenedModel) -> None:
    embedding = tiny.layout.embedding
    assert all(recipe.encodes(tiny, embedding) for recipe in (GGUF(), GGUF("q8_0"), GGUF("f16", "plain", output_type="Q8_0")))
    assert not any(recipe.encodes(tiny, embedding) for recipe in (GGUF("f16"), LlamaCpp(), parse("gptq-w4g64"), parse("nf4")))
