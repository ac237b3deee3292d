"""What is wrong with a recipe, entry by entry: all of it, before anything is made of it."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from reshard.closest import closest, did_you_mean
from reshard.errors import StrategyError
from reshard.names.dims import AXIS_OF, NUMBERED, Dims, parsed, section_of
from reshard.names.wishes import CONVENTIONS, HUB
from reshard.strategy.expression import names_in, parse

Path = tuple[str | int, ...]

_KEYS = ("convention", "models", "settings", "axes", "defaults", "drop", "styles", "blocks", "needs")
_BLOCK = ("hf", "own", "kind", "tensors")
_GROUP = ("styles", "kind", "tensors")
_STYLE = ("told", "default", "ask", "fused_with")
_TENSOR = (
    *("hf", "own", "dims", "hf_dims", "own_dims", "own_dims_3", "part_dims", "parts_dims", "styles", "when"),
    *("optional", "biases", "required", "dtype", "hf_dtype", "copy_of", "tied", "kind"),
)
_LISTS, _MAPS = ("models", "needs", "drop", "blocks"), ("settings", "axes", "defaults", "styles")
_MORE = ("release", "shards")
"""Names in expressions that no setting tells."""
_COMPOSED = re.compile(r"[a-z_0-9]+( [a-z_0-9]+)+")


class RecipeFault(Struct, frozen=True):
    """``path``: the keys and numbers that lead to what is wrong."""

    path: Path
    text: str


class _TensorEntry(Struct, frozen=True):
    """An entry with all that it stands in."""

    path: Path
    entry: Mapping[str, Any]
    hub: str
    own: str
    styles: Mapping[str, Any]


def faults(content: object, shared: Mapping[str, Any]) -> list[RecipeFault]:
    """What is wrong, in the order of the file; ``shared`` is what all recipes have in common."""
    if not isinstance(content, dict):
        return [RecipeFault((), "expected a map")]
    shape = [*_unknown((), content, _KEYS), *_kinds(content)]
    return shape or list(_Checking(content, shared).faults())


def line_of(text: str, path: Path) -> int:
    """The line, from 1, at which the last step of a path stands that is there."""
    import yaml

    node, line = yaml.compose(text, yaml.SafeLoader), 1
    for step in path:
        if isinstance(node, yaml.MappingNode):
            pairs: Sequence[tuple[Any, Any]] = [(key, value) for key, value in node.value if key.value == str(step)]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            pairs = [(node.value[step], node.value[step])]
        else:
            pairs = []
        if not pairs:
            break
        at, node = pairs[0]
        line = at.start_mark.line + 1
    return line


def _unknown(path: Path, entry: Mapping[str, Any], known: Sequence[str]) -> Iterator[RecipeFault]:
    for key in entry:
        if key not in known:
            meant = did_you_mean(closest(str(key), known, most=1)) or f"known: {', '.join(known)}"
            yield RecipeFault((*path, key), f"{key!r} is not known; {meant}")


def _kinds(content: Mapping[str, Any]) -> Iterator[RecipeFault]:
    if content.get("convention") not in CONVENTIONS or content["convention"] == HUB:
        told = ", ".join(c for c in CONVENTIONS if c != HUB)
        yield RecipeFault(("convention",), f"convention {content.get('convention')!r}, expected one of: {told}")
    for key in (*_LISTS, *_MAPS):
        kind = list if key in _LISTS else dict
        if not isinstance(content.get(key, kind()), kind):
            yield RecipeFault((key,), f"{key}: {content[key]!r}, expected a {'list' if kind is list else 'map'}")
    if not content.get("blocks"):
        yield RecipeFault(("blocks",), "no blocks: it has no tensors")


class _Checking:
    def __init__(self, content: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
        self._content = content
        settings = {**shared.get("settings", {}), **content.get("settings", {})}
        self._axes = {**shared.get("axes", {}), **content.get("axes", {})}
        self._names = {*settings, *_MORE}
        self._sizes = {*self._names, *self._axes}
        self._styles: dict[str, Any] = content.get("styles", {})
        self._shape: list[RecipeFault] = []
        self._tensors = [
            tensor for number, block in enumerate(content["blocks"]) for tensor in self._block(number, block)
        ]
        self._hub_names = {
            tensor.hub + name for tensor in self._tensors for name in _sections(tensor.entry.get("hf")).values()
        }

    def faults(self) -> Iterator[RecipeFault]:
        yield from self._of_the_file()
        yield from self._shape
        for tensor in self._tensors:
            yield from self._of_tensor(tensor)
        yield from self._twice()
        for style in self._styles if not self._shape else ():
            yield from self._of_style(style)

    def _of_the_file(self) -> Iterator[RecipeFault]:
        for key, keys in self._content.get("settings", {}).items():
            if not isinstance(keys, list):
                yield RecipeFault(("settings", key), f"settings {key}: {keys!r}, expected a list of keys")
        for key, value in self._content.get("axes", {}).items():
            if isinstance(value, str) and _COMPOSED.fullmatch(value):
                yield from self._axes_known(("axes", key), value.split())
            else:
                yield from self._expression(("axes", key), value, self._sizes)
        for key, value in self._content.get("defaults", {}).items():
            yield from self._expression(("defaults", key), value, self._sizes)
        for number, entry in enumerate(self._content.get("drop", [])):
            yield from _of_drop(("drop", number), entry)
        for number, name in enumerate(self._content.get("needs", [])):
            yield from _of_pattern(("needs", number), "needs", name)

    def _block(self, number: int, block: object) -> Iterator[_TensorEntry]:
        path = ("blocks", number)
        if not isinstance(block, dict):
            self._shape.append(RecipeFault(path, f"{block!r}, expected a map"))
            return
        self._shape += _unknown(path, block, _BLOCK)
        place = _TensorEntry(path, block, str(block.get("hf", "")), str(block.get("own", "")), {})
        yield from self._entries(place)

    def _entries(self, around: _TensorEntry) -> Iterator[_TensorEntry]:
        entries, path = around.entry.get("tensors"), (*around.path, "tensors")
        if not isinstance(entries, list):
            self._shape.append(RecipeFault(path, f"tensors: {entries!r}, expected a list"))
            return
        for number, entry in enumerate(entries):
            at = (*path, number)
            if not isinstance(entry, dict):
                self._shape.append(RecipeFault(at, f"{entry!r}, expected a map"))
                continue
            self._shape += _unknown(at, entry, _GROUP if "tensors" in entry else _TENSOR)
            own = entry.get("styles", {})
            if not isinstance(own, dict):
                self._shape.append(RecipeFault((*at, "styles"), f"styles: {own!r}, expected a map"))
                continue
            tensor = _TensorEntry(at, entry, around.hub, around.own, {**around.styles, **own})
            if "tensors" in entry:
                yield from self._entries(tensor)
            else:
                yield tensor

    def _of_tensor(self, tensor: _TensorEntry) -> Iterator[RecipeFault]:
        entry, path = tensor.entry, tensor.path
        for key in ("when", "required", "dtype", "hf_dtype"):
            yield from self._expression((*path, key), entry.get(key), self._names)
        for style in tensor.styles:
            if style not in self._styles:
                meant = did_you_mean(closest(str(style), self._styles, most=1))
                yield RecipeFault((*path, "styles"), f"style {style!r} is not among styles; {meant}".rstrip("; "))
        hub, own = _sections(entry.get("hf")), _sections(entry.get("own"))
        names = " and ".join([*hub.values(), *own.values()][:1]) or "a tensor"
        yield from self._of_names(path, names, tensor, hub, own)
        if not hub or not (own or entry.get("copy_of")):
            yield RecipeFault(path, f"{names}: it has no counterpart, hf and own name both sides")
            return
        for key in ("copy_of", "tied"):
            if entry.get(key) and entry[key] not in self._hub_names:
                yield RecipeFault((*path, key), f"{names}: {key} {entry[key]}, which no tensor is called")
        if own:
            yield from self._of_dims(path, names, entry, hub, own)

    def _of_names(
        self, path: Path, names: str, tensor: _TensorEntry, hub: Mapping[str, str], own: Mapping[str, str]
    ) -> Iterator[RecipeFault]:
        of_sides = []
        for sections, before in ((hub, tensor.hub), (own, tensor.own)):
            whole = [before + name for name in sections.values()]
            left = [found for name in whole for found in re.findall(r"\{[^{}]*\}?|\}", NUMBERED.sub("", name))]
            if left:
                yield RecipeFault(path, f"{names}: {left[0]} counts nothing; {{n}}, {{j}}, {{e}}, {{layers+j}} do")
            counted = [{found[2] for found in NUMBERED.finditer(name)} for name in whole]
            of_sides.append(set().union(*counted))
            strange = sorted(set().union(*counted) - AXIS_OF.keys())
            if strange:
                yield RecipeFault(
                    path, f"{names}: {{{strange[0]}}} counts nothing; {{n}}, {{j}}, {{e}}, {{layers+j}} do"
                )
        if own and hub and (of_sides[0] ^ of_sides[1]) - {"e"}:
            lone = sorted((of_sides[0] ^ of_sides[1]) - {"e"})
            yield RecipeFault(path, f"{names}: {{{lone[0]}}} is in the names of one side alone")
        stars = {name.endswith(".*") for name in (*hub.values(), *own.values())}
        if len(stars) > 1:
            yield RecipeFault(path, f"{names}: .* ends some of its names and not all")

    def _of_dims(
        self, path: Path, names: str, entry: Mapping[str, Any], hub: Mapping[str, str], own: Mapping[str, str]
    ) -> Iterator[RecipeFault]:
        if len(hub) > 1 and len(own) > 1:
            yield RecipeFault(path, f"{names}: several tensors on both sides: one side is one tensor")
            return
        keys = [key for key in ("dims", "hf_dims", "own_dims", "own_dims_3", "part_dims") if key in entry]
        texts = {(*path, key): str(entry[key]) for key in keys}
        texts |= {(*path, "parts_dims", key): str(text) for key, text in (entry.get("parts_dims") or {}).items()}
        found = []
        for at, text in texts.items():
            try:
                dims = parsed(text)
            except StrategyError as error:
                found.append(RecipeFault(at, f"{names}: {error.message}"))
                continue
            found += self._axes_known(at, [name for dim in dims for item in dim for name in item])
        if not ("dims" in entry or {"hf_dims", "own_dims"} <= entry.keys()):
            found.append(RecipeFault(path, f"{names}: no dims say what it is made of"))
        yield from found
        if not found:
            yield from self._of_sections(path, names, entry, hub, own)

    def _of_sections(
        self, path: Path, names: str, entry: Mapping[str, Any], hub: Mapping[str, str], own: Mapping[str, str]
    ) -> Iterator[RecipeFault]:
        """The parts and the whole count the same axes."""
        many, one = ("own", "hf") if len(own) > 1 else ("hf", "own")
        sections = own if many == "own" else hub
        whole = parsed(str(entry.get(f"{one}_dims", entry.get("dims"))))
        joined = {name for dim in whole for item in dim if len(item) > 1 for name in item}
        given = entry.get("parts_dims") or {}
        for section in sorted({*sections, *given} - {""} - joined):
            yield RecipeFault(
                path, f"{names}: no section of its dims is called {section!r}; {', '.join(sorted(joined))} are"
            )
        if sections.keys() - {""} and joined - sections.keys():
            yield RecipeFault(path, f"{names}: no tensor is the section {sorted(joined - sections.keys())[0]}")
            return
        several = {name for each in (hub, own) for name in each.values() if "{e}" in name}
        for section in sections.keys() & {*joined, ""}:
            text = given.get(section, entry.get("part_dims") if section else None)
            usual = parsed(str(entry.get(f"{many}_dims", entry.get("dims"))))
            part = parsed(str(text)) if text is not None else section_of(usual, section) if section else usual
            lone = self._counted(part, section) ^ self._counted(
                section_of(whole, section) if section else whole, section
            )
            if lone - ({"experts"} if several else set()):
                axis = sorted(lone - ({"experts"} if several else set()))[0]
                yield RecipeFault(path, f"{names}: its dims count {axis} on one side alone")

    def _counted(self, dims: Dims, section: str) -> set[str]:
        """The axes that dims are made of, several times where they are there so often; those of one element are not."""
        atoms: Counter[str] = Counter()
        for dim in dims:
            for item in dim:
                for name in item if len(item) == 1 or section not in item else (section,):
                    atoms.update(self._atoms(name))
        return {name if times == 1 else f"{name} × {times}" for name, times in atoms.items()}

    def _atoms(self, name: str, depth: int = 0) -> list[str]:
        value = self._axes.get(name)
        if isinstance(value, str) and _COMPOSED.fullmatch(value) and depth < len(self._axes):
            return [atom for part in value.split() for atom in self._atoms(part, depth + 1)]
        return [] if value == 1 else [name]

    def _twice(self) -> Iterator[RecipeFault]:
        seen: dict[str, list[_TensorEntry]] = {}
        for tensor in self._tensors:
            for name in _sections(tensor.entry.get("own")).values():
                for other in seen.setdefault(tensor.own + name, []):
                    apart = any(other.styles.get(s, v) != v for s, v in tensor.styles.items())
                    if not (apart or "when" in tensor.entry or "when" in other.entry):
                        yield RecipeFault(tensor.path, f"{name}: an entry before it says already how it is made")
                seen[tensor.own + name].append(tensor)

    def _of_style(self, style: str) -> Iterator[RecipeFault]:
        path, entry = ("styles", style), self._styles[style]
        if not isinstance(entry, dict):
            yield RecipeFault(path, f"{entry!r}, expected a map")
            return
        yield from _unknown(path, entry, _STYLE)
        yield from self._expression((*path, "told"), entry.get("told"), self._names)
        other = entry.get("fused_with")
        if other is not None and other not in self._styles:
            yield RecipeFault((*path, "fused_with"), f"fused_with {other!r}, which is not among styles")
        values = {tensor.styles[style] for tensor in self._tensors if style in tensor.styles}
        said: dict[Any, str] = {**dict.fromkeys(_texts(entry.get("told")), "told"), entry.get("default"): "default"}
        known = ", ".join(sorted(map(str, values))) or "none"
        for value in sorted(said.keys() - values, key=str):
            yield RecipeFault(
                (*path, said[value]), f"styles {style}: no tensor is for {value!r}; they are for: {known}"
            )

    def _axes_known(self, path: Path, names: Sequence[str]) -> Iterator[RecipeFault]:
        for name in dict.fromkeys(names):
            if name not in self._sizes:
                meant = did_you_mean(closest(name, self._sizes, most=1)) or "axes: {NAME: ~} is one that shapes tell"
                yield RecipeFault(path, f"{name!r} is neither a setting nor among axes; {meant}")

    def _expression(self, path: Path, value: object, known: set[str]) -> Iterator[RecipeFault]:
        if not isinstance(value, str):
            return
        try:
            parse(value)
        except StrategyError as error:
            yield RecipeFault(path, f"{path[-1]}: {error.message}")
            return
        for name in sorted(names_in(value) - known):
            meant = did_you_mean(closest(name, known, most=1))
            yield RecipeFault(path, f"{path[-1]}: {name!r} is no setting; {meant}".rstrip("; "))


def _sections(given: object) -> dict[str, str]:
    if given is None:
        return {}
    return {str(k): str(v) for k, v in (given if isinstance(given, dict) else {"": given}).items()}


def _texts(expression: object) -> set[str]:
    """The texts that an expression may give."""
    try:
        tree = ast.parse(str(expression), mode="eval")
    except SyntaxError:
        return set()
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _of_drop(path: Path, entry: object) -> Iterator[RecipeFault]:
    if not isinstance(entry, dict) or entry.keys() != {"match", "why"}:
        yield RecipeFault(path, f"drop: {entry!r}, expected a map of match and why")
        return
    yield from _of_pattern((*path, "match"), "drop", entry["match"])


def _of_pattern(path: Path, what: str, pattern: object) -> Iterator[RecipeFault]:
    try:
        re.compile(str(pattern))
    except re.error as error:
        yield RecipeFault(path, f"{what}: {pattern!r} is not a regular expression: {error}")
