"""DeviceArray: an array in the memory of a CUDA device, of CuPy, PyTorch, PyCUDA, Numba or our own, used in place."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ptxsdk.errors import BackendError, InputError, PtxsdkError

_DLPACK_CUDA = (2, 13)  # kDLCUDA, kDLCUDAManaged


def is_device_array(value: object) -> bool:
    """Say whether `value` offers device memory, through ``__cuda_array_interface__`` or DLPack."""
    if isinstance(value, (DeviceArray, np.ndarray)):
        return isinstance(value, DeviceArray)
    try:
        if hasattr(value, "__cuda_array_interface__"):  # a PyTorch tensor of the host raises AttributeError
            return True
    except RuntimeError:  # one on a device that requires grad
        return True
    try:
        return bool(value.__dlpack_device__()[0] in _DLPACK_CUDA)  # type: ignore[attr-defined]
    except (AttributeError, TypeError, ValueError, RuntimeError, BufferError):
        return False


@dataclass(frozen=True, eq=False, kw_only=True)
class DeviceArray:
    """Where an array lies on a device.  It keeps its owner alive; other libraries take it without a copy.

    Attributes
    ----------
    address : int
        Of the first element, on the device.
    shape : tuple of int
    strides : tuple of int
        In bytes.
    dtype : dtype
    device : int
        Index of the CUDA device.
    owner : object
        What the memory belongs to.
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]
    device: int
    owner: object = field(repr=False)

    @classmethod
    def of(cls, value: object, *, stream: int | None = None) -> DeviceArray:
        """Look at an array of another library.

        Parameters
        ----------
        value : object
            With ``__cuda_array_interface__`` or DLPack.
        stream : int, optional
            Address of a CUDA stream that from here on waits for the stream on which the array is made.  Without it the
            array is looked at only.

        Raises
        ------
        InputError
            ``input.type``: no such array, or it cannot be exported (a PyTorch tensor that requires grad).
        BackendError
            ``backend.unavailable``: cuda-core is not installed.
        """
        if isinstance(value, DeviceArray):
            if stream is None or value.is_finished:
                return value
            value = value.owner
        try:
            from cuda.core.utils import StridedMemoryView
        except ImportError as error:
            reason = f"cuda-core is not installed (extra 'tensorrt'): {error}"
            raise BackendError("backend.unavailable", reason) from None
        try:
            view = StridedMemoryView.from_any_interface(value, stream_ptr=-1 if stream is None else stream)
            dtype = np.dtype(view.dtype)
            shape = tuple(int(size) for size in view.shape)
            steps = None if view.strides is None else tuple(int(step) * dtype.itemsize for step in view.strides)
            address, device = int(view.ptr), int(view.device_id) if view.is_device_accessible else -1
        except Exception as error:  # exporters raise what they like
            raise InputError("input.type", f"the device array cannot be used: {error}") from error
        if device < 0:
            raise InputError("input.type", "the array does not lie on a CUDA device")
        strides = _c_strides(shape, dtype) if steps is None else steps
        return cls(address=address, shape=shape, strides=strides, dtype=dtype, device=device, owner=value)

    @classmethod
    def on(cls, memory: Any, shape: tuple[int, ...], dtype: np.dtype[Any], device: int) -> DeviceArray:
        """Describe C-contiguous memory of our own, a ``cuda.core.Buffer``."""
        return cls(
            address=int(memory.handle),
            shape=shape,
            strides=_c_strides(shape, dtype),
            dtype=dtype,
            device=device,
            owner=_Finished(memory),
        )

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def is_finished(self) -> bool:
        """Whether nothing writes the array any more; else its producer's stream has to be waited for."""
        return isinstance(self.owner, _Finished)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie side by side in C order."""
        steps = zip(self.shape, self.strides, _c_strides(self.shape, self.dtype), strict=True)
        return all(size == 1 or own == packed for size, own, packed in steps)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        """The interface's version 3; what wrote the array has been waited for."""
        return {
            "shape": self.shape,
            "strides": self.strides,
            "typestr": self.dtype.str,
            "data": (self.address, False),
            "version": 3,
        }


@dataclass(frozen=True, eq=False)
class _Finished:
    """What the memory of an array belongs to that nothing writes any more."""

    owner: object


def finished(value: object, *, seconds: float) -> DeviceArray:
    """Return an array once all that its producer has begun is done; from then on any thread and stream may use it.

    Exporters order a consumer after the stream that is current on the thread that asks, so this is for the thread that
    handed the array over.

    Parameters
    ----------
    value : object
        As in `DeviceArray.of`.
    seconds : float
        How long to wait.

    Raises
    ------
    InputError
        As `DeviceArray.of`.
    BackendError
        ``backend.lost``: it is not done by then; ``backend.unavailable``, ``backend.failed``.
    """
    from ptxsdk.backends.cuda import Gpu, address_of, failure

    looked_at = DeviceArray.of(value)
    if looked_at.is_finished:
        return looked_at
    gpu = Gpu.open(looked_at.device)
    try:
        with gpu.current():
            stream = gpu.stream()
            array = DeviceArray.of(value, stream=address_of(stream))
            done = gpu.done_within(seconds, stream=stream)
    except PtxsdkError:
        raise
    except Exception as error:  # cuda-core's exceptions share no public base but Exception
        raise failure(f"cuda:{gpu.index}: {error}") from error
    if not done:
        raise BackendError("backend.lost", f"the array on cuda:{gpu.index} was not finished within {seconds:g} s")
    return replace(array, owner=_Finished(array.owner))


def _c_strides(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[int, ...]:
    return tuple(dtype.itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
