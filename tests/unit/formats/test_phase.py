"""Safetensors files laid out so that tensors lie in blocks as they do elsewhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reshard.formats.base import Phases
from reshard.formats.safetensors import Safetensors
from reshard.index import TensorSpec
from reshard.testing.formats import MemoryFile
from thorough import examples

BLOCK = 64
DTYPES = ("float64", "float32", "bfloat16", "uint8")
SPECS = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.builds(TensorSpec, st.sampled_from(DTYPES), st.tuples(st.integers(0, 40))),
    max_size=12,
)


def content(specs: dict[str, TensorSpec], begins: dict[str, int]) -> bytes:
    frame = Safetensors().frame_in_phase(specs, {}, {"format": "pt"}, Phases(BLOCK, begins))
    ((at, header),) = frame.pieces
    assert at == 0
    return header + bytes(frame.nbytes - len(header))


@examples(25)
@given(SPECS, st.data())
def test_every_tensor_is_there_and_begins_at_a_multiple_of_its_elements(
    specs: dict[str, TensorSpec], data: st.DataObject
) -> None:
    begins = data.draw(st.fixed_dictionaries({}, optional=dict.fromkeys(specs, st.integers(0, BLOCK - 1))))
    read = Safetensors().read_index(MemoryFile(content(specs, begins)))
    assert {name: stored.spec for name, stored in read.tensors.items()} == specs
    assert all(stored.extents[0].offset % specs[name].itemsize == 0 for name, stored in read.tensors.items())


def places(specs: dict[str, TensorSpec], begins: dict[str, int]) -> dict[str, int]:
    read = Safetensors().read_index(MemoryFile(content(specs, begins)))
    return {name: stored.extents[0].offset % BLOCK for name, stored in read.tensors.items()}


def test_the_header_brings_the_first_to_its_place() -> None:
    whole = TensorSpec("float32", (BLOCK,))
    assert places({"a": whole, "b": whole}, {"a": 24, "b": 24}) == {"a": 24, "b": 24}


def test_those_that_keep_the_place_come_first() -> None:
    whole, odd = TensorSpec("float32", (BLOCK,)), TensorSpec("float32", (BLOCK + 3,))
    specs = {"a": odd, "b": whole, "c": odd, "d": whole}
    assert places(specs, dict.fromkeys(specs, 8)) == {"b": 8, "d": 8, "a": 8, "c": 20}


def test_a_chain_as_in_the_source_is_kept() -> None:
    """Tensors that lie one after the other there lie so here, whatever their names."""
    sizes = {"z": 5, "b": 9, "y": 1, "a": 30}
    specs = {name: TensorSpec("float32", (n,)) for name, n in sizes.items()}
    at, begins = 16, {}
    for name, n in sizes.items():
        begins[name], at = at % BLOCK, at + 4 * n
    begins = {name: place for name, place in begins.items() if place % 8 == 0}
    found = places(specs, begins)
    assert {name: found[name] for name in begins} == begins


def test_wide_elements_come_before_narrow_ones() -> None:
    """The most bytes decide where the header ends: here those of the second width."""
    specs = {"w": TensorSpec("float32", (2,)), "h": TensorSpec("bfloat16", (1024,))}
    assert places(specs, {"h": 40}) == {"w": 32, "h": 40}
