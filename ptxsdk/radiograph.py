"""Radiograph: a film's pixels as stored, how they are meant to be shown, and what its file says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from ptxsdk.device_array import DeviceArray, is_device_array
from ptxsdk.errors import InputError

STORED_DTYPES = ("uint8", "uint16", "int16", "float32")

VoiFunction = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

_LARGEST = 1e30  # no film comes near it, and sums of such numbers stay finite in float32
_DIRECTIONS = frozenset("LRAPHF")


@dataclass(frozen=True)
class Window:
    """A VOI window (DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3), in modality units.

    Attributes
    ----------
    center, width : float
        Window Center and Window Width.  ``width`` is at least 1 for LINEAR and above 0 otherwise.
    function : {"LINEAR", "LINEAR_EXACT", "SIGMOID"}
        VOI LUT Function.
    """

    center: float
    width: float
    function: VoiFunction = "LINEAR"

    def __post_init__(self) -> None:
        if not (np.isfinite(self.center) and np.isfinite(self.width)):
            raise ValueError("window center and width must be finite")
        if self.function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
            raise ValueError(f"unknown VOI LUT function {self.function!r}")
        if self.width < 1 if self.function == "LINEAR" else self.width <= 0:
            raise ValueError(f"window width {self.width} is too small for {self.function}")
        if max(abs(self.center), self.width) > _LARGEST:
            raise ValueError(f"window center {self.center:g} or width {self.width:g} is beyond {_LARGEST:g}")

    @classmethod
    def from_range(cls, low: float, high: float) -> Window:
        """Return the linear window that shows `low` as black and `high` as white."""
        return cls((low + high) / 2, high - low, "LINEAR_EXACT")

    @property
    def bounds(self) -> tuple[float, float]:
        """``(low, high)``: the modality values shown as black and as white by a linear window."""
        if self.function == "LINEAR":
            return self.center - 0.5 - (self.width - 1) / 2, self.center - 0.5 + (self.width - 1) / 2
        return self.center - self.width / 2, self.center + self.width / 2


@dataclass(frozen=True, eq=False)
class LookupTable:
    """A DICOM LUT (PS3.3 C.11.1 Modality LUT, C.11.2 VOI LUT): values outside take the end entries.

    Attributes
    ----------
    entries : ndarray, shape (n,), float64
        For a modality LUT its output in modality units; for a VOI LUT its output scaled to [0, 1] by its bit depth.
    first : int
        First input value mapped.
    """

    entries: npt.NDArray[np.float64]
    first: int = 0

    def __post_init__(self) -> None:
        if self.entries.ndim != 1 or not self.entries.size or not np.isfinite(self.entries).all():
            raise ValueError("a lookup table is one row of finite numbers")

    def __call__(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Look up `values`, any shape; fractions are rounded down as integers are what LUTs are defined on."""
        index = np.clip(np.floor(values) - self.first, 0, self.entries.size - 1).astype(np.intp)
        found: npt.NDArray[np.float64] = self.entries[index]
        return found


@dataclass(frozen=True, kw_only=True)
class Display:
    """The way from a stored value to a display value in [0, 1], black to white: modality, then VOI, then polarity.

    Attributes
    ----------
    voi : Window or LookupTable
        The values of interest, in modality units.
    slope, intercept : float
        Rescale Slope (not 0) and Intercept; they do not apply where there is a `modality_lut`.
    modality_lut : LookupTable or None
        Modality LUT, on stored values.
    invert : bool
        True for MONOCHROME1: inverted once, last.
    padding : tuple of int or None
        ``(low, high)``, inclusive: stored values that are no image (Pixel Padding Value and its Range Limit).
        They are shown black whatever the polarity.
    """

    voi: Window | LookupTable
    slope: float = 1.0
    intercept: float = 0.0
    modality_lut: LookupTable | None = None
    invert: bool = False
    padding: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if not (1 / _LARGEST < abs(self.slope) < _LARGEST and abs(self.intercept) < _LARGEST):
            raise ValueError("rescale slope and intercept must be finite, the slope not 0")

    def __call__(self, stored: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Apply the transform value by value in float64.

        The plain definition; `ptxsdk.ops.preprocess` does the same in one fused pass.

        Parameters
        ----------
        stored : array_like, any shape
            Stored pixel values.

        Returns
        -------
        ndarray, same shape, float64
            Display values in [0, 1].
        """
        value = np.asarray(stored, np.float64)
        modality = self.modality_lut(value) if self.modality_lut else value * self.slope + self.intercept
        if isinstance(self.voi, LookupTable):
            shown = self.voi(modality)
        elif self.voi.function == "SIGMOID":
            exponent = np.clip(-4 * (modality - self.voi.center) / self.voi.width, -700, 700)
            shown = 1 / (1 + np.exp(exponent))
        else:
            low, high = self.voi.bounds
            ramp = (modality - low) / (high - low) if high > low else np.zeros_like(modality)
            # The comparisons, not the ramp, decide at and beyond the bounds (a width of 1 is a threshold).
            shown = np.where(modality <= low, 0.0, np.where(modality > high, 1.0, np.clip(ramp, 0, 1)))
        shown = 1 - shown if self.invert else shown
        if self.padding is not None:
            shown = np.where((value >= self.padding[0]) & (value <= self.padding[1]), 0.0, shown)
        return shown


@dataclass(frozen=True, eq=False, kw_only=True)
class Radiograph:
    """One film: stored pixels, display transform and what is known of its acquisition.  None: not known.

    Attributes
    ----------
    pixels : ndarray or DeviceArray, shape (rows, columns), uint8 | uint16 | int16 | float32
        Pixels as stored; never rescaled, windowed or inverted.
    display : Display
        How stored values become display values.
    origin : {"dicom", "image", "array"}
        What the film was read from.
    pixel_spacing : tuple of float or None
        ``(row, column)`` distance of pixel centres in mm.
    spacing_source : str or None
        "PixelSpacing" (at the patient or calibrated) or "ImagerPixelSpacing" (at the detector: magnified).
    patient_orientation : tuple of str or None
        DICOM Patient Orientation: direction of the rows and of the columns, e.g. ``("L", "F")``.
    view : str or None
        DICOM View Position, upper case: "AP", "PA", "LL", ...
    modality, sop_class_uid, body_part, presentation_intent, photometric, laterality : str or None
        The DICOM attributes of these names, upper case where they are code strings.
    age : float or None
        Patient's age in years.
    warnings : tuple of str
        What the reader had to decide or repair; ends in ``Detection.quality.warnings``.
    dataset : object or None
        The DICOM header (pydicom Dataset without pixel data), for the writers.
    """

    pixels: npt.NDArray[np.generic] | DeviceArray
    display: Display
    origin: Literal["dicom", "image", "array"]
    pixel_spacing: tuple[float, float] | None = None
    spacing_source: str | None = None
    patient_orientation: tuple[str, str] | None = None
    view: str | None = None
    modality: str | None = None
    sop_class_uid: str | None = None
    body_part: str | None = None
    presentation_intent: str | None = None
    photometric: str | None = None
    laterality: str | None = None
    age: float | None = None
    warnings: tuple[str, ...] = ()
    dataset: object | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_pixels(self.pixels)
        spacing, orientation, age = self.pixel_spacing, self.patient_orientation, self.age
        if spacing is not None and not _holds(lambda: len(spacing) == 2 and all(0 < mm < 1000 for mm in spacing)):
            raise InputError("input.metadata", f"pixel spacing {spacing} is not (row, column) in mm")
        if orientation is not None and not _holds(
            lambda: len(orientation) == 2 and all(word and set(word) <= _DIRECTIONS for word in orientation)
        ):
            raise InputError("input.metadata", "patient orientation is not two directions such as ('L', 'F')")
        if age is not None and not _holds(lambda: 0 <= age < 1000):
            raise InputError("input.metadata", "the age is not a number of years")

    @property
    def shape(self) -> tuple[int, int]:
        """``(rows, columns)``."""
        return self.pixels.shape[0], self.pixels.shape[1]

    @property
    def columns_toward(self) -> Literal["left", "right"] | None:
        """Side of the patient to which ``x`` grows; "left", the usual display, where the film does not say.

        None where the rows run neither to the left nor to the right, as on a lateral.
        """
        if self.patient_orientation is None:
            return "left"
        sides: dict[str, Literal["left", "right"]] = {"L": "left", "R": "right"}
        return sides.get(self.patient_orientation[0][:1])

    @classmethod
    def from_array(
        cls,
        pixels: npt.NDArray[np.generic] | object,
        *,
        window: tuple[float, float] | None = None,
        invert: bool = False,
        pixel_spacing: tuple[float, float] | None = None,
        patient_orientation: tuple[str, str] | None = None,
        view: str | None = None,
    ) -> Radiograph:
        """Make a film of an array, with its meaning stated.

        Parameters
        ----------
        pixels : array, shape (rows, columns), uint8 | uint16 | int16 | float32
            Stored values in native byte order: an ndarray with any strides, but no ``numpy.memmap``, or an array on a
            CUDA device (CuPy, PyTorch, PyCUDA: ``__cuda_array_interface__`` or DLPack) with its columns side by side,
            which is used in place.  It must not change before the film has been scored.
        window : tuple of float, optional
            ``(low, high)`` stored values shown as black and as white.  Default: 0..255 for uint8, 0..1 for float32
            (values outside are refused), and for 16-bit arrays the 0.1 and 99.9 percentiles, with a warning.  On a
            device only uint8 has a default.
        invert : bool
            True where low values are white (MONOCHROME1).
        pixel_spacing : tuple of float, optional
            ``(row, column)`` in mm.
        patient_orientation : tuple of str, optional
            As DICOM Patient Orientation; default unknown, taken as ``("L", "F")``.
        view : str, optional
            "AP" or "PA".

        Raises
        ------
        InputError
            ``input.type``, ``input.dtype``, ``input.shape``, ``input.range``, ``input.not_finite``, ``input.metadata``.
        BackendError
            ``backend.unavailable``: an array on a device, and no CUDA driver to ask about it.
        """
        if is_device_array(pixels):
            pixels = DeviceArray.of(pixels)
        pixels = check_pixels(pixels)
        shown, warnings = _default_window(pixels) if window is None else (window, ())
        if not _holds(lambda: len(shown) == 2 and -_LARGEST / 4 < shown[0] < shown[1] < _LARGEST / 4):
            raise InputError("input.range", f"window {shown} is not (low, high) with low < high")
        if not _holds(lambda: view is None or view.isascii()):
            raise InputError("input.metadata", "the view is not a DICOM View Position")
        return cls(
            pixels=pixels,
            display=Display(voi=Window.from_range(*shown), invert=invert),
            origin="array",
            pixel_spacing=pixel_spacing,
            spacing_source="PixelSpacing" if pixel_spacing else None,
            patient_orientation=patient_orientation,
            view=view.upper() if view else None,
            warnings=warnings,
        )


def _holds(test: Callable[[], object]) -> bool:
    """Say whether a test of what a caller gave holds; what the test cannot be put to fails it."""
    try:
        return bool(test())
    except (TypeError, ValueError, LookupError, AttributeError):
        return False


def check_pixels(pixels: object) -> npt.NDArray[np.generic] | DeviceArray:
    """Return `pixels`, which must be a plain two-dimensional array of a stored dtype, in memory.

    Raises
    ------
    InputError
        ``input.type``, ``input.dtype``, ``input.shape``.
    """
    if not isinstance(pixels, (np.ndarray, DeviceArray)) or isinstance(pixels, np.ma.MaskedArray):
        raise InputError("input.type", f"expected a plain numpy array, got {type(pixels).__name__}")
    if _is_mapped(pixels):
        # A file cut short would end the process, and a disk that hangs would hold the call beyond its timeout.
        raise InputError("input.type", "the array is a file's, mapped (numpy.memmap): pass a copy, numpy.array(film)")
    if pixels.dtype.name not in STORED_DTYPES or not pixels.dtype.isnative:
        raise InputError(
            "input.dtype", f"pixels are {pixels.dtype}, not native {', '.join(STORED_DTYPES)}; convert them knowingly"
        )
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise InputError("input.shape", f"pixels have shape {pixels.shape}, not (rows, columns)")
    return pixels


def _is_mapped(pixels: object) -> bool:
    """Say whether an array is a ``numpy.memmap``, or a part or view of one; what was copied out of it is not."""
    mapped = False
    while isinstance(pixels, np.ndarray):
        mapped |= isinstance(pixels, np.memmap)
        pixels = pixels.base
    return mapped and pixels is not None


def _default_window(pixels: npt.NDArray[np.generic] | DeviceArray) -> tuple[tuple[float, float], tuple[str, ...]]:
    if pixels.dtype == np.uint8:
        return (0.0, 255.0), ()
    if isinstance(pixels, DeviceArray):
        raise InputError("input.range", f"{pixels.dtype} pixels on a device; give a window to Radiograph.from_array")
    if pixels.dtype == np.float32:
        low, high = float(pixels.min()), float(pixels.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            raise InputError("input.not_finite", "the array holds NaN or infinity")
        if low < 0 or high > 1:
            raise InputError(
                "input.range", f"float pixels span {low:g}..{high:g}; give a window to Radiograph.from_array"
            )
        return (0.0, 1.0), ()
    return estimate_window(pixels), ("window.estimated: no window stated, percentiles 0.1 and 99.9 used",)


def estimate_window(pixels: npt.NDArray[np.generic], *, padding: tuple[int, int] | None = None) -> tuple[float, float]:
    """Return the 0.1 and 99.9 percentiles of the stored values, from a regular sample of at most about 10^6 pixels.

    Parameters
    ----------
    pixels : ndarray, shape (rows, columns)
        Finite stored values.
    padding : tuple of int, optional
        ``(low, high)``, inclusive: values to leave out.

    Returns
    -------
    tuple of float
        ``(low, high)`` with ``low < high``.
    """
    return bounds_of(sample_of(pixels, padding))


def sample_of(pixels: npt.NDArray[np.generic], padding: tuple[int, int] | None) -> npt.NDArray[np.float64]:
    """Return a regular sample of at most about 10^6 stored values, padding left out where there is anything else."""
    step = max(1, int(np.sqrt(pixels.size / 1e6)))
    sample = pixels[::step, ::step].astype(np.float64).ravel()
    if padding is None:
        return sample
    image = sample[(sample < padding[0]) | (sample > padding[1])]
    return image if image.size else sample


def bounds_of(sample: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the 0.1 and 99.9 percentiles, ``low < high``."""
    low, high = (float(value) for value in np.percentile(sample, (0.1, 99.9)))
    return low, high if high > low else low + 1
