"""The operations' CUDA twins, on arrays that lie on a device; batches of films in one launch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ptxsdk.backends.cuda import FIRST_PATIENCE, Gpu, address_of, failure
from ptxsdk.device_array import DeviceArray
from ptxsdk.errors import BackendError, InputError, PtxsdkError
from ptxsdk.geometry import Geometry
from ptxsdk.ops.aggregate import Aggregate, Method, Side, Source, regions_of
from ptxsdk.ops.preprocess import transfer_of
from ptxsdk.radiograph import STORED_DTYPES, Display

WAIT_SECONDS = 10.0


def cuda_module() -> Any:
    """Return the extension module ``ptxsdk._cuda``.

    Raises
    ------
    BackendError
        ``backend.unavailable``: this installation was built without a CUDA compiler.
    """
    try:
        from ptxsdk import _cuda
    except ImportError as error:
        raise BackendError("backend.unavailable", f"this ptxsdk was built without CUDA operations: {error}") from error
    return _cuda


@contextlib.contextmanager
def failures_of(what: str) -> Iterator[None]:
    """Turn what CUDA and cuda-core raise into a BackendError.

    Raises
    ------
    BackendError
        ``backend.out_of_memory`` or ``backend.failed``.
    """
    try:
        yield
    except (PtxsdkError, TypeError, ValueError):
        raise
    except Exception as error:  # cuda-core's exceptions share no public base but Exception
        raise failure(f"{what}: {error}") from error


class DeviceOps:
    """preprocess and aggregate on one device, for arrays that lie there; not thread-safe.

    A detector on a GPU does not go through it: its film graph launches the same kernels (`backends.film_graph`).

    Parameters
    ----------
    gpu : Gpu
        The device.
    stream : int, optional
        Address of a CUDA stream to work on, which must outlive this; default: one of its own.

    Raises
    ------
    BackendError
        ``backend.unavailable``: no CUDA operations in this installation.
    """

    def __init__(self, gpu: Gpu, *, stream: int | None = None) -> None:
        self._gpu = gpu
        self._cuda = cuda_module()
        with failures_of("a stream"), gpu.current():
            self._stream = gpu.stream(stream)

    def preprocess(
        self,
        films: Sequence[object],
        *,
        displays: Sequence[Display],
        size: tuple[int, int],
        mean: float = 0.0,
        std: float = 1.0,
        dtype: npt.DTypeLike = np.float32,
    ) -> tuple[DeviceArray, list[Geometry]]:
        """Turn films on the device into the network's input; see `ptxsdk.ops.preprocess`.

        Parameters
        ----------
        films : sequence of device arrays, each of shape (rows, columns)
            uint8, uint16, int16 or float32; columns side by side, rows any distance apart.  Sizes may differ.
        displays : sequence of Display
            One a film.
        size, mean, std, dtype
            As in `ptxsdk.ops.preprocess`.

        Returns
        -------
        tensor : DeviceArray, shape (n, 1, rows, columns), `dtype`
            Finished when this returns.
        geometries : list of Geometry
            One a film.

        Raises
        ------
        InputError
            ``input.type``, ``input.dtype``, ``input.shape``, ``input.layout``, ``input.device``, ``input.not_finite``;
            ``input.too_large`` or ``input.unsupported``: a film that only the CPU twin takes.
        BackendError
            ``backend.failed``, ``backend.out_of_memory``, ``backend.lost``.
        TypeError, ValueError
            As `ptxsdk.ops.preprocess`.
        """
        wanted = np.dtype(dtype)
        if len(films) != len(displays) or not films:
            raise ValueError(f"{len(films)} films, {len(displays)} displays")
        stream = address_of(self._stream)
        with failures_of("preprocess"), self._gpu.current():
            views = [in_order(self._gpu, film, stream, film_on) for film in films]
            self._wait_for_producers()
            geometries = [Geometry.fit((view.shape[0], view.shape[1]), size) for view in views]
            packed = np.zeros((len(views), self._cuda.FILM_BYTES), np.uint8)
            tables = []
            widest = 1
            for row, view, display, geometry in zip(packed, views, displays, geometries, strict=True):
                transfer = transfer_of(display, view.dtype)
                table = transfer.pop("table", None)
                if table is not None:
                    tables.append(self._uploaded(table))
                    transfer["table"] = int(tables[-1].handle)
                tile = pack_film(self._cuda, row, view, geometry, transfer, mean=mean, std=std)
                widest = max(widest, tile)
            parameters = self._uploaded(packed)
            count = len(views) * size[0] * size[1]
            memory = self._gpu.allocate(count * wanted.itemsize, stream=self._stream)
            broken = self._gpu.allocate(4 * len(views), stream=self._stream)
            self._cuda.zero(to=int(broken.handle), size=4 * len(views), stream=stream)
            self._cuda.preprocess(
                films=int(parameters.handle),
                count=len(views),
                widest_tile=widest,
                target=int(memory.handle),
                target_type=wanted.name,
                rows=size[0],
                columns=size[1],
                not_finite=int(broken.handle),
                stream=stream,
            )
            found = np.zeros(len(views), np.uint32)
            self._download(found, int(broken.handle))
        if found.any():
            raise InputError("input.not_finite", "the pixels hold NaN or infinity")
        return DeviceArray.on(memory, (len(views), 1, *size), wanted, self._gpu.index), geometries

    def aggregate(
        self,
        patch_logits: object,
        mask_logits: object,
        *,
        geometries: Sequence[Geometry],
        method: Method,
        k: int = 1,
        source: Source = "patch",
        high: float,
        low: float,
        min_area: int,
        columns_toward: Side | None = None,
        pixel_spacing: tuple[float, float] | None = None,
        want_outlines: bool = True,
    ) -> list[Aggregate]:
        """Score films and find the regions of their maps, on the device; see `ptxsdk.ops.aggregate`.

        Parameters
        ----------
        patch_logits : device array, shape (n, P, Q), float32 | float16, C-contiguous
            Logits of the patches.
        mask_logits : device array, shape (n, rows, columns), float32 | float16, C-contiguous
            Logits of the maps, at most 4096 x 1024.
        geometries : sequence of Geometry
            One a film; all of one target.
        method, k, source, high, low, min_area, columns_toward, pixel_spacing, want_outlines
            As in `ptxsdk.ops.aggregate`; outlines are traced on the host, from a copy of the map.

        Returns
        -------
        list of Aggregate
            Regions, boxes, areas, centroids and peaks equal those of the CPU twin; probabilities and logits to 1e-5.
            A map with more than 1024 regions is left to the CPU twin.

        Raises
        ------
        BackendError
            ``backend.not_finite``, ``backend.failed``, ``backend.out_of_memory``, ``backend.lost``.
        InputError
            ``input.type``, ``input.dtype``, ``input.shape``, ``input.layout``, ``input.device``.
        """
        stream = address_of(self._stream)
        with failures_of("aggregate"), self._gpu.current():
            patch = in_order(self._gpu, patch_logits, stream, _logits_on)
            mask = in_order(self._gpu, mask_logits, stream, _logits_on)
            self._wait_for_producers()
            count, rows, columns = mask.shape
            if len(geometries) != count or patch.shape[0] != count:
                raise ValueError(f"{patch.shape[0]} and {count} films, {len(geometries)} geometries")
            if any(tuple(geometry.target) != (rows, columns) for geometry in geometries):
                raise ValueError("a geometry's target is not the map's shape")
            packed = np.zeros((count, self._cuda.FILM_BYTES), np.uint8)
            for row, geometry in zip(packed, geometries, strict=True):
                self._cuda.pack_film(
                    row, data=0, type="uint8", rows=1, columns=1, pitch=0, content=geometry.content,
                    target_rows=rows, target_columns=columns, transfer="linear",
                )  # fmt: skip
            parameters = self._uploaded(packed)
            scratch_bytes = count * self._cuda.aggregate_scratch_bytes(rows, columns)
            scratch = self._gpu.allocate(scratch_bytes, stream=self._stream)
            self._cuda.zero(to=int(scratch.handle), size=scratch_bytes, stream=stream)
            results = np.zeros((count, self._cuda.RESULT_BYTES), np.uint8)
            memory = self._gpu.allocate(results.nbytes, stream=self._stream)
            self._cuda.zero(to=int(memory.handle), size=results.nbytes, stream=stream)  # records that are none
            self._cuda.aggregate(
                films=int(parameters.handle),
                count=count,
                patch=patch.address,
                patch_type=patch.dtype.name,
                patches=patch.shape[1] * patch.shape[2],
                mask=mask.address,
                mask_type=mask.dtype.name,
                rows=rows,
                columns=columns,
                method=method,
                source=source,
                k=k,
                high=high,
                low=low,
                min_area=min_area,
                scratch=int(scratch.handle),
                results=int(memory.handle),
                film_results=self._cuda.RESULT_BYTES,
                stream=stream,
            )
            self._download(results, int(memory.handle))
            host_patch, host_mask = np.empty(patch.shape, patch.dtype), np.empty(mask.shape, mask.dtype)
            self._download(host_patch, patch.address)
            self._download(host_mask, mask.address)
        scoring: dict[str, Any] = {
            "method": method, "k": k, "source": source, "high": high, "low": low, "min_area": min_area,
        }  # fmt: skip
        patches, maps = host_patch.astype(np.float32, copy=False), host_mask.astype(np.float32, copy=False)
        return [
            regions_of(
                result,
                functools.partial(_pair, patches[i], maps[i]),
                geometry=geometry,
                columns_toward=columns_toward,
                pixel_spacing=pixel_spacing,
                want_outlines=want_outlines,
                **scoring,
            )
            for i, (result, geometry) in enumerate(zip(results, geometries, strict=True))
        ]

    def close(self) -> None:
        """Let go of the stream; arrays that were made live on."""
        with failures_of("a stream"), self._gpu.current():
            self._stream.close()

    def _uploaded(self, values: npt.NDArray[Any]) -> Any:
        buffer = self._gpu.allocate(values.nbytes, stream=self._stream)
        self._cuda.copy(
            to=int(buffer.handle), source=values.ctypes.data, size=values.nbytes, stream=address_of(self._stream)
        )
        return buffer

    def _download(self, into: npt.NDArray[Any], address: int) -> None:
        # A copy into memory that is not page-locked waits itself, but without an end.
        self._wait()
        self._cuda.copy(to=into.ctypes.data, source=address, size=into.nbytes, stream=address_of(self._stream))
        self._wait()

    def _wait(self, seconds: float = WAIT_SECONDS) -> None:
        if not self._cuda.wait(stream=address_of(self._stream), seconds=seconds):
            raise BackendError("backend.lost", f"the device did not answer within {seconds:g} s")

    def _wait_for_producers(self) -> None:
        self._wait(FIRST_PATIENCE)


def _pair(
    patch: npt.NDArray[np.float32], mask: npt.NDArray[np.float32]
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    return patch, mask


def in_order(gpu: Gpu, array: object, stream: int, checked: Callable[[Gpu, DeviceArray], DeviceArray]) -> DeviceArray:
    """Return an array whose producer's work the stream waits for, once it is known to be one that can be used.

    An array on another device must not be asked for in the stream's order: its events are of another context.
    """
    checked(gpu, DeviceArray.of(array))
    return checked(gpu, DeviceArray.of(array, stream=stream))


def film_on(gpu: Gpu, film: DeviceArray) -> DeviceArray:
    """Return `film` if the kernels read it in place.

    Raises
    ------
    InputError
        ``input.dtype``, ``input.shape``, ``input.layout``, ``input.device``.
    """
    if film.dtype.name not in STORED_DTYPES or not film.dtype.isnative:
        raise InputError("input.dtype", f"pixels are {film.dtype}, not native {', '.join(STORED_DTYPES)}")
    if film.ndim != 2 or 0 in film.shape:
        raise InputError("input.shape", f"pixels have shape {film.shape}, not (rows, columns)")
    size = film.dtype.itemsize
    if (film.strides[1] != size and film.shape[1] > 1) or film.strides[0] % size or film.address % size:
        raise InputError("input.layout", f"strides {film.strides} bytes: columns must lie side by side, and aligned")
    _require_device(gpu, film)
    return film


def pack_film(
    cuda: Any,
    into: npt.NDArray[np.uint8],
    film: DeviceArray,
    geometry: Geometry,
    transfer: dict[str, Any],
    *,
    mean: float,
    std: float,
    sample_step: int = 0,
) -> int:
    """Describe a film for the kernels, in `into`; returns the source columns of its widest tile.

    Raises
    ------
    InputError
        ``input.too_large``: a side, or what a tile of 256 target columns covers, is beyond what the kernel takes.
    """
    if max(film.shape) > cuda.LONGEST_SIDE:
        raise InputError(
            "input.too_large", f"a film of {film.shape} pixels; the kernel takes {cuda.LONGEST_SIDE} a side"
        )
    widest: int = cuda.pack_film(
        into,
        data=film.address,
        type=film.dtype.name,
        rows=film.shape[0],
        columns=film.shape[1],
        pitch=film.strides[0],
        content=geometry.content,
        target_rows=geometry.target[0],
        target_columns=geometry.target[1],
        mean=mean,
        std=std,
        sample_step=sample_step,
        **transfer,
    )
    if widest > cuda.WIDEST_TILE:
        raise InputError(
            "input.too_large", f"a film {film.shape[1]} pixels wide for a target {geometry.target[1]} wide"
        )
    return widest


def _logits_on(gpu: Gpu, logits: DeviceArray) -> DeviceArray:
    if logits.dtype.name not in ("float32", "float16"):
        raise InputError("input.dtype", f"logits are {logits.dtype}, not float32 or float16")
    if logits.ndim != 3 or 0 in logits.shape:
        raise InputError("input.shape", f"logits have shape {logits.shape}, not (films, rows, columns)")
    if not logits.is_contiguous:
        raise InputError("input.layout", "logits must be C-contiguous")
    _require_device(gpu, logits)
    return logits


def _require_device(gpu: Gpu, array: DeviceArray) -> None:
    if array.device != gpu.index:
        raise InputError("input.device", f"the array lies on cuda:{array.device}, not on cuda:{gpu.index}")
