"""What goes along with a folder of Hugging Face's: its configuration as it is now, tokenizer, chat template."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

from msgspec.structs import replace

from reshard.dtypes import FLOATING
from reshard.errors import CheckpointError, UsageError
from reshard.families.registry import listing
from reshard.names.model import hub_config
from reshard.names.naming import convention_of
from reshard.names.regroup import Regrouped
from reshard.names.wishes import CONVENTIONS, HUB, Naming
from reshard.planning.plan import SmallFile
from reshard.storage.storage import join
from reshard.storage.storages import content_of

_ALONG = ("generation_config.json", "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json",
          "added_tokens.json", "chat_template*", "*.model", "*.tiktoken", "preprocessor_config.json",
          "*.py")  # fmt: skip
CONFIG = "config.json"
_DTYPES = ("torch_dtype", "dtype")


def along(made: Regrouped, naming: Naming, dtype: str) -> tuple[SmallFile, ...]:
    """The small files of a target, from beside the model's configuration.

    Args:
        dtype: that floating weights are cast to; "" for none.

    Raises:
        UsageError: no configuration is known, or the target is not Hugging Face's.
    """
    config = hub_config(made.files)
    kept = made.catalog.tensors
    whose = [naming.dst] if naming.dst else [c for c in CONVENTIONS if convention_of(kept, (c,))]
    if whose and HUB not in whose:  # of a model that nobody knows they stay as they are
        raise UsageError("--with-files is for a target of Hugging Face's names", hint="--dst-names hf")
    if config is None:
        option = "--dst-model" if naming.model else "--model"  # which describes SRC, where it is the YAML of its run
        raise UsageError("--with-files, and no config.json is known", hint=f"{option} FOLDER/config.json")
    folder = config.where.rpartition("/")[0] or "."
    names = sorted(e.name for e in listing(folder).entries if not e.folder and any(fnmatch(e.name, p) for p in _ALONG))
    others = tuple(SmallFile(name, content_of(join(folder, name))) for name in names)
    return SmallFile(CONFIG, _told(content_of(config.where), made, naming, dtype)), *others


def corrected(files: tuple[SmallFile, ...], said: Mapping[str, int]) -> tuple[SmallFile, ...]:
    """The same files; of a configuration these values are others."""
    return tuple(replace(f, content=_with(f.content, said)) if f.path == CONFIG and said else f for f in files)


def _with(content: bytes, said: Mapping[str, int]) -> bytes:
    config: dict[str, Any] = json.loads(content)
    inner = config.get("text_config")
    parts = [config, inner] if isinstance(inner, dict) else [config]
    for key, value in said.items():
        for part in [part for part in parts if key in part] or parts[-1:]:
            part[key] = value
    return _written(config)


def _written(config: Mapping[str, Any]) -> bytes:
    return (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()


def _told(content: bytes, made: Regrouped, naming: Naming, dtype: str) -> bytes:
    """The configuration, true of what is written: dtype, ties, rows of the vocabulary, quantisation."""
    try:
        config: dict[str, Any] = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"config.json is not JSON: {error}") from None
    tensors = made.catalog.tensors
    nbytes: Counter[str] = Counter()
    for tensor in tensors.values():
        kept = tensor.wanted_dtype
        if kept in FLOATING:
            nbytes[dtype or kept] += tensor.spec.nbytes
    codes = any(tensor.wanted_dtype.startswith("float8") for tensor in tensors.values())
    if nbytes and not codes:  # what codes are multiplied to is told already
        key = next((k for k in _DTYPES if k in config), _DTYPES[0])
        config[key] = nbytes.most_common(1)[0][0]
    if naming.dequantize:
        config.pop("quantization_config", None)
    if made.head and made.embedding in tensors:
        config["tie_word_embeddings"] = made.head not in tensors
    key = "padded_vocab_size" if "padded_vocab_size" in config else "vocab_size"
    return _with(_written(config), {key: naming.vocab_rows} if naming.vocab_rows else {})
