"""preprocess: stored film pixels to the network's input, in one fused pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ptxsdk import _core
from ptxsdk.device_array import DeviceArray
from ptxsdk.errors import InputError
from ptxsdk.geometry import Geometry
from ptxsdk.radiograph import Display, LookupTable

_LARGEST = 1e30  # of a window's bound in stored values; beyond, sums in float32 would overflow


def preprocess(
    pixels: npt.NDArray[np.generic] | DeviceArray,
    *,
    display: Display,
    size: tuple[int, int],
    mean: float = 0.0,
    std: float = 1.0,
    dtype: npt.DTypeLike = np.float32,
    threads: int = 0,
) -> tuple[npt.NDArray[Any], Geometry]:
    """Turn stored pixels into the network's input.

    Modality rescale, VOI, polarity, area-averaging resample with the aspect kept, padding and normalisation, reading
    the source once.  A target pixel is the mean of the display values over the source area it covers, so averaging
    happens after windowing, as a viewer would show it.

    Parameters
    ----------
    pixels : ndarray, shape (rows, columns), uint8 | uint16 | int16 | float32
        Stored values, native byte order, any strides.
    display : Display
        From stored to display values in [0, 1].
    size : tuple of int
        ``(rows, columns)`` of the result.
    mean, std : float
        The result is ``(value - mean) / std``; padding is ``(0 - mean) / std``.
    dtype : {float32, float16}
        Of the result.
    threads : int
        0: one per megapixel of the film, at most one per CPU.

    Returns
    -------
    tensor : ndarray, shape `size`, `dtype`
        The network's input.
    geometry : Geometry
        Where the film lies in it.

    Raises
    ------
    TypeError
        Pixels or result of another dtype.
    ValueError
        Pixels not two-dimensional or empty, or an impossible parameter.
    InputError
        ``input.not_finite``: float pixels hold NaN or infinity; ``input.device``: they lie on a CUDA device.
    """
    tensor = np.empty(size, dtype)
    return tensor, preprocess_into(tensor, pixels, display=display, mean=mean, std=std, threads=threads)


def preprocess_into(
    target: npt.NDArray[Any],
    pixels: npt.NDArray[np.generic] | DeviceArray,
    *,
    display: Display,
    mean: float = 0.0,
    std: float = 1.0,
    threads: int = 0,
    isa: str = "best",
) -> Geometry:
    """Do as `preprocess` does, into an array of the caller's.

    Parameters
    ----------
    target : ndarray, shape (rows, columns), float32 | float16
        Written whole; its rows must be contiguous.
    isa : str
        One of ``ptxsdk._core.usable_isas()``, or "best".
    pixels, display, mean, std, threads
        As in `preprocess`.

    Returns
    -------
    Geometry
        Where the film lies in `target`.

    Raises
    ------
    TypeError, ValueError, InputError
        As `preprocess`; after ``input.not_finite`` the content of `target` is unspecified.
    """
    if isinstance(pixels, DeviceArray):
        raise InputError("input.device", f"the pixels lie on cuda:{pixels.device}; see ptxsdk.ops.device")
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise ValueError(f"pixels have shape {pixels.shape}, not (rows, columns)")
    if target.ndim != 2 or 0 in target.shape:
        raise ValueError(f"target has shape {target.shape}, not (rows, columns)")
    geometry = Geometry.fit((pixels.shape[0], pixels.shape[1]), (target.shape[0], target.shape[1]))
    finite = _core.preprocess_into(
        target,
        pixels,
        content=geometry.content,
        mean=mean,
        std=std,
        threads=threads,
        isa=isa,
        **transfer_of(display, pixels.dtype),
    )
    if not finite:
        raise InputError("input.not_finite", "the pixels hold NaN or infinity")
    return geometry


def transfer_of(display: Display, dtype: np.dtype[Any]) -> dict[str, Any]:
    """Reduce a display transform to what the pass takes: a ramp or a sigmoid over stored values, or a table.

    Raises
    ------
    InputError
        ``input.unsupported``: a table is needed, which float pixels cannot have.
    """
    voi = display.voi
    if not (isinstance(voi, LookupTable) or display.modality_lut or display.padding):
        low, high = ((bound - display.intercept) / display.slope for bound in voi.bounds)
        invert = display.invert ^ (high < low)
        low, high = min(low, high), max(low, high)
        exact = low > -_LARGEST and high < _LARGEST and high - low > abs(high + low) * 1e-12
        if voi.function == "SIGMOID" and dtype == np.float32 and exact:
            # bounds are center -+ width / 2; the pass takes 1 / (1 + exp(-(v - low) / (high - low))).
            center, quarter = (low + high) / 2, (high - low) / 4
            return {"transfer": "sigmoid", "low": center, "high": center + quarter, "invert": invert}
        if voi.function != "SIGMOID" and exact:
            return {"transfer": "linear", "low": low, "high": high, "invert": invert}
    if dtype == np.float32:
        raise InputError("input.unsupported", "lookup tables, padding and extreme windows need integer pixels")
    if dtype.kind not in "iu" or dtype.itemsize > 2:
        raise TypeError(f"pixels are {dtype}, not uint8, uint16, int16 or float32")
    limits = np.iinfo(dtype)
    stored = np.arange(limits.min, limits.max + 1)
    return {"transfer": "table", "table": display(stored).astype(np.float32)}
