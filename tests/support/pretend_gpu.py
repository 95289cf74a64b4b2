"""A GPU that is none: memory and copies that behave as cuda-core's, and an engine that computes the small network.

It checks the backend's own work, which is the same on a real GPU: what is copied where and when, addresses, dtypes,
what is shared and what is released.  It says nothing about CUDA or TensorRT.
"""

from __future__ import annotations

import contextlib
import ctypes

import numpy as np
from made import GRID, SIZE, network_output


class Buffer:
    def __init__(self, gpu, size):
        self.memory = np.full(size, 0xA5, np.uint8)
        self.handle = self.memory.ctypes.data
        self.size = size
        self.gpu = gpu

    def __del__(self):
        self.gpu.freed.append(("buffer", self.gpu.depth > 0))
        self.memory[:] = 0x5A

    def copy_from(self, source, *, stream):
        self.gpu.require_current()
        assert source.size == self.size
        stream.pending.append(lambda: np.copyto(self.memory, source.memory))

    def copy_to(self, target, *, stream):
        target.copy_from(self, stream=stream)


class Stream:
    """Work is done when it is waited for and no earlier."""

    handle = 77

    def __init__(self, gpu):
        self.pending = []
        gpu.streams.append(self)

    def sync(self):
        while self.pending:
            self.pending.pop(0)()


class PretendGpu:
    """As `ptxsdk.backends.cuda.Gpu`."""

    def __init__(self, index=0, name="Pretend GPU", capability=(8, 6), driver="13.0"):
        self.index, self.name, self.capability, self.driver = index, name, capability, driver
        self.depth = 0
        self.streams = []
        self.freed = []

    @contextlib.contextmanager
    def current(self):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def require_current(self):
        assert self.depth, "the device is not current"

    def stream(self):
        self.require_current()
        return Stream(self)

    def allocate(self, size, *, stream):
        self.require_current()
        return Buffer(self, size)

    def pinned(self, size):
        return self.allocate(size, stream=None)


class PretendEngine:
    """As TensorRT's ICudaEngine, of the small network."""

    def __init__(self, gpu, trt, *, dtype=np.float32, shapes=None):
        self.gpu = gpu
        self.trt = trt
        self.dtype = dtype
        self.shapes = shapes or {
            "image": (1, 1, SIZE, SIZE),
            "patch_logits": (1, GRID, GRID),
            "mask_logits": (1, SIZE, SIZE),
        }
        self.num_io_tensors = len(self.shapes)
        self.contexts = 0
        self.fails = False

    def __del__(self):
        self.gpu.freed.append(("engine", self.gpu.depth > 0))

    def get_tensor_name(self, index):
        return list(self.shapes)[index]

    def get_tensor_mode(self, name):
        return self.trt.TensorIOMode.INPUT if name == "image" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name):
        return self.shapes[name]

    def get_tensor_dtype(self, name):
        types = {
            np.float32: self.trt.DataType.FLOAT,
            np.float16: self.trt.DataType.HALF,
            np.int32: self.trt.DataType.INT32,
        }
        return types[self.dtype]

    def create_execution_context(self):
        self.gpu.require_current()
        self.contexts += 1
        return PretendContext(self)


class PretendContext:
    def __init__(self, engine):
        self.engine = engine
        self.addresses = {}

    def __del__(self):
        self.engine.gpu.freed.append(("context", self.engine.gpu.depth > 0))

    def set_tensor_address(self, name, address):
        self.addresses[name] = address
        return True

    def array(self, name):
        dtype = np.dtype(self.engine.dtype)
        shape = self.engine.shapes[name]
        block = (ctypes.c_uint8 * (dtype.itemsize * int(np.prod(shape)))).from_address(self.addresses[name])
        return np.ctypeslib.as_array(block).view(dtype).reshape(shape)

    def execute_async_v3(self, stream_handle):
        self.engine.gpu.require_current()
        assert stream_handle == Stream.handle
        stream = next(stream for stream in self.engine.gpu.streams if stream.pending)
        stream.pending.append(self._run)
        return not self.engine.fails

    def _run(self):
        patch, mask = network_output(self.array("image")[0, 0].astype(np.float32))
        self.array("patch_logits")[0], self.array("mask_logits")[0] = patch, mask
