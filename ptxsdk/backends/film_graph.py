"""FilmGraph: raw pixels to regions on a GPU; preprocess, network and aggregate of one film replayed as one CUDA graph.

A film goes up once, as stored.  What comes back in one copy is the result of aggregate (logit and region records), the
few display values that the gate looks at, and, where locations may be shown, the map.  Nothing in the graph depends on
the film: its size, window and address stand in a parameter block that the graph copies up first.  So one graph,
captured at start-up, serves every film, also one that lies on the device already.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ptxsdk import gate
from ptxsdk.backends.contract import as_plane
from ptxsdk.backends.cuda import FIRST_PATIENCE, PATIENCE, Gpu, address_of, release
from ptxsdk.device_array import DeviceArray
from ptxsdk.engine import Engine
from ptxsdk.errors import BackendError, InputError
from ptxsdk.geometry import Geometry
from ptxsdk.ops.device import cuda_module, failures_of, film_on, in_order, pack_film
from ptxsdk.ops.preprocess import transfer_of
from ptxsdk.pipeline import Check, Floats, Run
from ptxsdk.radiograph import Display

_RECORDS = 16  # regions that come back with the result; a film with more is left to the CPU twin
_SAMPLE = 1 << 13  # display values for the gate that come back at once; 64 by 64 to 90 by 80 are usual
_MOST_SAMPLE = 1 << 15
_TILE = 2048  # source columns of a tile of a film 3,000 pixels wide, at 384 target columns
_ALIGNED = 16  # bytes; the kernels load so many at once
# One block on the device: the film's description, the word not_finite, the gate's sample, the result.  The graph copies
# the first two up, the word as zero, and all but the first back.
_NOT_FINITE_AT = 252
_SAMPLE_AT = 256


class Tensor(Protocol):
    """A tensor of the network: the same shape and dtype on the device and in page-locked memory."""

    device: Any
    host: npt.NDArray[Any]


class FilmGraph:
    """See the module; a `ptxsdk.pipeline.Pipeline` that is not thread-safe, on a stream of the network's.

    Parameters
    ----------
    gpu : Gpu
        The device.
    stream : object
        A ``cuda.core.Stream`` of its own.
    network : callable
        Launches the network on the stream whose address it gets; says whether it could.
    image, patch, mask : Tensor
        Input and outputs of the network.
    engine : Engine
        What fixes preprocessing and aggregation.
    locate : bool
        Whether maps and outlines are wanted.

    Raises
    ------
    BackendError
        ``backend.unavailable``: no CUDA operations in this installation; ``backend.failed``: the network cannot be
        captured; ``backend.out_of_memory``.
    """

    def __init__(
        self,
        gpu: Gpu,
        stream: Any,
        *,
        network: Callable[[int], bool],
        image: Tensor,
        patch: Tensor,
        mask: Tensor,
        engine: Engine,
        locate: bool,
    ) -> None:
        self._gpu, self._engine, self._locate = gpu, engine, locate
        self._cuda = cuda_module()
        self._tile, self._sample = _TILE, _SAMPLE
        # The only reference, so that whoever empties it decides where things are freed.
        self._held: list[_Held] = []
        self._let_go = weakref.finalize(self, release, gpu, self._held)
        self._let_go.atexit = False
        rows, columns = engine.manifest.input.size
        with self._using_the_device():
            scratch = self._cuda.aggregate_scratch_bytes(rows, columns)
            held = _Held(
                stream=stream,
                network=network,
                image=image,
                patch=patch,
                mask=mask,
                table=_Both(gpu, 4 * 65536, stream),
                film=_Both(gpu, _ALIGNED, stream),
                block=_Both(gpu, _SAMPLE_AT + 4 * _MOST_SAMPLE + self._cuda.RESULT_BYTES, stream),
                scratch=gpu.allocate(scratch, stream=stream),
            )
            self._held.append(held)
            stream_address = held.address
            del held  # a traceback would keep it beyond the moment when its device is current
            try:
                self._cuda.zero(to=int(self._memory.scratch.handle), size=scratch, stream=stream_address)
                self._memory.block.up(self._cuda, stream_address)
                # First outside a capture: TensorRT finishes its preparations, and CUDA loads the kernels.
                self._record(stream_address)
                self._wait(FIRST_PATIENCE)
                self._capture()
                self._memory.graph.launch(self._memory.stream)
                self._wait(FIRST_PATIENCE)
            except BaseException:
                self._let_go()
                raise

    def run(self, pixels: Any, display: Display, *, check: Check | None = None) -> Run:
        """See `ptxsdk.pipeline.Pipeline.run`; `check` sees its picture after the graph, before anything comes out."""
        rows, columns = self._engine.manifest.input.size
        geometry = Geometry.fit((pixels.shape[0], pixels.shape[1]), (rows, columns))
        step = gate.sample_step(geometry)
        with self._using_the_device():
            started = perf_counter()
            film = self._on_device(pixels)
            tile = pack_film(
                self._cuda,
                self._memory.block.host[: self._cuda.FILM_BYTES],
                film,
                geometry,
                self._transfer(display, film.dtype),
                mean=self._engine.manifest.input.mean,
                std=self._engine.manifest.input.std,
                sample_step=step,
            )
            sample = _count(geometry, step)
            if sample > _MOST_SAMPLE:
                raise InputError(
                    "input.unsupported", f"a film of {geometry.source} pixels is too long for this pipeline"
                )
            if tile > self._tile or sample > self._sample:  # wider or longer than usual
                self._capture(max(tile, self._tile), _MOST_SAMPLE)
            block = self._memory.block.host
            block[_NOT_FINITE_AT:_SAMPLE_AT] = 0
            uploaded = perf_counter()
            self._memory.graph.launch(self._memory.stream)
            self._wait()
            ran = perf_counter()
        if block[_NOT_FINITE_AT:_SAMPLE_AT].any():
            raise InputError("input.not_finite", "the pixels hold NaN or infinity")
        if check is not None:
            check(_sample(block, geometry, step))
        return Run(
            geometry=geometry,
            logits=self._logits,
            preprocess=uploaded - started,
            gate=perf_counter() - ran,
            network=ran - uploaded,
            result=block[self._result_at :][: self._head_bytes].copy(),
        )

    def close(self) -> None:
        """Free graph and memory; idempotent."""
        self._let_go()

    @property
    def _memory(self) -> _Held:
        if not self._held:
            raise BackendError("backend.failed", "the pipeline was closed")
        return self._held[0]

    @property
    def _head_bytes(self) -> int:
        """Of a result with its first records."""
        fewer: int = self._cuda.RESULT_BYTES - (self._cuda.MOST_RECORDS - _RECORDS) * self._cuda.RECORD_BYTES
        return fewer

    @property
    def _result_at(self) -> int:
        return _SAMPLE_AT + 4 * self._sample

    def _capture(self, tile: int = _TILE, sample: int = _SAMPLE) -> None:
        before = self._tile, self._sample
        self._tile, self._sample = tile, sample
        try:
            self._memory.graph = self._gpu.captured(self._memory.stream, self._record)
        except BaseException:
            self._tile, self._sample = before
            raise

    def _record(self, stream: int) -> None:
        """Enqueue everything between the film's description and the results; the graph is captured from this."""
        cuda, contract, memory = self._cuda, self._engine.manifest, self._memory
        rows, columns = contract.input.size
        block = int(memory.block.device.handle)
        memory.block.up(cuda, stream, size=_SAMPLE_AT)
        cuda.preprocess(
            films=block,
            count=1,
            widest_tile=self._tile,
            target=int(memory.image.device.handle),
            target_type=memory.image.host.dtype.name,
            rows=rows,
            columns=columns,
            sample=block + _SAMPLE_AT,
            sample_capacity=self._sample,
            not_finite=block + _NOT_FINITE_AT,
            stream=stream,
        )
        if not memory.network(stream):
            raise BackendError("backend.failed", "the network cannot be captured in a CUDA graph")
        cuda.aggregate(
            films=block,
            count=1,
            patch=int(memory.patch.device.handle),
            patch_type=memory.patch.host.dtype.name,
            patches=math.prod(memory.patch.host.shape),
            mask=int(memory.mask.device.handle),
            mask_type=memory.mask.host.dtype.name,
            rows=rows,
            columns=columns,
            scratch=int(memory.scratch.handle),
            results=block + self._result_at,
            film_results=cuda.RESULT_BYTES,
            stream=stream,
            **contract.scoring,
        )
        cuda.copy(
            to=memory.block.host[_NOT_FINITE_AT:].ctypes.data,
            source=block + _NOT_FINITE_AT,
            size=self._result_at + self._head_bytes - _NOT_FINITE_AT,
            stream=stream,
        )
        if self._locate:
            self._fetch(stream)

    def _fetch(self, stream: int) -> None:
        for tensor in (self._memory.patch, self._memory.mask):
            self._cuda.copy(
                to=tensor.host.ctypes.data, source=int(tensor.device.handle), size=tensor.host.nbytes, stream=stream
            )

    def _logits(self) -> tuple[Floats, Floats]:
        if not self._locate:
            with self._using_the_device():
                self._fetch(self._memory.address)
                self._wait()
        patch, mask = self._engine.manifest.outputs.patch_logits, self._engine.manifest.outputs.mask_logits
        return (
            as_plane(self._memory.patch.host.astype(np.float32, copy=False), patch.name, patch.grid),
            as_plane(self._memory.mask.host.astype(np.float32, copy=False), mask.name, mask.size),
        )

    def _on_device(self, pixels: Any) -> DeviceArray:
        """Return the film where the kernels read it: in place, or uploaded, its rows beginning at aligned addresses."""
        memory = self._memory
        if isinstance(pixels, DeviceArray):
            film = in_order(self._gpu, pixels, memory.address, film_on)
            self._wait(FIRST_PATIENCE)  # for its producer, whose work is not the film's
            return film
        rows, columns = pixels.shape
        pitch = -(-columns * pixels.itemsize // _ALIGNED) * _ALIGNED
        if memory.film.size < rows * pitch:
            self._wait(FIRST_PATIENCE)  # a film refused after its upload began may still be on its way
            memory.film = _Both(self._gpu, rows * pitch, memory.stream)
        staging = memory.film.host.ctypes.data
        # Where the GPU shares the host's memory it reads the page-locked copy itself.
        address = staging if self._gpu.integrated else int(memory.film.device.handle)
        self._cuda.upload(
            device=0 if self._gpu.integrated else address,
            staging=staging,
            pixels=pixels,
            pitch=pitch,
            stream=memory.address,
        )
        return DeviceArray(
            address=address,
            shape=(rows, columns),
            strides=(pitch, pixels.itemsize),
            dtype=pixels.dtype,
            device=self._gpu.index,
            owner=memory.film,
        )

    def _transfer(self, display: Display, dtype: np.dtype[Any]) -> dict[str, Any]:
        transfer = transfer_of(display, dtype)
        table = transfer.pop("table", None)
        if table is not None:
            self._memory.table.host[: table.nbytes] = table.view(np.uint8)
            self._memory.table.up(self._cuda, self._memory.address)
            transfer["table"] = int(self._memory.table.device.handle)
        return transfer

    def _wait(self, seconds: float | None = None) -> None:
        seconds = PATIENCE if seconds is None else seconds
        if not self._cuda.wait(stream=self._memory.address, seconds=seconds):
            raise BackendError("backend.lost", f"cuda:{self._gpu.index} did not answer within {seconds:g} s")

    @contextlib.contextmanager
    def _using_the_device(self) -> Iterator[None]:
        with failures_of(f"cuda:{self._gpu.index}"), self._gpu.current():
            yield


def _sample_shape(geometry: Geometry, step: int) -> tuple[int, int]:
    x0, y0, x1, y1 = geometry.content
    return -(-(y1 - y0) // step), -(-(x1 - x0) // step)


def _count(geometry: Geometry, step: int) -> int:
    return math.prod(_sample_shape(geometry, step))


def _sample(block: npt.NDArray[np.uint8], geometry: Geometry, step: int) -> Floats:
    count = _count(geometry, step)
    values: Floats = block[_SAMPLE_AT:][: 4 * count].view(np.float32).reshape(_sample_shape(geometry, step)).copy()
    return values


@dataclass(kw_only=True)
class _Held:
    """What the pipeline owns on the device, and what it borrows of the network."""

    stream: Any
    network: Callable[[int], bool]
    image: Tensor
    patch: Tensor
    mask: Tensor
    table: _Both
    film: _Both
    block: _Both
    scratch: Any
    graph: Any = None

    @property
    def address(self) -> int:
        """Of the stream."""
        return address_of(self.stream)


class _Both:
    """A block of memory on the device, and its page-locked twin on the host as an array of bytes."""

    def __init__(self, gpu: Gpu, size: int, stream: Any) -> None:
        self.size = size
        self.device = gpu.allocate(size, stream=stream)
        self._pinned = gpu.pinned(size)
        block = (ctypes.c_uint8 * size).from_address(int(self._pinned.handle))
        self.host: npt.NDArray[np.uint8] = np.ctypeslib.as_array(block)
        self.host[...] = 0

    def up(self, cuda: Any, stream: int, *, size: int | None = None) -> None:
        """Copy the host's block, or its first bytes, to the device."""
        length = self.size if size is None else size
        cuda.copy(to=int(self.device.handle), source=self.host.ctypes.data, size=length, stream=stream)
