"""CPU operations of ptxsdk; use them through ptxsdk.ops."""

from typing import Any

import numpy as np
import numpy.typing as npt

class NotFiniteError(ArithmeticError): ...

class MapRegion:
    @property
    def area_px(self) -> float: ...
    @property
    def box(self) -> tuple[int, int, int, int]: ...
    @property
    def centroid(self) -> tuple[float, float]: ...
    @property
    def mean_probability(self) -> float: ...
    @property
    def outline(self) -> tuple[tuple[float, float], ...]: ...
    @property
    def peak(self) -> tuple[float, float]: ...
    @property
    def probability(self) -> float: ...

def aggregate(
    patch_logits: npt.NDArray[np.float32],
    mask_logits: npt.NDArray[np.float32],
    *,
    source_shape: tuple[int, int],
    content: tuple[int, int, int, int],
    method: str,
    source: str,
    k: int,
    high: float,
    low: float,
    min_area: int,
    want_outlines: bool,
) -> tuple[float, list[MapRegion]]: ...
def aggregate_of_result(
    result: npt.NDArray[np.uint8],
    *,
    source_shape: tuple[int, int],
    content: tuple[int, int, int, int],
    method: str,
    low: float,
    map_shape: tuple[int, int],
    mask_logits: npt.NDArray[np.float32] | None = None,
) -> tuple[float, list[MapRegion]] | None: ...
def mask_probability(mask_logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]: ...
def preprocess_into(
    target: npt.NDArray[Any],
    source: npt.NDArray[Any],
    *,
    content: tuple[int, int, int, int],
    transfer: str,
    low: float = 0.0,
    high: float = 1.0,
    table: npt.NDArray[np.float32] | None = None,
    invert: bool = False,
    mean: float = 0.0,
    std: float = 1.0,
    threads: int = 0,
    isa: str = "best",
) -> bool: ...
def usable_isas() -> list[str]: ...
