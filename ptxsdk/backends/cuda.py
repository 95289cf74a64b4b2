"""A CUDA device: what it is, its streams and its memory, through NVIDIA's own cuda-core."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ptxsdk.errors import BackendError

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
    driver : str
        CUDA version of the driver, then the kernel module's own where there is one: "13.0 580.65.06".
    """

    index: int
    name: str
    capability: tuple[int, int]
    driver: str

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
            return cls(index=index, name=str(device.name), capability=(int(major), int(minor)), driver=_driver())
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

    def stream(self) -> Any:
        """Return a new stream, a ``cuda.core.Stream``; the device must be `current`."""
        from cuda.core import Device

        return Device(self.index).create_stream()

    def allocate(self, size: int, *, stream: Any) -> Any:
        """Return `size` bytes of the device's memory, a ``cuda.core.Buffer``; the device must be `current`."""
        from cuda.core import Device

        return Device(self.index).allocate(size, stream=stream)

    def pinned(self, size: int) -> Any:
        """Return `size` bytes of page-locked host memory, a ``cuda.core.Buffer``; the device must be `current`."""
        from cuda.core import LegacyPinnedMemoryResource

        return LegacyPinnedMemoryResource().allocate(size)


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
