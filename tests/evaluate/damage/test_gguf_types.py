"""A budget of bits spent on types of a GGUF file's tensors."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from torch import Tensor

from qlab.artifacts.artifact import quantize_model
from qlab.evaluate.damage.gguf_types import choose_types, types_in
from qlab.models.opening import OpenedModel
from qlab.recipes import GGUF
from qlab.support.errors import UserError


def test_a_gguf_files_types_are_chosen_by_what_they_cost(tiny: OpenedModel, calibration: Tensor, tmp_path: Path) -> None:
    recipe = GGUF("q4_k_m", "plain", (("ffn_gate", "Q8_0"),))
    chosen, told = choose_types(tiny, recipe, 4.6, types_in("q6_k,Q3_K, Q4_K,q8_0"), calibration[:2], "cpu")
    assert chosen.name == "q4_k_m-mixed4.6-plain"
    assert chosen.tensor_types[0] == ("ffn_gate", "Q8_0")
    (made,) = quantize_model(tiny, [chosen], calibration, tmp_path)
    (file,) = made.path.glob("*.gguf")
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    assert tensors["blk.0.ffn_gate.weight"].tensor_type.name == "Q8_0"
    free = [tensor for name, tensor in tensors.items() if name.startswith("blk.") and "norm" not in name and "ffn_gate" not in name]
    bits = 8 * sum(int(tensor.n_bytes) for tensor in free) / sum(int(tensor.n_elements) for tensor in free)
    assert 4.4 < bits <= 4.6
    assert told[0] == f"{bits:.3f} bits a weight of the 12 tensors whose types are chosen:"
    assert "one type" in told[-1]
    with pytest.raises(UserError, match="the smallest widths take"):
        choose_types(tiny, recipe, 3.0, types_in("Q4_K"), calibration[:2], "cpu")
    with pytest.raises(UserError, match="'Q7_K' is no quantized type"):
        types_in("Q7_K")
