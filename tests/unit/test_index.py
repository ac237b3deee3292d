from __future__ import annotations

import pytest

from reshard.dtypes import ITEMSIZE, numpy_dtype
from reshard.errors import FormatError
from reshard.index import Extent, TensorSpec


@pytest.mark.parametrize(("shape", "nbytes"), [((), 4), ((0, 5), 0), ((2, 3), 24)])
def test_nbytes(shape: tuple[int, ...], nbytes: int) -> None:
    assert TensorSpec("float32", shape).nbytes == nbytes


def test_values_that_cannot_be() -> None:
    with pytest.raises(FormatError, match="unknown dtype 'float31'"):
        TensorSpec("float31", ())
    with pytest.raises(FormatError, match="negative"):
        TensorSpec("float32", (2, -1))
    with pytest.raises(FormatError, match="65 dims, 64 at most"):
        TensorSpec("float32", (1,) * 65)
    with pytest.raises(FormatError, match="extent"):
        Extent(-1, 5)


@pytest.mark.parametrize("dtype", ITEMSIZE)
def test_itemsize_is_numpys(dtype: str) -> None:
    assert numpy_dtype(dtype).itemsize == ITEMSIZE[dtype]
