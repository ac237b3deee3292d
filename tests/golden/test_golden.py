"""Every golden case through reshard's command line, compared tensor by tensor with MindSpore's answer."""

from pathlib import Path

import numpy as np
import pytest

from golden.cases import BY_LORA_TOOL, BY_UNIFY, NAMES, about, check, faults, nearly
from golden.readers import Value


@pytest.mark.parametrize("name", sorted({*NAMES} - {*BY_LORA_TOOL, *BY_UNIFY}))
def test_case(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check(name, tmp_path, capsys)


def test_cases_are_named_by_what_made_them() -> None:
    for name in NAMES:
        api = about(name)["api"]
        assert (name in BY_UNIFY, name in BY_LORA_TOOL) == ("unified" in api, "lora" in api)


def test_the_copy_is_small() -> None:
    nbytes = sum(p.stat().st_size for p in Path(__file__).parent.rglob("*") if p.is_file())
    assert nbytes < 15_000_000


def test_faults_are_seen() -> None:
    one = Value("Int8", (2,), b"ab")
    theirs = {"same": one, "absent": one, "type": one, "shape": one, "bytes": one}
    ours = {"same": one, "type": Value("UInt8", (2,), b"ab"), "shape": Value("Int8", (2, 1), b"ab"), "more": one}
    ours["bytes"] = Value("Int8", (2,), b"aB")
    assert [line.split(":")[0] for line in faults(ours, theirs)] == ["absent", "bytes", "more", "shape", "type"]


def test_nearly_is_near() -> None:
    def value(number: float, steps: int = 0) -> Value:
        bits = np.array([number], np.float32).view(np.int32) + np.int32(steps)
        return Value("Float32", (1,), bits.tobytes())

    assert nearly(value(1.5), value(1.5, 8))
    assert not nearly(value(1.5), value(1.5, 9))
    assert nearly(value(0.0), value(-0.0))
    assert not nearly(value(0.0), value(1e-9))
    assert not nearly(value(1.5), value(-1.5))
    pairs = [np.array([small, 1.5], np.float32).tobytes() for small in (1e-7, -1e-7, 1e-5)]
    pair = [Value("Float32", (2,), content) for content in pairs]
    assert nearly(pair[0], pair[1])
    assert not nearly(pair[0], pair[2])
    halves = [Value("BFloat16", (1,), bytes([n, 0x3F])) for n in (0x80, 0x81, 0x82)]
    assert nearly(halves[0], halves[1])
    assert not nearly(halves[0], halves[2])
    whole = [Value("Int32", (1,), bytes([n, 0, 0, 0])) for n in (0, 1)]
    assert not nearly(whole[0], whole[1])
