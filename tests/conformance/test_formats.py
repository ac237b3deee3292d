from __future__ import annotations

import pytest

from reshard.formats.mindspore_ckpt import MindSporeCkpt
from reshard.formats.safetensors import Safetensors
from reshard.formats.torch_file import TorchFile
from reshard.testing import FormatTests

PACKED = frozenset({"float4_e2m1fn_x2", "float6_e2m3fn_x4", "float6_e3m2fn_x4"})
OTHER_COMPLEX = frozenset({"complex128", "complex32"})
CKPT_REFUSES = PACKED | OTHER_COMPLEX | {
    "complex64", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float8_e4m3fnuz", "float8_e5m2fnuz",
}  # fmt: skip


class TestMindSporeCkpt(FormatTests):
    format = MindSporeCkpt()
    refused = CKPT_REFUSES
    refused_shapes = frozenset({(0,)})  # older writers meant a scalar by it


class TestMindSporeCkptInSmallPieces(FormatTests):
    format = MindSporeCkpt(slice_nbytes=100_000)
    refused = CKPT_REFUSES
    refused_shapes = frozenset({(0,)})  # older writers meant a scalar by it


class TestMindSporeCkptWithCrc(FormatTests):
    format = MindSporeCkpt(crc=True)
    refused = CKPT_REFUSES
    refused_shapes = frozenset({(0,)})  # older writers meant a scalar by it


class TestTorchFile(FormatTests):
    format = TorchFile()
    refused = frozenset({"int4x2", "float6_e2m3fn_x4", "float6_e3m2fn_x4"})


class TestSafetensors(FormatTests):
    format = Safetensors()
    refused = OTHER_COMPLEX
    refused_scalars = PACKED


def test_no_check_may_be_overridden() -> None:
    with pytest.raises(TypeError, match="overrides test_many_tensors"):

        class TestLax(FormatTests):
            format = Safetensors()

            def test_many_tensors(self) -> None:
                pass
