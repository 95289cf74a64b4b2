"""CUDA operations of ptxsdk on addresses; use them through ptxsdk.ops."""

from typing import Any

import numpy as np
import numpy.typing as npt

FILM_BYTES: int
LONGEST_SIDE: int
MOST_RECORDS: int
RECORD_BYTES: int
RESULT_BYTES: int
WIDEST_TILE: int

class CudaError(RuntimeError): ...

def aggregate(
    *,
    films: int,
    count: int,
    patch: int,
    patch_type: str,
    patches: int,
    mask: int,
    mask_type: str,
    rows: int,
    columns: int,
    method: str,
    source: str,
    k: int,
    high: float,
    low: float,
    min_area: int,
    scratch: int,
    results: int,
    film_results: int,
    stream: int,
) -> None: ...
def aggregate_scratch_bytes(rows: int, columns: int) -> int: ...
def copy(*, to: int, source: int, size: int, stream: int) -> None: ...
def pack_film(
    into: npt.NDArray[np.uint8],
    *,
    data: int,
    type: str,
    rows: int,
    columns: int,
    pitch: int,
    content: tuple[int, int, int, int],
    target_rows: int,
    target_columns: int,
    transfer: str,
    low: float = 0.0,
    high: float = 1.0,
    table: int = 0,
    invert: bool = False,
    mean: float = 0.0,
    std: float = 1.0,
    sample_step: int = 0,
) -> int: ...
def preprocess(
    *,
    films: int,
    count: int,
    widest_tile: int,
    target: int,
    target_type: str,
    rows: int,
    columns: int,
    sample: int = 0,
    sample_capacity: int = 0,
    not_finite: int,
    stream: int,
) -> None: ...
def upload(*, device: int, staging: int, pixels: npt.NDArray[Any], pitch: int, stream: int) -> None: ...
def wait(*, stream: int, seconds: float) -> bool: ...
def zero(*, to: int, size: int, stream: int) -> None: ...
