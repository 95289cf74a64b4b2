"""A CUDA device: what it is, its streams and its memory, through NVIDIA's own cuda-core."""

from __future__ import annotations

import contextlib
import gc
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from ptxsdk.errors import BackendError

PATIENCE = 0.75
"""Seconds that a film may take on a device before the device counts as lost."""
FIRST_PATIENCE = 60.0
"""The same for a first film, for which the driver loads what it needs."""
_CAPTURING = threading.Lock()  # the garbage collector rests meanwhile, in the whole process
_PAUSE = 2e-5

# The kernel module's version where NVIDIA's driver says it; Jetsons have none, their driver comes with CUDA.
_MODULE_VERSION = Path("/sys/module/nvidia/version")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One device; made by `Gpu.open`.

    Attributes
    ----------
    index : int
        Its number as CUDA counts, so after ``CUDA_VISIBLE_DEVICES``.
    name : str
        E.g. "NVIDIA RTX A2000".
    capability : tuple of int
        Compute capability, ``(major, minor)``.
    integrated : bool
        Whether it shares the host's memory, as on a Jetson.
    driver : str
        CUDA version of the driver, then the kernel module's own where there is one: "13.0 580.65.06".
    """

    index: int
    name: str
    capability: tuple[int, int]
    driver: str
    integrated: bool = False

    @classmethod
    def open(cls, index: int) -> Gpu:
        """Look at a device; it stays as it is.

        Raises
        ------
        BackendError
            ``backend.unavailable``: no cuda-core, no driver, or no such device.
        """
        there = count()
        if index >= there:
            raise BackendError("backend.unavailable", f"there is no device cuda:{index}, CUDA has {there}")
        from cuda.core import Device

        try:
            device = Device(index)
            major, minor = device.compute_capability
            return cls(
                index=index,
                name=str(device.name),
                capability=(int(major), int(minor)),
                driver=_driver(),
                integrated=bool(device.properties.integrated),
            )
        except Exception as error:  # cuda-core's exceptions share no public base but Exception
            raise BackendError("backend.unavailable", f"cuda:{index} cannot be used: {error}") from error

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Make the device the calling thread's for the block; afterwards the host program has its own choice back."""
        from cuda.bindings import driver
        from cuda.core import Device

        _, before = driver.cuCtxGetCurrent()
        Device(self.index).set_current()
        try:
            yield
        finally:
            if before is not None:
                driver.cuCtxSetCurrent(before)

    def stream(self, address: int | None = None) -> Any:
        """Return a ``cuda.core.Stream``: a new one, or the one at `address`; the device must be `current`."""
        from cuda.core import Device, Stream

        return Device(self.index).create_stream() if address is None else Stream.from_handle(address)

    def allocate(self, size: int, *, stream: Any) -> Any:
        """Return `size` bytes of the device's memory, a ``cuda.core.Buffer``; the device must be `current`."""
        from cuda.core import Device

        return Device(self.index).allocate(size, stream=stream)

    def pinned(self, size: int) -> Any:
        """Return `size` bytes of page-locked host memory, a ``cuda.core.Buffer``; the device must be `current`."""
        from cuda.core import LegacyPinnedMemoryResource

        return LegacyPinnedMemoryResource().allocate(size)

    def done_within(self, seconds: float, *, stream: Any) -> bool:
        """Wait for what is enqueued on a stream; whether it was done in time.  The device must be `current`.

        Raises
        ------
        BackendError
            ``backend.failed``: it failed; ``backend.out_of_memory``.
        """
        from cuda.bindings import driver

        end = monotonic() + seconds
        while True:
            (status,) = driver.cuStreamQuery(driver.CUstream(address_of(stream)))
            if status != driver.CUresult.CUDA_ERROR_NOT_READY:
                _checked((status,))
                return True
            if monotonic() >= end:
                return False
            sleep(_PAUSE)

    def captured(self, stream: Any, record: Callable[[int], None]) -> Graph:
        """Return what `record` enqueues on the stream, whose address it gets, as a graph; the device must be `current`.

        Raises
        ------
        BackendError
            ``backend.failed``: something in it cannot be captured; ``backend.out_of_memory``.
        """
        from cuda.bindings import driver

        address = address_of(stream)
        handle = driver.CUstream(address)
        with _CAPTURING:
            collects = gc.isenabled()
            gc.disable()  # what it frees could be CUDA memory, which must not happen during capture
            try:
                mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
                _checked(driver.cuStreamBeginCapture(handle, mode))
                try:
                    record(address)
                except BaseException:
                    status, broken = driver.cuStreamEndCapture(handle)
                    if int(status) == 0:
                        driver.cuGraphDestroy(broken)
                    raise
                (recorded,) = _checked(driver.cuStreamEndCapture(handle))
            finally:
                if collects:
                    gc.enable()
        try:
            (executable,) = _checked(driver.cuGraphInstantiate(recorded, 0))
        finally:
            driver.cuGraphDestroy(recorded)
        return Graph(executable)


class Graph:
    """A captured graph, ready to be launched."""

    def __init__(self, executable: Any) -> None:
        from cuda.bindings import driver

        self._executable = executable
        weakref.finalize(self, driver.cuGraphExecDestroy, executable).atexit = False

    def launch(self, stream: Any) -> None:
        """Run it once, after what the stream has to do; the device must be current.

        Raises
        ------
        BackendError
            ``backend.failed``.
        """
        from cuda.bindings import driver

        _checked(driver.cuGraphLaunch(self._executable, driver.CUstream(address_of(stream))))


def address_of(stream: Any) -> int:
    """Return the address of a stream, a ``cuda.core.Stream``.

    Raises
    ------
    BackendError
        ``backend.failed``: it was closed.  CUDA would take its address, 0, for the default stream.
    """
    if getattr(stream, "is_closed", False) or not int(stream.handle):  # what older cuda-core than ours lacks
        raise BackendError("backend.failed", "the CUDA stream was closed")
    return int(stream.handle)


def release(gpu: Gpu, held: list[Any]) -> None:
    """Let go of what is in `held` while its device is current, which is where CUDA and TensorRT free it.

    Called when the last user is gone, on whatever thread that happens.  What cannot be freed, as after a fork, is the
    operating system's.
    """
    with contextlib.suppress(Exception), gpu.current():
        while held:
            held.pop()


def failure(text: str) -> BackendError:
    """Return the error for what CUDA, cuda-core or TensorRT said: ``backend.out_of_memory`` or ``backend.failed``."""
    full = re.search(r"OUT_OF_MEMORY|MemoryAllocation|out of memory", text, re.IGNORECASE)
    return BackendError("backend.out_of_memory" if full else "backend.failed", text)


def _checked(outcome: tuple[Any, ...]) -> tuple[Any, ...]:
    status, *values = outcome
    if int(status):
        raise failure(f"CUDA: {status.name}")
    return tuple(values)


def capability_name(capability: tuple[int, int]) -> str:
    """Return a compute capability as NVIDIA writes it: "8.6"."""
    major, minor = capability
    return f"{major}.{minor}"


def count() -> int:
    """Return the number of devices; at least one.

    Raises
    ------
    BackendError
        ``backend.unavailable``, saying whether cuda-core, the driver or a device is missing.
    """
    try:
        import cuda.core  # noqa: F401 -- whether it is there
        from cuda.bindings import driver
    except ImportError as error:
        raise BackendError("backend.unavailable", f"cuda-core is not installed (extra 'tensorrt'): {error}") from error
    try:
        # Not through NVML: Jetsons of JetPack 6 do without it.
        (status,) = driver.cuInit(0)
        if int(status) == 0:
            status, devices = driver.cuDeviceGetCount()
    except Exception as error:  # the loader's errors share no public base but Exception
        raise BackendError("backend.unavailable", f"there is no NVIDIA driver: {error}") from error
    if int(status):
        raise BackendError("backend.unavailable", f"CUDA does not start: {status.name}")
    if not devices:
        raise BackendError("backend.unavailable", "there is no NVIDIA GPU")
    return int(devices)


def _driver() -> str:
    from cuda.bindings import driver

    _, version = driver.cuDriverGetVersion()
    known = f"{version // 1000}.{version % 1000 // 10}"
    with contextlib.suppress(OSError, ValueError):
        known = f"{known} {_MODULE_VERSION.read_text(encoding='ascii').strip()[:40]}"
    return known
