"""The twins of every operation: on the CPU, on a GPU, and the GPU's code played on the host."""

from __future__ import annotations

import ctypes

import numpy as np
import played_cuda
import pytest
from pretend_gpu import PretendGpu

import ptxsdk.ops
from ptxsdk.device_array import DeviceArray
from ptxsdk.errors import BackendError
from ptxsdk.ops import device


class CpuTwin:
    name = "cpu"
    exact = 1e-13  # relative error of scores

    preprocess = staticmethod(ptxsdk.ops.preprocess)
    aggregate = staticmethod(ptxsdk.ops.aggregate)


class CudaTwin:
    """The CUDA twins behind the signatures of the CPU twins, one film at a time."""

    exact = 2e-6

    def __init__(self, name, gpu):
        self.name = name
        self.gpu = gpu
        self.ops = device.DeviceOps(gpu)

    def preprocess(self, pixels, *, display, size, mean=0.0, std=1.0, dtype=np.float32):
        tensor, geometries = self.ops.preprocess(
            [self.moved(pixels)], displays=[display], size=size, mean=mean, std=std, dtype=dtype
        )
        return self.back(tensor)[0, 0], geometries[0]

    def aggregate(self, patch_logits, mask_logits, *, geometry, **options):
        moved = self.moved(patch_logits[None]), self.moved(mask_logits[None])
        return self.ops.aggregate(*moved, geometries=[geometry], **options)[0]

    def moved(self, array, offset=0):
        """A copy on the device, its strides kept, beginning `offset` bytes after a boundary."""
        low, high = np.lib.array_utils.byte_bounds(array)
        raw = np.frombuffer((ctypes.c_uint8 * (high - low)).from_address(low), np.uint8)
        with self.gpu.current():
            buffer = self.gpu.allocate(len(raw) + offset, stream=self.ops._stream)
            stream = int(self.ops._stream.handle)
            address = int(buffer.handle) + offset
            if offset:  # words are read from the boundary on, which initcheck would report
                self.ops._cuda.zero(to=int(buffer.handle), size=offset, stream=stream)
            self.ops._cuda.copy(to=address, source=raw.ctypes.data, size=len(raw), stream=stream)
            assert self.ops._cuda.wait(stream=stream, seconds=10)
        memory = DeviceArray.on(buffer, (len(raw),), np.dtype(np.uint8), self.gpu.index)
        return DeviceArray(
            address=address + array.ctypes.data - low,
            shape=array.shape,
            strides=array.strides,
            dtype=array.dtype,
            device=self.gpu.index,
            owner=memory.owner,
        )

    def back(self, array):
        host = np.empty(array.shape, array.dtype)
        with self.gpu.current():
            self.ops._download(host, array.address)
        return host


@pytest.fixture(params=["cpu", "played", pytest.param("gpu", marks=pytest.mark.gpu)])
def twin(request, monkeypatch):
    return CpuTwin() if request.param == "cpu" else _cuda_twin(request.param, monkeypatch)


@pytest.fixture(params=["played", pytest.param("gpu", marks=pytest.mark.gpu)])
def cuda_twin(request, monkeypatch):
    return _cuda_twin(request.param, monkeypatch)


def _cuda_twin(name, monkeypatch):
    if name == "gpu":
        from ptxsdk.backends.cuda import Gpu

        try:
            return CudaTwin(name, Gpu.open(0))
        except BackendError as error:
            pytest.skip(error.message)
    played = played_cuda.module()
    monkeypatch.setattr(device, "cuda_module", lambda: played)
    return CudaTwin(name, PretendGpu())
