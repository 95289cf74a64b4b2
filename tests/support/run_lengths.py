"""Masks as SIIM-ACR writes them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def encode_rle(mask: NDArray[np.generic]) -> str:
    """Return the code of a mask, (rows, columns): what `training.data.siim.decode_rle` reads; ``-1`` if empty."""
    inside = np.pad((np.asarray(mask) != 0).T.ravel().astype(np.int8), 1)
    edges = np.flatnonzero(np.diff(inside))
    return " ".join(map(str, np.diff(edges, prepend=0))) if edges.size else "-1"
