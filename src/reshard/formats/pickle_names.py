"""Names that pickles of checkpoints contain: those that run code, and those that are known to be harmless data."""

from __future__ import annotations

from reshard.dtypes import ITEMSIZE
from reshard.errors import FormatError

_CODE_PACKAGES = frozenset(
    {
        "os", "posix", "nt", "ntpath", "posixpath", "subprocess", "_posixsubprocess", "commands", "popen2", "pty",
        "sys", "shutil", "socket", "ssl", "importlib", "imp", "zipimport", "runpy", "pkgutil", "code", "codeop",
        "ctypes", "_ctypes", "cffi", "webbrowser", "antigravity", "multiprocessing", "threading", "_thread", "asyncio",
        "concurrent", "pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "pydoc",
        "pip", "venv", "ensurepip", "setuptools", "distutils", "pdb", "bdb", "timeit", "profile", "cProfile", "trace",
        "doctest", "unittest", "idlelib", "lib2to3", "http", "httplib", "urllib", "urllib2", "requests", "aiohttp",
        "httpx", "ftplib", "smtplib", "telnetlib", "xmlrpc", "tempfile", "glob", "fileinput", "platform", "atexit",
        "gc", "inspect", "linecache", "tracemalloc", "sqlite3", "curses", "tkinter", "turtle", "operator", "_operator",
    }
)  # fmt: skip
"""Everything in these packages counts: no checkpoint has a use for any of it."""

_CODE_MODULES = (
    "torch.hub", "torch.jit", "torch.utils.cpp_extension", "torch.utils.model_zoo", "torch.package", "torch._inductor",
    "torch._dynamo", "torch.testing", "torch.multiprocessing", "torch.distributed.rpc", "numpy.testing", "numpy.f2py",
    "numpy.distutils", "numpy.ctypeslib",
)  # fmt: skip

_CODE = frozenset(
    {
        ("torch", "load"), ("torch", "compile"), ("torch.serialization", "load"), ("torch.storage", "_load_from_bytes"),
        ("torch.fx.graph_module", "reduce_graph_module"), ("torch.fx.graph_module", "reduce_package_graph_module"),
        ("torch.fx.graph_module", "_forward_from_src"),
        ("numpy", "load"), ("numpy", "loadtxt"), ("numpy", "genfromtxt"), ("numpy", "fromfile"), ("numpy", "memmap"),
        ("types", "FunctionType"), ("types", "LambdaType"), ("types", "CodeType"), ("types", "MethodType"),
        ("functools", "reduce"), ("functools", "partialmethod"), ("itertools", "starmap"),
        ("_io", "open"), ("_io", "FileIO"), ("_io", "open_code"), ("io", "open"), ("io", "FileIO"), ("io", "open_code"),
        ("pathlib", "os"), ("logging", "os"), ("logging.config", "dictConfig"), ("uuid", "_popen"),
    }
)  # fmt: skip

_STEPPING_STONES = frozenset(
    {"os", "sys", "subprocess", "posix", "nt", "builtins", "importlib", "shutil", "pickle", "socket", "runpy"}
)
"""Modules that others import, and that are within reach by their names."""

_TYPES_OF_PYTHON = frozenset(
    {
        "bool", "bytearray", "bytes", "classmethod", "complex", "dict", "float", "frozenset", "int", "list", "long",
        "object", "property", "range", "set", "slice", "staticmethod", "str", "tuple", "type", "unicode", "xrange",
    }
)  # fmt: skip

_MEMORY_FORMATS = frozenset({"TORCH_CONTIGUOUS", "TORCH_CHANNELS_LAST", "TORCH_PRESERVE_FORMAT"})
_BY_GETATTR = {
    "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING": _MEMORY_FORMATS,
    "torch.distributed.checkpoint.metadata._MEM_FORMAT_ENCODING": _MEMORY_FORMATS,
    "torch.distributed._shard.sharded_tensor.api.ShardedTensor": frozenset({"ProcessGroupState"}),
}
"""Members of enumerations, and a class within a class, that protocols before 4 cannot name."""

_KNOWN = {
    "_codecs": {"encode"},
    "_io": {"BytesIO"},
    "argparse": {"Namespace"},
    "builtins": _TYPES_OF_PYTHON,
    "collections": {"Counter", "OrderedDict", "defaultdict", "deque"},
    "copyreg": {"__newobj__", "_reconstructor"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "deepspeed.runtime.fp16.loss_scaler": {"DynamicLossScaler", "LossScaler"},
    "deepspeed.runtime.zero.config": {"ZeroStageEnum"},
    "deepspeed.utils.mixed_precision_linkage": {"fragment_address"},
    "deepspeed.utils.tensor_fragment": {"fragment_address"},
    "megatron.core.dist_checkpointing.strategies.torch": {"MCoreSavePlan"},
    "megatron.core.enums": {"ModelType"},
    "megatron.core.optimizer": {"OptimizerConfig"},
    "megatron.core.optimizer.optimizer_config": {"OptimizerConfig"},
    "megatron.core.rerun_state_machine": {"RerunDiagnostic", "RerunMode", "RerunState"},
    "megatron.core.transformer.enums": {"AttnBackend", "CudaGraphScope"},
    "numpy": {"dtype", "ndarray"},
    "numpy._core.multiarray": {"_reconstruct", "scalar"},
    "numpy.core.multiarray": {"_reconstruct", "scalar"},
    "pathlib": {"Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath"},
    "signal": {"Signals"},
    "torch": {"Generator", "Size", "Tensor", "device", "dtype", "per_channel_affine", "per_tensor_affine", "qint32",
              "qint8", "quint8"},
    "torch._tensor": {"_rebuild_from_type_v2"},
    "torch._utils": {
        "_rebuild_device_tensor_from_cpu_tensor", "_rebuild_device_tensor_from_numpy",
        "_rebuild_meta_tensor_no_storage", "_rebuild_nested_tensor", "_rebuild_qtensor", "_rebuild_sparse_csr_tensor",
        "_rebuild_sparse_tensor", "_rebuild_wrapper_subclass",
    },
    "torch.distributed._mesh_layout": {"_FlatLayout", "_MeshLayout"},
    "torch.distributed._shard.metadata": {"ShardMetadata"},
    "torch.distributed._shard.sharded_tensor.api": {"ShardedTensor", "ShardedTensor.ProcessGroupState"},
    "torch.distributed._shard.sharded_tensor.metadata": {
        "MEM_FORMAT_ENCODING", "ShardedTensorMetadata", "TensorProperties",
    },
    "torch.distributed._shard.sharded_tensor.shard": {"Shard"},
    "torch.distributed._shard.sharding_spec.api": {"EnumerableShardingSpec"},
    "torch.distributed._shard.sharding_spec.chunk_sharding_spec": {"ChunkShardingSpec"},
    "torch.distributed._tensor.api": {"DTensor"},
    "torch.distributed._tensor.placement_types": {"DTensorSpec", "Replicate", "Shard", "TensorMeta", "_Partial"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata", "ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta",
        "TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData", "SavePlan", "TensorWriteData", "WriteItem", "WriteItemType",
    },
    "torch.distributed.device_mesh": {"DeviceMesh"},
    "torch.distributed.remote_device": {"_remote_device"},
    "torch.distributed.tensor": {"DTensor"},
    "torch.distributed.tensor._dtensor_spec": {"DTensorSpec", "ShardOrderEntry", "TensorMeta"},
    "torch.distributed.tensor.placement_types": {"Partial", "Replicate", "Shard", "_StridedShard"},
    "torch.nn.parameter": {"Buffer", "Parameter"},
    "torch.serialization": {"_get_layout"},
    "torch.storage": {"TypedStorage", "UntypedStorage"},
    "types": {"SimpleNamespace"},
}  # fmt: skip


def is_known(module: str, name: str) -> bool:
    """Whether checkpoints have this as a matter of course, so that nobody needs to be told of it."""
    if module in ("torch", "torch.cuda") and (name in ITEMSIZE or name.endswith("Storage")):
        return True
    return name in _KNOWN.get(module, ())


def may_take(of: str, name: str) -> bool:
    """Whether ``getattr`` of a class may be read as that member of it: the one use that ShardedTensor makes."""
    return name in _BY_GETATTR.get(of, ())


def refuse_code(module: str, name: str) -> None:
    """Raises FormatError for what has no place in a checkpoint but to run code when it is loaded."""
    if _runs_code(module, name):
        raise code(module, name)


def code(module: str, name: str) -> FormatError:
    return FormatError(
        f"{module}.{name}: this file runs code when loaded",
        hint="nothing of it was run here; load it nowhere else, and ask those you have it from",
    )


def _runs_code(module: str, name: str) -> bool:
    """
    >>> _runs_code("posix", "system"), _runs_code("torch.serialization", "os.system")
    (True, True)
    >>> _runs_code("my_trainer", "Config.Inner"), _runs_code("builtins", "ValueError")
    (False, False)
    """
    if module.partition(".")[0] in _CODE_PACKAGES or (module, name) in _CODE:
        return True
    if any(module == one or module.startswith(f"{one}.") for one in _CODE_MODULES):
        return True
    if module == "builtins":
        return name not in _TYPES_OF_PYTHON and not name[:1].isupper()
    *path, last = name.split(".")
    if not path:
        return name in _STEPPING_STONES
    # a class within a class has a path of classes; a path through a module leads anywhere
    return last.startswith("__") or not all(part.lstrip("_")[:1].isupper() for part in path)
