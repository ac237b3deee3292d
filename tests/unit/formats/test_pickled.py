from __future__ import annotations

import os
import pickle
import subprocess
from collections import Counter, OrderedDict, defaultdict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reshard.errors import FormatError
from reshard.formats.pickle_paths import paths, within
from reshard.formats.pickled import Global, Record
from reshard.formats.torch_values import read_value
from thorough import examples

PROTOCOLS = (2, 3, 4, 5)
KEYS = st.one_of(st.text(max_size=5), st.integers(), st.booleans(), st.none(), st.binary(max_size=3))
PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(max_size=9),
        st.binary(max_size=300),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(KEYS, inner, max_size=4),
        st.sets(KEYS, max_size=3),
        st.frozensets(KEYS, max_size=3),
    ),
    max_leaves=12,
)


class Ours:
    def __init__(self) -> None:
        self.number = 3


class OurDict(dict):  # type: ignore[type-arg]
    pass


class Runs:
    """What a hostile file holds: a call that does something."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.made = (call, args)

    def __reduce__(self) -> Any:
        return self.made


def value(data: bytes) -> Any:
    return read_value(data).value


@examples(25)
@given(tree=PLAIN, protocol=st.sampled_from(PROTOCOLS))
def test_plain_values_are_what_pickle_reads(tree: Any, protocol: int) -> None:
    assert value(pickle.dumps(tree, protocol)) == tree


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_containers_of_python_are_plain(protocol: int) -> None:
    tree = [OrderedDict(a=1, b=2), Counter("aab"), defaultdict(list, {"x": [1]}), bytearray(b"\0\xff"), 1 + 2j]
    assert value(pickle.dumps(tree, protocol)) == [{"a": 1, "b": 2}, {"a": 2, "b": 1}, {"x": [1]}, b"\0\xff", 1 + 2j]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_is_shared_stays_shared_and_cycles_close(protocol: int) -> None:
    inner = [1]
    tree: dict[str, Any] = {"a": inner, "b": inner}
    tree["self"] = tree
    found = value(pickle.dumps(tree, protocol))
    assert found["a"] is found["b"]
    assert found["self"] is found


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_objects_are_records_and_are_counted(protocol: int) -> None:
    found = read_value(pickle.dumps([Ours(), Ours(), OurDict(a=1)], protocol))
    kind = f"{__name__}.Ours"
    assert [str(one.factory) for one in found.value] == [kind, kind, f"{__name__}.OurDict"]
    assert found.value[0].fields == {"number": 3}
    assert found.value[2].items == [("a", 1)]
    assert found.unknown == {kind: 2, f"{__name__}.OurDict": 1}


def test_a_pickle_may_be_read_as_it_comes() -> None:
    data = pickle.dumps({"a": list(range(100)), "b": "x" * 1000}, 4) + b"what follows"
    asked: list[int] = []

    def more(at: int, nbytes: int) -> bytes:
        asked.append(at)
        return data[at : at + nbytes]

    found = read_value(b"", None, more)
    assert found.value["b"] == "x" * 1000
    assert data[found.end :] == b"what follows"
    assert len(asked) < 20


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("made", "named"),
    [
        (Runs(os.system, "touch /tmp/evil"), "posix.system"),
        (Runs(eval, "1"), "builtins.eval"),
        (Runs(exec, "1"), "builtins.exec"),
        (Runs(compile, "1", "", "eval"), "builtins.compile"),
        (Runs(__import__, "os"), "builtins.__import__"),
        (Runs(open, "x"), "open: this file"),
        (Runs(getattr, Ours, "number"), "builtins.getattr"),
        (Runs(subprocess.run, "x"), "subprocess.run"),
        (Runs(subprocess.Popen, "x"), "subprocess.Popen"),
        (Runs(pickle.loads, b""), "pickle.loads"),
        (os.system, "posix.system"),
        ({"deep": [(Runs(os.popen, "x"),)]}, "os.popen"),
        (Runs(Ours, getattr), "builtins.getattr"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_runs_code_is_refused_by_name(made: Any, named: str, protocol: int) -> None:
    with pytest.raises(FormatError, match="this file runs code when loaded") as caught:
        value(pickle.dumps(made, protocol))
    assert named in caught.value.message


def stack_global(module: str, name: str) -> bytes:
    return b"".join(b"\x8c" + bytes([len(text)]) + text.encode() for text in (module, name)) + b"\x93"


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch.serialization", "os.system"),
        ("torch.serialization", "os"),
        ("collections", "OrderedDict.__subclasses__"),
        ("collections", "abc.sys.modules"),
        ("torch.hub", "load"),
        ("torch.utils.cpp_extension", "load_inline"),
        ("importlib", "import_module"),
        ("runpy", "run_path"),
        ("nt", "system"),
        ("operator", "attrgetter"),
        ("__builtin__", "apply"),
    ],
)
def test_names_that_lead_to_code_are_refused(module: str, name: str) -> None:
    with pytest.raises(FormatError, match="this file runs code when loaded"):
        value(b"\x80\x04" + stack_global(module, name) + b".")


@pytest.mark.parametrize(("module", "name"), [("mine", "Config.Inner"), ("builtins", "ValueError"), ("mine", "make")])
def test_names_of_somebodys_own_are_inert(module: str, name: str) -> None:
    assert value(b"\x80\x04" + stack_global(module, name) + b")\x81.") == value_of(Record(Global(module, name)))


class value_of:
    """Compares a record by what it holds."""

    def __init__(self, record: Record) -> None:
        self.parts = (record.factory, record.args, record.state, record.items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.parts == (other.factory, other.args, other.state, other.items)

    def __hash__(self) -> int:
        return hash(self.parts[0])


def test_the_one_use_of_getattr_that_files_make() -> None:
    kind = stack_global("torch.distributed._shard.sharded_tensor.metadata", "MEM_FORMAT_ENCODING")
    data = b"\x80\x04" + stack_global("builtins", "getattr") + kind + b"\x8c\x10TORCH_CONTIGUOUS\x86R."
    assert value(data).name == "MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS"
    with pytest.raises(FormatError, match=r"builtins\.getattr"):
        value(data.replace(b"\x8c\x10TORCH_CONTIGUOUS", b"\x8c\x05__new"))


@pytest.mark.parametrize("spec", ["api.EnumerableShardingSpec", "chunk_sharding_spec.ChunkShardingSpec"])
def test_how_a_sharded_tensor_is_cut_is_no_unknown_class(spec: str) -> None:
    """FSDP1 has the first of what has fewer rows than there are ranks."""
    module, name = spec.split(".")
    cut = stack_global(f"torch.distributed._shard.sharding_spec.{module}", name)
    assert not read_value(b"\x80\x04" + cut + b")\x81}b.").unknown


@pytest.mark.parametrize("by_name", [False, True])
def test_a_class_within_a_class_is_one_class_however_it_is_named(by_name: bool) -> None:
    module, within = "torch.distributed._shard.sharded_tensor.api", "ShardedTensor.ProcessGroupState"
    outer, inner = within.split(".")
    got = stack_global("builtins", "getattr") + stack_global(module, outer) + b"\x8c\x11" + inner.encode() + b"\x86R"
    found = read_value(b"\x80\x04" + (stack_global(module, within) if by_name else got) + b")\x81}b.")
    assert found.value.factory == Global(module, within)
    assert not found.unknown
    with pytest.raises(FormatError, match=r"builtins\.getattr"):
        value(b"\x80\x04" + got.replace(inner.encode(), b"from_dict_of_type") + b".")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "ends where"),
        (b"\x80\x02", "ends where"),
        (b"\x80\x02.", "takes a value where there is none"),
        (b"\x80\x06N.", "protocol 6"),
        (b"\x80\x02X\xff\xff\xff\x7fab.", "ends where"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\xff.", "ends where"),
        (b"\x80\x02Nr\xff\xff\xff\xff.", "4,294,967,295 in the memo"),
        (b"\x80\x02h\x01.", "takes value 1 of its memo"),
        (b"\x80\x02" + b"(" * 1001, "nested more than 1000 deep"),
        (b"\x80\x02]]s.", "where there is none"),
        (b"\x80\x02}]Ns.", "a list as a key"),
        (b"\x80\x02})\x85Ns.", "a tuple as a key"),
        (b"\x80\x02}(Nu.", "a key without a value"),
        (b"\x80\x02NNa.", "appends to a NoneType"),
        (b"\x80\x02N)R.", "calls a NoneType"),
        (b"\x80\x02cmine\nX\n)R)R.", "calls a Record"),
        (b"\x80\x02cmine\nX\nNR.", "no arguments"),
        (b"\x80\x02NQ.", "no storage"),
        (b"\x80\x02(lp0\n.", "opcode b'l'"),
        (b"\x80\x02X\x01\x00\x00\x00\xff.", "not UTF-8"),
        (b"\x80\x02t.", "a mark that was not set"),
    ],
)
def test_damage_is_told(data: bytes, said: str) -> None:
    with pytest.raises(FormatError, match="(?s)" + said):
        value(data)


def test_a_bomb_costs_what_its_file_costs() -> None:
    tree: list[Any] = []
    for _ in range(40):
        tree = [tree, tree]
    data = pickle.dumps(tree, 2)
    found = value(data)
    with pytest.raises(FormatError, match="a bomb"):
        list(paths(found, len(data)))
    assert len(list(within(found))) == 41


def test_depth_is_limited_where_values_are_told() -> None:
    deep = b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."
    with pytest.raises(FormatError, match="nested more than 1000 deep"):
        list(paths(value(deep), len(deep)))
    assert sum(1 for _ in within(value(deep))) == 5000


def test_paths_join_keys_by_dots_and_do_not_follow_cycles() -> None:
    tree: dict[Any, Any] = {"a.b": {0: 1, "": 2}, "": 3, 5: [4, (5, {})]}
    tree["a.b"]["up"] = tree
    assert list(paths(tree, 100)) == [("a.b.0", 1), ("a.b.", 2), ("", 3), ("5.0", 4), ("5.1.0", 5)]
