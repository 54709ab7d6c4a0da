"""Drawings of the methods: a title from the numbers, alt text, no name of a colour that only one page has, and not too large."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from qlab.show.drawing import INK, Drawing
from qlab.show.methods.columns import column_picture
from qlab.show.methods.levels import levels_picture
from qlab.show.methods.nested import nested_picture
from qlab.show.methods.order import order_picture
from qlab.show.methods.outlier import outlier_picture
from qlab.show.methods.spectrum import spectrum_picture
from qlab.show.methods.superblock import superblock_picture
from qlab.workbook.drawn.columns import column_by_column
from qlab.workbook.drawn.nested import nested_bytes
from qlab.workbook.drawn.order import GIVEN, LARGEST, in_orders
from qlab.workbook.drawn.outlier import outlier_of
from qlab.workbook.drawn.spectrum import spectrum
from qlab.workbook.exercises.superblock import superblock_of
from qlab.workbook.language.spoken import VARIABLE

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(32, 256, generator=GENERATOR)
WEIGHT[:, 9] *= 10
INPUTS = torch.randn(300, 256, generator=GENERATOR) + torch.randn(300, 1, generator=GENERATOR)
HESSIAN = INPUTS.T @ INPUTS
PHONE = 380  # points: an SVG is no wider where it is to be read on a phone


def walk_picture(column: int) -> Drawing:
    return column_picture(column_by_column(WEIGHT[:12, :16], HESSIAN[:16, :16], 4), column)


def every_drawing() -> dict[str, Drawing]:
    return {
        "Column 3 of 16, its error moves the 13 to come": walk_picture(3),
        "Column 16 of 16, the last": walk_picture(16),
        "Sub-block 6: 16 values in steps of 0.1": superblock_picture(*superblock_of(WEIGHT), 6),
        "The outlier of q, made 4 times as large, makes its group's steps": outlier_picture(outlier_of("q", WEIGHT, 128, 4), 4),
        "q: 0% of H's eigenvalues": spectrum_picture("q", spectrum(HESSIAN + 10 * torch.eye(256)), (0.01, 1.0)),
        "q, all 256 columns, rounded: ": order_picture("q", in_orders(WEIGHT, HESSIAN, 4), 100),
        "q, all 256 columns, 30 % rounded: damped output error so far": order_picture("q", in_orders(WEIGHT, HESSIAN, 4), 30),
        "q: double quantization lowers 4.500 bits a weight to ": nested_picture("q", nested_bytes(WEIGHT)),
    }


def test_every_drawing_says_its_finding_and_its_numbers_and_fits_a_phone() -> None:
    for title, drawing in every_drawing().items():
        words, svg = drawing.words(), drawing.svg()
        assert words.startswith(title), words
        assert "\n" not in words
        assert drawing.values
        assert INK not in svg
        assert len(svg) < 120_000, (title, len(svg))
        assert float(re.search(r'width="([\d.]+)pt"', svg)[1]) < PHONE  # type: ignore[index]
        sizes = [float(size) for size in re.findall(r"font(?:-size)?: (?:[a-z]+ )?([\d.]+)px", svg)]
        assert min(sizes) >= 8, (title, sizes)


def test_a_title_follows_the_numbers() -> None:
    walk = column_by_column(WEIGHT[:12, :16], HESSIAN[:16, :16], 4)
    compensating, plain = walk.output_errors[7]
    assert f"output error so far: {compensating / plain:.0%} of plain" in column_picture(walk, 8).words()
    found = outlier_of("q", WEIGHT, 128, 4).enlarged(2)
    assert f"the others' error {found.harm:.1f} times as large" in outlier_picture(outlier_of("q", WEIGHT, 128, 4), 2).words()


def test_the_title_of_levels_says_how_evenly_they_are_used() -> None:
    drawing = levels_picture("q", torch.randn(64, 64, generator=torch.Generator().manual_seed(1)))
    assert re.match(r"q: NF4's fullest level holds \d+% of the weights, the fullest of 16 uniform ones \d+%\.", drawing.words())


def test_what_scales_take_has_its_names_in_french(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "fr")
    drawing = nested_picture("q", nested_bytes(WEIGHT))
    assert [label.get_text() for label in drawing.axes[0].get_yticklabels()] == ["simple", "double"]
    assert {"bits par poids, simple", "octets (codes), double"} <= drawing.values.keys()


def test_tiles_take_the_sign_for_the_colour_and_the_size_for_how_much_shows_through() -> None:
    drawing = walk_picture(5)
    picture = drawing.axes[1].images[0].get_array()
    walk = column_by_column(WEIGHT[:12, :16], HESSIAN[:16, :16], 4)
    moves = walk.updates(4)
    moves[:, 4] = walk.error(4)
    assert (picture[:, :4, 3] == 0).all()  # columns before are not moved
    torch.testing.assert_close(torch.tensor(picture[..., 3], dtype=torch.float32), (moves.abs() / walk.updates(4).abs().max()).clamp(max=1))
    assert (picture[..., 0] > 0.5).tolist() == (moves <= 0).tolist()  # orange below zero


def test_the_orders_of_some_columns_say_so_and_whether_the_order_helps() -> None:
    found = in_orders(WEIGHT, HESSIAN, 4)
    some = order_picture("q", replace(found, channels=4096), 100)
    assert some.words().startswith("q, 256 of its 4,096 columns, rounded: ")
    assert "output error by damped H, %" in {axes.get_ylabel() for axes in some.axes}
    assert all(name.startswith("damped output error, ") for name in some.values)
    first, given = (found.orders[name] for name in (LARGEST, GIVEN))
    said = [order_picture("q", replace(found, orders={**found.orders, **turned}), 100).words() for turned in (
        {LARGEST: replace(first, so_far=given.so_far * 0.5)}, {LARGEST: replace(first, so_far=given.so_far * 2)},
    )]  # fmt: skip
    assert "the largest inputs first leave 50% of the damped output error" in said[0]
    assert "the largest inputs first do not help, 200% of the damped output error" in said[1]


def test_the_spectrum_of_some_channels_says_so() -> None:
    found = spectrum(HESSIAN + 10 * torch.eye(256))
    whole, some = (spectrum_picture("q", of, (0.01,)).get_suptitle() for of in (found, replace(found, channels=1024)))
    assert "channels" not in whole
    assert "q, 256 of its 1,024 channels: 0%" in " ".join(some.split())
