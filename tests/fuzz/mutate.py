"""Changes to a file as damage and malice make them: bytes, and values of JSON."""

from __future__ import annotations

import json
from random import Random
from typing import Any

_NUMBERS = (0, 1, -1, 127, 255, 65536, (1 << 31) - 1, 1 << 32, (1 << 53) + 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1)
_VALUES: tuple[Any, ...] = (
    None, True, False, 0.5, float("nan"), float("inf"), 1e308, 10**40, "", "x", "\ud800", "../../x", "a\0b",
    "∞" * 50, [], {}, [[]], [-1], {"": None}, *_NUMBERS,
)  # fmt: skip


def mutate(data: bytes, random: Random, *, as_json: bool) -> bytes:
    """One to eight changes."""
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        if as_json and random.random() < 0.7:
            data = b"\n".join(_json(line, random) for line in data.split(b"\n"))
        else:
            data = bytes(_bytes(bytearray(data), random))
    return data


def _bytes(data: bytearray, random: Random) -> bytearray:
    at = random.randrange(len(data) + 1)
    end = min(len(data), at + random.choice((1, 1, 2, 4, 8, 64, 1024)))
    kind = random.randrange(8)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << random.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = random.choice((0, 1, 2, 8, 10, 18, 127, 128, 255, random.randrange(256)))
    elif kind == 2:
        del data[at:end]
    elif kind == 3:
        del data[at:]
    elif kind == 4:
        data[at:at] = data[at:end] * random.choice((1, 2, 100))
    elif kind == 5:
        number = random.choice(_NUMBERS) & (1 << 64) - 1
        data[at : at + 8] = number.to_bytes(8, random.choice(("little", "big")))
    elif kind == 6:
        data[at : at + random.randrange(10)] = _varint(random.choice(_NUMBERS) & (1 << 64) - 1)
    else:
        data[at:at] = random.randbytes(random.choice((1, 3, 16)))
    return data


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes(out) + bytes([value])


def _json(line: bytes, random: Random) -> bytes:
    """A line that is JSON with one of its values, keys or lists changed; another line as it is."""
    try:
        changed = _node(json.loads(line), random, depth=random.randrange(1, 7))
        return json.dumps(changed, ensure_ascii=random.random() < 0.8).encode("utf-8", "surrogatepass")
    except (ValueError, RecursionError):
        return line


def _node(content: Any, random: Random, depth: int) -> Any:
    if depth and isinstance(content, dict) and content:
        key = random.choice(list(content))
        if random.random() < 0.1:
            return {**content, random.choice(("", "x", "\ud800", key + "x")): content[key]}
        if random.random() < 0.1:
            return {k: v for k, v in content.items() if k != key}
        return {**content, key: _node(content[key], random, depth - 1)}
    if depth and isinstance(content, list) and content:
        at = random.randrange(len(content))
        if random.random() < 0.2:
            return content[:at] + content[at:] * random.choice((0, 2, 40))
        return [*content[:at], _node(content[at], random, depth - 1), *content[at + 1 :]]
    if random.random() < 0.05:
        return json.loads("[" * 500 + "]" * 500)
    return random.choice(_VALUES)
