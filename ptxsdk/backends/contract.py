"""The network's side of the contract, held on every run: an engine may state one thing and compute another."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ptxsdk.errors import BackendError


def as_plane(output: npt.NDArray[Any], name: str, size: tuple[int, int]) -> npt.NDArray[np.float32]:
    """Return an output of the network, float32 with leading axes of 1, as one plane of `size`.

    Raises
    ------
    BackendError
        ``backend.failed``: another dtype or shape.
    """
    if output.dtype != np.float32 or output.shape[-2:] != size or output.size != size[0] * size[1]:
        raise BackendError(
            "backend.failed",
            f"the network's output {name!r} is {output.dtype} {output.shape}, the manifest says float32 {size}",
        )
    return output.reshape(size)
