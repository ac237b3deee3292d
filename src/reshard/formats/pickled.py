"""Pickles of strangers read as data: nothing is imported, nothing is called, whatever the file asks for.

A machine of our own for the opcodes that writers of protocols 2 to 5 use. Python's unpickler is made to call what a
file names and has to be talked out of it at every turn (it wants types to build with, and calls methods of what was
built); a scan before it would walk the same opcodes a second time. Here a name is a ``Global``, a call a ``Record``,
and only the closed list that the caller gives (``torch_values``) is understood further.

What is made is bounded by the pickle's length: an opcode makes one value, lengths are checked before they are taken,
and the memo is a map. What walks the result has to expect shared values and cycles: ``pickle_paths``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from struct import unpack
from typing import Any

from msgspec import Struct

from reshard.errors import FormatError
from reshard.formats.pickle_names import code, is_known, refuse_code
from reshard.formats.pickle_objects import Global as Global
from reshard.formats.pickle_objects import Record as Record
from reshard.formats.pickle_objects import Told as Told

_MAX_MARKS = 1000
_MAX_PROTOCOL = 5
_DAMAGED = "the file is damaged: copy it again"


class Pickled(Struct, frozen=True):
    """What a pickle holds: ``value``, where it ends, the classes nobody told us of with how many objects each, and what
    dicts have as attributes, beside their keys.
    """

    value: Any
    end: int
    unknown: Mapping[str, int]
    beside: tuple[Any, ...] = ()


Meaning = Callable[[tuple[Any, ...]], Any]
"""What a call of a global with these arguments stands for. Raises FormatError."""

Resolve = Callable[[Any], Any]
"""What a persistent id stands for. Raises FormatError."""

More = Callable[[int, int], bytes]
"""At least so many bytes from an offset on, or fewer where the file ends."""


def nothing_more(at: int, nbytes: int) -> bytes:
    return b""


def read_pickle(data: bytes, meanings: Mapping[Global, Meaning], resolve: Resolve, more: More) -> Pickled:
    """The value of the pickle at the start of ``data``: None, numbers, text, bytes, tuples, lists, dicts, sets, what
    ``meanings`` and ``resolve`` give, and Globals and Records for all else.

    Args:
        more: gives bytes after ``data``, where a pickle's length is not known before it is read.

    Raises:
        FormatError: damaged, of a kind that no writer uses, or made to run code.
    """
    return _Unpickling(data, meanings, resolve, more).run()


_LEAVES = (str, int, bytes, float, complex, type(None), Global, Told)
_Stack = list[Any]


class _Unpickling:
    def __init__(self, data: bytes, meanings: Mapping[Global, Meaning], resolve: Resolve, more: More) -> None:
        self._data = data
        self._at = 0
        self._meanings = meanings
        self._resolve = resolve
        self._more = more
        self._stack: _Stack = []
        self._below: list[_Stack] = []
        self._memo: list[Any] = []
        self._unknown: Counter[str] = Counter()
        self._beside: list[Any] = []

    def run(self) -> Pickled:
        while True:
            code = self.byte()
            if code == _STOP:
                value = self._pop()
                return Pickled(value, self._at, dict(self._unknown), tuple(self._beside))
            _TABLE[code](self)

    def _fault(self, what: str) -> FormatError:
        return FormatError(f"the pickle {what} at byte {self._at}", hint=_DAMAGED)

    # ---- bytes

    def _fetch(self, nbytes: int) -> None:
        """Have ``nbytes`` from here on."""
        missing = self._at + nbytes - len(self._data)
        if missing > 0:
            more = self._more(len(self._data), max(missing, len(self._data)))
            if len(more) < missing:
                raise self._fault(f"ends where {nbytes} more bytes are announced,")
            self._data += more

    def _take(self, nbytes: int) -> bytes:
        start = self._at
        if start + nbytes > len(self._data):
            self._fetch(nbytes)
        self._at = start + nbytes
        return self._data[start : self._at]

    def byte(self) -> int:
        at = self._at
        self._at = at + 1
        try:
            return self._data[at]
        except IndexError:
            self._at = at
            return self._take(1)[0]

    def short(self) -> None:
        self._stack.append(self.byte() | self.byte() << 8)

    def _number(self, nbytes: int) -> int:
        return int.from_bytes(self._take(nbytes), "little")

    def _text(self, data: bytes) -> str:
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise self._fault("holds text that is not UTF-8") from None

    def _line(self) -> str:
        while True:
            end = self._data.find(b"\n", self._at)
            if end >= 0:
                return self._text(self._take(end + 1 - self._at)[:-1])
            self._fetch(len(self._data) - self._at + 1)

    # ---- the stack

    def _pop(self) -> Any:
        if not self._stack:
            raise self._fault("takes a value where there is none")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise self._fault("speaks of a value where there is none")
        return self._stack[-1]

    def _marked(self) -> _Stack:
        """The values since the last mark."""
        if not self._below:
            raise self._fault("speaks of a mark that was not set")
        values, self._stack = self._stack, self._below.pop()
        return values

    def mark(self) -> None:
        if len(self._below) == _MAX_MARKS:
            raise self._fault(f"is nested more than {_MAX_MARKS} deep")
        self._below.append(self._stack)
        self._stack = []

    def push_tuple(self, count: int) -> None:
        if len(self._stack) < count:
            raise self._fault("takes a value where there is none")
        self._stack[-count:] = (tuple(self._stack[-count:]),)

    def marked_tuple(self) -> None:
        values = self._marked()
        self._stack.append(tuple(values))

    def frozen_set(self) -> None:
        values = self._marked()
        self._stack.append(frozenset(map(self._key, values)))

    # ---- plain values

    def protocol(self) -> None:
        protocol = self._number(1)
        if not 2 <= protocol <= _MAX_PROTOCOL:
            raise self._fault(f"is of protocol {protocol}; known are 2 to {_MAX_PROTOCOL},")

    def frame(self) -> None:
        self._take(8)  # a frame's length helps readers to read ahead, and changes nothing

    def signed_int(self) -> None:
        self._stack.append(int.from_bytes(self._take(4), "little", signed=True))

    def long_int(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._number(1)), "little", signed=True))

    def double(self) -> None:
        self._stack.append(unpack(">d", self._take(8))[0])

    def text(self, width: int) -> None:
        self._stack.append(self._text(self._take(self._number(width))))

    def raw(self, width: int) -> None:
        self._stack.append(self._take(self._number(width)))

    def old_string(self, width: int) -> None:
        """What Python 2 called a string: text where it is text."""
        data = self._take(self._number(width))
        try:
            self._stack.append(data.decode())
        except UnicodeDecodeError:
            self._stack.append(data)

    # ---- the memo: a list, for its places are taken in order, and there are tens of millions

    def memoize(self) -> None:
        self._memo.append(self._top())

    def put(self, index: int) -> None:
        if index > self._at:
            raise self._fault(f"keeps its value number {index:,} in the memo")
        self._memo += [_ABSENT] * (index + 1 - len(self._memo))
        self._memo[index] = self._top()

    def get(self, index: int) -> None:
        if index >= len(self._memo) or self._memo[index] is _ABSENT:
            raise self._fault(f"takes value {index:,} of its memo, which is not there,")
        self._stack.append(self._memo[index])

    # ---- containers

    def _key(self, value: Any) -> Any:
        """A value as a key. No tuples of tuples: hashing what shares its parts can take for ever."""
        if isinstance(value, _LEAVES) or (type(value) is tuple and all(isinstance(v, _LEAVES) for v in value)):
            return value
        raise self._fault(f"has a {type(value).__name__} as a key")

    def append(self) -> None:
        self._extend([self._pop()])

    def appends(self) -> None:
        self._extend(self._marked())

    def _extend(self, values: _Stack) -> None:
        into = self._top()
        if isinstance(into, list):
            into.extend(values)
        elif isinstance(into, Record):
            into.items.extend(values)
        else:
            raise self._fault(f"appends to a {type(into).__name__}")

    def set_item(self) -> None:
        value = self._pop()
        self._set([self._pop(), value])

    def set_items(self) -> None:
        self._set(self._marked())

    def _set(self, values: _Stack) -> None:
        into = self._top()
        if len(values) % 2:
            raise self._fault("has a key without a value")
        pairs = zip(values[::2], values[1::2], strict=True)
        if isinstance(into, dict):
            for key, value in pairs:
                into[self._key(key)] = value
        elif isinstance(into, Record):
            into.items.extend(pairs)
        else:
            raise self._fault(f"puts keys into a {type(into).__name__}")

    def add_items(self) -> None:
        values = self._marked()
        into = self._top()
        if not isinstance(into, set):
            raise self._fault(f"adds to a {type(into).__name__}")
        into.update(map(self._key, values))

    # ---- what is named and what is built

    def named(self) -> None:
        module = self._line()
        self._global(module, self._line())

    def named_on_stack(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise self._fault("names a class by what is no text")
        self._global(module, name)

    def _global(self, module: str, name: str) -> None:
        found = Global(_MODULES_OF_PYTHON_2.get(module, module), name)
        if found not in self._meanings:
            refuse_code(found.module, found.name)
            if not is_known(found.module, found.name):
                self._unknown[str(found)] += 0
        self._stack.append(found)

    def persistent(self) -> None:
        self._stack.append(self._resolve(self._pop()))

    def reduce(self) -> None:
        args = self._pop()
        self._build(self._pop(), args)

    def new_with_keywords(self) -> None:
        keywords, args = self._pop(), self._pop()
        if not isinstance(args, tuple):
            raise self._fault("builds an object of what are no arguments")
        self._build(self._pop(), (*args, keywords) if keywords else args)

    def _build(self, what: Any, args: Any) -> None:
        if not isinstance(what, Global):
            raise self._fault(f"calls a {type(what).__name__} that it made itself")
        if not isinstance(args, tuple):
            raise self._fault(f"calls {what} with what are no arguments")
        if what in _BUILDERS and args and isinstance(args[0], Global):
            what, args = args[0], args[1:] if what.name == "__newobj__" else ()
        meaning = self._meanings.get(what)
        if meaning is not None:
            self._stack.append(meaning(args))
            return
        if GETATTR in args:  # to be called later, by what is built here
            raise code(GETATTR.module, GETATTR.name)
        if self._unknown and str(what) in self._unknown:
            self._unknown[str(what)] += 1
        self._stack.append(Record(what, args))

    def set_state(self) -> None:
        state = self._pop()
        into = self._top()
        if isinstance(into, Told):
            into.told(state)
        elif isinstance(into, dict):
            self._beside.append(state)
        else:
            raise self._fault(f"gives a state to a {type(into).__name__}")


GETATTR = Global("builtins", "getattr")
_MODULES_OF_PYTHON_2 = {
    "__builtin__": "builtins", "copy_reg": "copyreg", "commands": "subprocess", "cPickle": "pickle",
    "thread": "_thread", "httplib": "http.client", "urllib2": "urllib.request",
}  # fmt: skip
"""What protocol 2 calls them, also where a newer Python writes it."""

_BUILDERS = frozenset({Global("copyreg", "_reconstructor"), Global("copyreg", "__newobj__")})
_STOP = ord(".")
_ABSENT = object()
_Instruction = Callable[[_Unpickling], None]


def _push(make: Callable[[], Any]) -> _Instruction:
    return lambda m: m._stack.append(make())


_ACTIONS: dict[int, _Instruction] = {
    ord(code): action
    for code, action in {
        "\x80": _Unpickling.protocol, "\x95": _Unpickling.frame, "(": _Unpickling.mark,
        "N": _push(lambda: None), "\x88": _push(lambda: True), "\x89": _push(lambda: False),
        "J": _Unpickling.signed_int, "K": lambda m: m._stack.append(m.byte()), "M": _Unpickling.short,
        "\x8a": _Unpickling.long_int, "G": _Unpickling.double,
        "\x8c": lambda m: m.text(1), "X": lambda m: m.text(4), "\x8d": lambda m: m.text(8),
        "C": lambda m: m.raw(1), "B": lambda m: m.raw(4), "\x8e": lambda m: m.raw(8), "\x96": lambda m: m.raw(8),
        "U": lambda m: m.old_string(1), "T": lambda m: m.old_string(4),
        "]": _push(list), "}": _push(dict), "\x8f": _push(set), ")": _push(tuple),
        "\x85": lambda m: m.push_tuple(1), "\x86": lambda m: m.push_tuple(2), "\x87": lambda m: m.push_tuple(3),
        "t": _Unpickling.marked_tuple, "\x91": _Unpickling.frozen_set,
        "a": _Unpickling.append, "e": _Unpickling.appends, "s": _Unpickling.set_item, "u": _Unpickling.set_items,
        "\x90": _Unpickling.add_items,
        "q": lambda m: m.put(m.byte()), "r": lambda m: m.put(m._number(4)),
        "\x94": _Unpickling.memoize,
        "h": lambda m: m.get(m.byte()), "j": lambda m: m.get(m._number(4)),
        "c": _Unpickling.named, "\x93": _Unpickling.named_on_stack, "Q": _Unpickling.persistent,
        "R": _Unpickling.reduce, "\x81": _Unpickling.reduce, "\x92": _Unpickling.new_with_keywords,
        "b": _Unpickling.set_state,
    }.items()
}  # fmt: skip


def _refuse(machine: _Unpickling) -> None:
    code = machine._data[machine._at - 1 : machine._at]
    raise machine._fault(f"has the opcode {code!r}, which no writer of such files uses,")


_TABLE = tuple(_ACTIONS.get(code, _refuse) for code in range(256))
