"""DCP folders of any chunks that tile their tensors, and those that we write of any tensors: what goes in comes out."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from random_boxes import shapes, tilings

import reshard
from families.test_dcp import tell, written
from making import array, differing, read_file, same, write_file
from reshard import Options
from reshard.layout.box import Box
from thorough import examples

EXAMPLES = examples(7)
DTYPES = ("float32", "bfloat16", "int8", "bool", "float64", "float8_e5m2", "uint16")


def back(folder: Path, **options: object) -> dict[str, np.ndarray]:
    reshard.convert(folder, folder.parent / "out.safetensors", Options(fsync=False, **options))  # type: ignore[arg-type]
    return read_file(folder.parent / "out.safetensors")


@given(data=st.data(), shape=shapes, dtype=st.sampled_from(DTYPES), files=st.integers(1, 3))
@EXAMPLES
def test_chunks_that_tile_are_read(data: st.DataObject, shape: tuple[int, ...], dtype: str, files: int) -> None:
    full = array(shape, dtype, seed=1)
    whole = Box.whole(shape)
    held: dict[str, list[tuple[str, tuple[int, ...], np.ndarray]]] = {}
    for box in data.draw(tilings(whole)):
        path = f"__{data.draw(st.integers(0, files - 1))}_0.distcp"
        part = np.ascontiguousarray(full[box.within(whole)]).reshape(box.shape)
        held.setdefault(path, []).append(("w", box.start, part))
    with TemporaryDirectory() as place:
        chunks = written(Path(place) / "c", held)["w"]
        found = back(tell(Path(place) / "c", {"w": (shape, chunks)}, dtype))
    assert same(found["w"], full)


@given(kinds=st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1, max_size=5), files=st.integers(1, 6))
@EXAMPLES
def test_what_is_written_comes_back(kinds: list[tuple[tuple[int, ...], str]], files: int) -> None:
    full = {f"layers.{n}.w": array(shape, dtype, seed=n) for n, (shape, dtype) in enumerate(kinds)}
    with TemporaryDirectory() as place:
        source = write_file(Path(place) / "full.safetensors", full)
        reshard.convert(source, Path(place) / "dcp", Options(to="dcp", files=files, fsync=False))
        found = back(Path(place) / "dcp", crc=True)
    assert differing(found, full) == []
