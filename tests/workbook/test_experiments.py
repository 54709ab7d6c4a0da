"""What lessons compute on the way to a figure."""

import pytest

from qlab.workbook import experiments


def test_where_it_helps_counts_harm_and_sees_whether_unevenness_goes_with_the_gain() -> None:
    plain = {f"model.layers.0.mlp.{kind}": 1.0 for kind in ("up_proj", "down_proj", "gate_proj")}
    own = dict(zip(plain, (0.5, 1.25, 0.9), strict=True))
    uneven = {"0.up_proj": 9.0, "0.down_proj": 1.0, "0.gate_proj": 3.0}
    table = experiments.layer_changes(plain, {"way": own}, uneven)
    assert table["removed"].tolist() == pytest.approx([50, -25, 10])
    (sentence,) = experiments.where_it_helps(table)
    assert "1 of 3 layers made worse, worst 0.down_proj by 25.0 %" in sentence
    assert "rank correlation of unevenness and gain +1.00" in sentence
