"""Codestream: measures and decodes one JPEG, JPEG-LS or JPEG 2000 codestream, whole or not at all.

Its markers are followed to its end (`jpeg`, `jpeg2000`) before a decoder allocates anything.  The decoders are
libjpeg-turbo (baseline, extended, progressive and lossless JPEG), CharLS (JPEG-LS) and OpenJPEG (JPEG 2000 Part 1 and
HTJ2K), all from imagecodecs.  Two of them decode what is there and make up the rest: where that may have happened, the
codestream is decoded again with something behind its data, which must change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from ptxsdk.errors import InputError
from ptxsdk.readers import jpeg, jpeg2000
from ptxsdk.readers.limits import DEFAULT_LIMITS, Limits
from ptxsdk.readers.reading import DEFAULT_READING, Reading

Family = Literal["jpeg", "jpegls", "jpeg2000"]
Array = npt.NDArray[np.generic]

_CODECS: dict[Family, str] = {"jpeg": "jpeg8", "jpegls": "jpegls", "jpeg2000": "jpeg2k"}


@dataclass(frozen=True)
class Measure:
    """What a codestream's header says of its image.

    Attributes
    ----------
    rows, columns, components : int
        Size of the image.
    precision : int
        Bits a sample.
    signed : bool
        Samples are signed (JPEG 2000 only).
    walked : Jpeg or Jpeg2000
        Where its parts are.
    """

    rows: int
    columns: int
    components: int
    precision: int
    signed: bool
    walked: jpeg.Jpeg | jpeg2000.Jpeg2000

    @property
    def bytes_per_pixel(self) -> int:
        """Bytes that a pixel takes, decoded."""
        return self.components * (1 if self.precision <= 8 else 2)


def measure(data: bytes, family: Family, limits: Limits = DEFAULT_LIMITS) -> Measure:
    """Read size and precision from the header, and check that the codestream is complete.

    Raises
    ------
    InputError
        ``input.truncated``, ``input.corrupt``, ``input.unsupported`` or ``input.too_large``.
    """
    if family == "jpeg2000":
        wide = jpeg2000.walk(data, limits)
        found = Measure(wide.rows, wide.columns, wide.components, wide.precision, wide.signed, wide)
    else:
        plain = jpeg.walk(data)
        found = Measure(plain.rows, plain.columns, len(plain.sampling), plain.precision, False, plain)
    if found.components not in (1, 3, 4) or not 2 <= found.precision <= 16:
        raise InputError(
            "input.unsupported",
            f"the codestream has {found.components} components of {found.precision} bits",
        )
    limits.check_size(found.rows, found.columns, found.bytes_per_pixel)
    return found


def decode(
    data: bytes, family: Family, found: Measure, reading: Reading = DEFAULT_READING, *, gray: bool = False
) -> Array:
    """Decode a measured codestream.

    Parameters
    ----------
    data : bytes
        The codestream.
    family : {"jpeg", "jpegls", "jpeg2000"}
        Its kind.
    found : Measure
        What `measure` said of it.
    reading : Reading
        Where the codec runs, and for how long.
    gray : bool
        Return only the luminance of a colour JPEG.

    Returns
    -------
    ndarray, shape (rows, columns) or (rows, columns, components)
        uint8 or uint16 samples; int8 or int16 where the codestream is signed.

    Raises
    ------
    InputError
        ``input.truncated`` or ``input.corrupt``; ``input.timeout``, ``input.too_large`` or ``input.decoder``.
    DetectorError
        ``detector.timeout``.
    """
    options = {"outcolorspace": "grayscale"} if gray and family == "jpeg" else {}
    most = found.rows * found.columns * found.bytes_per_pixel

    def run(codestream: bytes) -> Array:
        return reading.decoded(_CODECS[family], codestream, most=most, **options)

    walked = found.walked
    pixels = run(data if isinstance(walked, jpeg.Jpeg) else jpeg2000.essence(data, walked))
    expected = (found.rows, found.columns) + ((found.components,) if found.components > 1 and not gray else ())
    if pixels.shape != expected:
        raise InputError("input.corrupt", f"decoded to {pixels.shape}, the codestream's header says {expected}")
    if pixels.dtype.kind not in "iu" or pixels.dtype.itemsize != (1 if found.precision <= 8 else 2):
        raise InputError("input.corrupt", f"decoded to {pixels.dtype}, the header says {found.precision} bits")
    if family != "jpegls" and _may_be_made_up(pixels, walked):
        again = jpeg.padded(data, walked) if isinstance(walked, jpeg.Jpeg) else jpeg2000.padded(data, walked)
        if not np.array_equal(pixels, run(again)):
            raise InputError("input.truncated", "the codestream's data end before its image does")
    return pixels


def _may_be_made_up(pixels: Array, walked: jpeg.Jpeg | jpeg2000.Jpeg2000) -> bool:
    """Whether an end of the data may be missing: a decoder fills with one value, up to the image's last pixel.

    Where data end in more places than one, as with restart intervals and progressive scans, that says nothing.
    """
    tail = pixels[-1, -4:]
    return bool((tail == tail[0]).all()) or (isinstance(walked, jpeg.Jpeg) and len(walked.ends) > 1)
