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

    def __init__(self, gpu):
        self.pending = []
        self.is_closed = False
        gpu.streams.append(self)
        self.handle = 76 + len(gpu.streams)

    def close(self):
        self.sync()
        self.is_closed = True

    def sync(self):
        while self.pending:
            self.pending.pop(0)()


class PretendGpu:
    """As `ptxsdk.backends.cuda.Gpu`."""

    def __init__(self, index=0, name="Pretend GPU", capability=(8, 6), driver="13.0"):
        self.index, self.name, self.capability, self.driver = index, name, capability, driver
        self.integrated = False
        self.depth = 0
        self.streams = []
        self.freed = []
        self.hangs = False

    @contextlib.contextmanager
    def current(self):
        self.depth += 1
        try:
            yield
        finally:
            self.depth -= 1

    def require_current(self):
        assert self.depth, "the device is not current"

    def stream(self, address=None):
        self.require_current()
        return Stream(self) if address is None else self.stream_of(address)

    def allocate(self, size, *, stream):
        self.require_current()
        return Buffer(self, size)

    def stream_of(self, handle):
        return self.streams[handle - 77]

    def done_within(self, seconds, *, stream):
        self.require_current()
        if not self.hangs:
            stream.sync()
        return not self.hangs

    def pinned(self, size):
        return self.allocate(size, stream=None)

    def captured(self, stream, record):
        """What is enqueued meanwhile is kept, and done at every launch."""
        self.require_current()
        before, stream.pending = stream.pending, []
        try:
            record(stream.handle)
            return Graph(stream.pending)
        finally:
            stream.pending = before


class Graph:
    def __init__(self, work):
        self.work = work
        self.launches = 0

    def launch(self, stream):
        self.launches += 1
        stream.pending.extend(self.work)


class PretendCuda:
    """The played module _cuda, its work put off until the stream of the pretended device is waited for."""

    def __init__(self, played, gpu):
        self.played, self.gpu = played, gpu
        self.CudaError = played.CudaError
        for name in ("FILM_BYTES", "LONGEST_SIDE", "MOST_RECORDS", "RECORD_BYTES", "RESULT_BYTES", "WIDEST_TILE"):
            setattr(self, name, getattr(played, name))
        self.pack_film = played.pack_film
        self.aggregate_scratch_bytes = played.aggregate_scratch_bytes
        self.bytes_up = self.bytes_copied = 0
        self.hangs = False
        self.fails = None

    def _later(self, work, **arguments):
        self.gpu.require_current()
        if self.fails:
            raise self.CudaError(self.fails)
        self.gpu.stream_of(arguments["stream"]).pending.append(lambda: work(**arguments))

    def preprocess(self, **arguments):
        self._later(self.played.preprocess, **arguments)

    def aggregate(self, **arguments):
        self._later(self.played.aggregate, **arguments)

    def zero(self, **arguments):
        self._later(self.played.zero, **arguments)

    def copy(self, **arguments):
        def work(size, **rest):
            self.bytes_copied += size
            self.played.copy(size=size, **rest)

        self._later(work, **arguments)

    def upload(self, *, device, staging, pixels, pitch, stream):
        self.played.upload(device=0, staging=staging, pixels=pixels, pitch=pitch, stream=stream)
        if device:
            self.bytes_up += pixels.shape[0] * pitch
            self._later(self.played.copy, to=device, source=staging, size=pixels.shape[0] * pitch, stream=stream)

    def wait(self, *, stream, seconds):
        self.gpu.require_current()
        assert seconds > 0
        if self.hangs:
            return False
        self.gpu.stream_of(stream).sync()
        return True


class PretendBackend:
    """As the TensorRT backend, its network computed on the host between the played kernels."""

    name, device, precision = "tensorrt", "cuda:0", "fp32"

    def __init__(self, gpu, engine, dtype=np.float32):
        self.gpu, self.engine, self.dtype = gpu, engine, dtype
        self.closed = False
        self.refuses = False
        self.input = np.zeros((SIZE, SIZE), np.float32)
        with gpu.current():
            self.stream = gpu.stream()
            self.image, self.patch, self.mask = (
                Tensor(gpu, shape, dtype) for shape in ((1, 1, SIZE, SIZE), (1, GRID, GRID), (1, SIZE, SIZE))
            )

    def infer(self):
        return network_output(self.input)

    def film_graph(self, *, locate):
        from ptxsdk.backends.film_graph import FilmGraph

        return FilmGraph(
            self.gpu, self.stream, network=self.launch, image=self.image, patch=self.patch, mask=self.mask,
            engine=self.engine, locate=locate,
        )  # fmt: skip

    def launch(self, stream):
        self.gpu.require_current()
        self.stream.pending.append(self._run)
        return not self.refuses

    def _run(self):
        image = self.image.on_device()[0, 0].astype(np.float32)
        self.patch.on_device()[0], self.mask.on_device()[0] = network_output(image)

    def clone(self):
        return PretendBackend(self.gpu, self.engine, self.dtype)

    def crew(self):
        return self.clone(), self.clone()

    def close(self):
        self.closed = True


class Tensor:
    def __init__(self, gpu, shape, dtype):
        self.host = np.zeros(shape, dtype)
        self.device = gpu.allocate(self.host.nbytes, stream=None)

    def on_device(self):
        return self.device.memory.view(self.host.dtype).reshape(self.host.shape)


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

    device_memory_size_v2 = 4096

    def create_execution_context(self, strategy=None):
        self.gpu.require_current()
        assert strategy in (None, self.trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.contexts += 1
        return PretendContext(self)


class PretendContext:
    def __init__(self, engine):
        self.engine = engine
        self.addresses = {}

    def __del__(self):
        self.engine.gpu.freed.append(("context", self.engine.gpu.depth > 0))

    def set_device_memory(self, address, size):
        assert size == self.engine.device_memory_size_v2
        (ctypes.c_uint8 * size).from_address(address)[size - 1] = 0

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
        self.engine.gpu.stream_of(stream_handle).pending.append(self._run)
        return not self.engine.fails

    def _run(self):
        patch, mask = network_output(self.array("image")[0, 0].astype(np.float32))
        self.array("patch_logits")[0], self.array("mask_logits")[0] = patch, mask
