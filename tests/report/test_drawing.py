"""Pictures for terminals and notebooks."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import reshard
from making import counted, write_ranks, write_strategy
from reshard.drawing import panels, spans, svg, text
from reshard.layout.tensor import Layout, Sharding
from reshard.ops.options import Options


def cells_of(html: str) -> list[str]:
    """What the parts of a drawing say when pointed at, in order."""
    return [g.findtext("{*}title") or "" for g in ET.fromstring(html).iter("{http://www.w3.org/2000/svg}g")]


def test_a_layout_is_drawn_as_it_cuts() -> None:
    layout = Layout((8, 4), Sharding((2, 2), ((0,), ()), -1))
    assert repr(layout) == "<layout: [8, 4] in [4, 1] parts on 4 ranks>"
    assert cells_of(layout._repr_html_()) == ["rank 0", "rank 2", "rank 1", "rank 3"]
    assert layout._repr_html_().count("stroke-dasharray") == 2


def test_three_cut_dims_are_several_panels() -> None:
    assert [title for title, _ in panels((2, 2, 3))] == [f"dim 2: part {i} of 3" for i in (1, 2, 3)]
    drawn = svg((4, 4, 6), (2, 2, 3), 1, [(i,) for i in range(12)])
    assert drawn.count("<svg") == 3
    assert cells_of(drawn)[:4] == ["rank 0", "rank 3", "rank 6", "rank 9"]
    assert sum(line.startswith("dim 2: part") for line in text((4, 4, 6), (2, 2, 3), [(i,) for i in range(12)])) == 3


def test_large_cuts_are_cut_short() -> None:
    lines = text((4096, 4096), (64, 64), [(i,) for i in range(4096)])
    assert len(lines) < 40
    assert max(map(len, lines)) < 120
    assert any("..." in line for line in lines)
    assert "too many parts" in svg((4096, 4096), (64, 64), 1, [(i,) for i in range(4096)])


@pytest.mark.parametrize(("shape", "parts"), [((), ()), ((0, 3), (1, 1)), ((6,), (3,)), ((1, 1), (1, 1))])
def test_small_ones(shape: tuple[int, ...], parts: tuple[int, ...]) -> None:
    holders = [(0,)] * max(1, *parts, 1)
    assert text(shape, parts, holders)[-1].startswith("+-")
    assert cells_of(svg(shape, parts, 1, holders)) == ["rank 0"] * len(holders)


def test_a_part_that_none_holds() -> None:
    assert "| MISSING |" in text((2,), (1,), [()])
    assert cells_of(svg((2,), (1,), 1, [()])) == ["missing"]


def test_spans() -> None:
    assert [spans(n) for n in ([], [3], [0, 1, 2, 5, 7, 8])] == ["", "3", "0-2,5,7-8"]


def test_checkpoint_and_plan_in_a_notebook(tmp_path: Path) -> None:
    full = {f"layers.{i}.<w>": counted(4, 4) for i in range(3)}
    stages = [{name: Sharding((2, 2), ((0,), ())) for name in full}]
    write_ranks(tmp_path / "ckpt", full, stages)
    strategy = write_strategy(tmp_path / "strategy", stages)
    checkpoint = reshard.open(tmp_path / "ckpt", strategy)
    shown = checkpoint._repr_html_()
    assert "layers.#.&lt;w&gt; × 3" in shown
    assert "<w>" not in shown
    assert cells_of(checkpoint["layers.1.<w>"]._repr_html_()) == ["rank 0,2", "rank 1,3"]
    plan = reshard.plan(tmp_path / "ckpt", tmp_path / "out", Options(src_strategy=str(strategy)))
    assert repr(plan).startswith("<plan: 3 tensors, ")
    assert len(repr(plan)) < 120
    assert "layers.#.&lt;w&gt; × 3</td><td>float32</td><td>4×4</td>" in plan._repr_html_()
    assert cells_of(plan._repr_html_()) == ["rank 0"]
