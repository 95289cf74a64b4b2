"""The CUDA kernels against what the device can do, and against the same work in PyTorch and CuPy, in one run.

The floors are measured beside the kernels: the bandwidth of a device-to-device copy (bytes read plus written), the time
of the smallest launch, and the time of the film's transfer.  Kernel times are those of many launches in one CUDA graph,
so that the host does not count.  Needs a CUDA device.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from measure import machine

from ptxsdk import Display, Engine, Radiograph, Window, backends
from ptxsdk.backends.cuda import Gpu
from ptxsdk.backends.film_graph import FilmGraph
from ptxsdk.geometry import Geometry
from ptxsdk.ops.device import DeviceOps, pack_film
from ptxsdk.ops.preprocess import transfer_of

ROWS, COLUMNS, SIZE, BATCH = 3000, 2500, 512, 64
LAUNCHES = 20  # in one graph
REPEATS = 15
PITCHES = ("rows as stored", "rows aligned to 16 bytes")


class Bench:
    """A device, a stream, memory, and the clock of CUDA events."""

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self.ops = DeviceOps(gpu)
        self.cuda, self.stream = self.ops._cuda, self.ops._stream
        self.handle = int(self.stream.handle)
        self.held: list[Any] = []

    def memory(self, size: int, values: np.ndarray | None = None) -> int:
        """Device memory that lives as long as the bench, filled if there are values."""
        self.held.append(self.gpu.allocate(size, stream=self.stream))
        address = int(self.held[-1].handle)
        if values is None:
            self.cuda.zero(to=address, size=size, stream=self.handle)
        else:
            self.cuda.copy(to=address, source=values.ctypes.data, size=values.nbytes, stream=self.handle)
        self.wait()
        return address

    def wait(self) -> None:
        if not self.cuda.wait(stream=self.handle, seconds=60):
            raise SystemExit("the device does not answer")

    def seconds(self, launch: Callable[[int], None], launches: int = LAUNCHES) -> float:
        """Median time of one launch, from a graph of many of them."""
        from cuda.bindings import driver

        def record(stream: int) -> None:
            for _ in range(launches):
                launch(stream)

        graph = self.gpu.captured(self.stream, record)
        stream = driver.CUstream(self.handle)
        events = [driver.cuEventCreate(0)[1] for _ in range(2)]
        times = []
        for _ in range(REPEATS + 3):
            driver.cuEventRecord(events[0], stream)
            graph.launch(self.stream)
            driver.cuEventRecord(events[1], stream)
            self.wait()
            times.append(driver.cuEventElapsedTime(*events)[1] / 1e3 / launches)
        return float(np.median(times[3:]))


def films(bench: Bench, count: int, pixels: np.ndarray, display: Display, address: int, pitch: int) -> tuple[int, int]:
    """Describe `count` films that lie one after the other; address of the description and widest tile."""
    from ptxsdk.device_array import DeviceArray

    packed = np.zeros((count, bench.cuda.FILM_BYTES), np.uint8)
    geometry = Geometry.fit(pixels.shape, (SIZE, SIZE))
    tile = 0
    for i, row in enumerate(packed):
        film = DeviceArray(
            address=address + i * pitch * ROWS, shape=pixels.shape, strides=(pitch, 2), dtype=pixels.dtype,
            device=bench.gpu.index, owner=None,
        )  # fmt: skip
        tile = pack_film(bench.cuda, row, film, geometry, transfer_of(display, pixels.dtype), mean=0.5, std=0.25)
    return bench.memory(packed.nbytes, packed), tile


def preprocess_times(bench: Bench) -> dict[str, float]:
    """Seconds of preprocess for one film and for a batch, rows as they are and aligned to 16 bytes."""
    pixels = np.random.default_rng(0).integers(0, 4096, (ROWS, COLUMNS)).astype(np.uint16)
    display = Display(voi=Window.from_range(500, 3500), invert=True)
    flag = bench.memory(4 * BATCH)
    target = bench.memory(BATCH * SIZE * SIZE * 4)
    times = {}
    for name, pitch in zip(PITCHES, (2 * COLUMNS, -(-2 * COLUMNS // 16) * 16), strict=True):
        row = np.zeros((ROWS, pitch), np.uint8)
        row[:, : 2 * COLUMNS] = pixels.view(np.uint8)
        source = bench.memory(BATCH * row.nbytes, np.tile(row.ravel(), BATCH))
        for count in (1, BATCH):
            described, tile = films(bench, count, pixels, display, source, pitch)
            times[f"preprocess, {count} x {ROWS}x{COLUMNS} u16, {name}"] = bench.seconds(
                lambda stream, described=described, tile=tile, count=count: bench.cuda.preprocess(
                    films=described, count=count, widest_tile=tile, target=target, target_type="float32", rows=SIZE,
                    columns=SIZE, not_finite=flag, stream=stream,
                ),
                LAUNCHES if count == 1 else 3,
            )  # fmt: skip
    return times


def aggregate_time(bench: Bench) -> dict[str, float]:
    """Seconds of aggregate for a typical map, and for one with everything above the threshold."""
    from scipy import ndimage

    smooth = ndimage.gaussian_filter(np.random.default_rng(1).normal(0, 1, (SIZE, SIZE)), 20)
    typical = np.ascontiguousarray(4 * (smooth / smooth.std() - 1.5), np.float32)
    patch = bench.memory(4 * 32 * 32, np.random.default_rng(2).normal(-4, 2, (32, 32)).astype(np.float32))
    packed = np.zeros((1, bench.cuda.FILM_BYTES), np.uint8)
    bench.cuda.pack_film(
        packed[0], data=0, type="uint8", rows=1, columns=1, pitch=0, content=(0, 0, SIZE, SIZE), target_rows=SIZE,
        target_columns=SIZE, transfer="linear",
    )  # fmt: skip
    described = bench.memory(packed.nbytes, packed)
    scratch = bench.memory(bench.cuda.aggregate_scratch_bytes(SIZE, SIZE))
    result = bench.memory(bench.cuda.RESULT_BYTES)
    times = {}
    for name, values in (("typical map", typical), ("all above", np.full((SIZE, SIZE), 3, np.float32))):
        mask = bench.memory(values.nbytes, values)
        times[f"aggregate, {SIZE}x{SIZE}, {name}"] = bench.seconds(
            lambda stream, mask=mask: bench.cuda.aggregate(
                films=described, count=1, patch=patch, patch_type="float32", patches=1024, mask=mask,
                mask_type="float32", rows=SIZE, columns=SIZE, method="noisy_or", source="patch", k=1, high=0.6, low=0.4,
                min_area=20, scratch=scratch, results=result, film_results=bench.cuda.RESULT_BYTES, stream=stream,
            )
        )  # fmt: skip
    return times


def floors(bench: Bench) -> dict[str, float]:
    """Copy bandwidth in bytes a second, and seconds of the smallest launch and of a film's transfer."""
    size = 1 << 30
    source, target = bench.memory(size), bench.memory(size)
    flag = bench.memory(256)
    film_bytes = ROWS * COLUMNS * 2
    pinned = bench.gpu.pinned(film_bytes)
    bench.held.append(pinned)
    return {
        "copy_bandwidth": 2 * size / bench.seconds(
            lambda stream: bench.cuda.copy(to=target, source=source, size=size, stream=stream), 3
        ),
        "launch": bench.seconds(lambda stream: bench.cuda.zero(to=flag, size=4, stream=stream)),
        "transfer": bench.seconds(
            lambda stream: bench.cuda.copy(to=target, source=int(pinned.handle), size=film_bytes, stream=stream), 5
        ),
    }  # fmt: skip


def torch_times(bench: Bench) -> dict[str, float]:
    """The same work in PyTorch's operations; empty without PyTorch with CUDA."""
    try:
        import torch
    except ImportError:
        return {}
    if not torch.cuda.is_available():
        return {}
    where = torch.device("cuda", bench.gpu.index)
    width = Geometry.fit((ROWS, COLUMNS), (SIZE, SIZE)).content
    pixels = torch.randint(0, 4096, (BATCH, 1, ROWS, COLUMNS), dtype=torch.int16, device=where)
    logits = torch.randn(32, 32, device=where)

    def preprocess(films: Any) -> Any:
        shown = 1 - ((films.to(torch.float32) - 500) / 3000).clamp(0, 1)
        shown = torch.nn.functional.interpolate(shown, size=(SIZE, width[2] - width[0]), mode="area")
        padded = torch.nn.functional.pad(shown, (width[0], SIZE - width[2]))
        return (padded - 0.5) / 0.25

    def score() -> Any:
        s = torch.nn.functional.logsigmoid(-logits).sum()
        return torch.log(-torch.expm1(s)) - s

    def seconds(call: Callable[[], object], repeats: int = REPEATS) -> float:
        times = []
        for _ in range(repeats + 3):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            call()
            end.record()
            torch.cuda.synchronize(where)
            times.append(begin.elapsed_time(end) / 1e3)
        return float(np.median(times[3:]))

    return {
        "PyTorch: preprocess of one film": seconds(lambda: preprocess(pixels[:1])),
        "PyTorch: preprocess of a batch": seconds(lambda: preprocess(pixels[:16]), 5) * BATCH / 16,
        "PyTorch: the score alone, no regions": seconds(score),
    }


def cupy_times(bench: Bench) -> dict[str, float]:
    """Windowing and labelling in CuPy; empty without CuPy."""
    try:
        import cupy
        from cupyx.scipy import ndimage
    except ImportError:
        return {}
    with cupy.cuda.Device(bench.gpu.index):
        pixels = cupy.random.randint(0, 4096, (ROWS, COLUMNS)).astype(cupy.uint16)
        mask = cupy.random.standard_normal((SIZE, SIZE), dtype=cupy.float32)

        def window() -> Any:
            return 1 - cupy.clip((pixels.astype(cupy.float32) - 500) / 3000, 0, 1)

        def label() -> Any:
            labels, count = ndimage.label(mask > 1, cupy.ones((3, 3)))
            return ndimage.sum_labels(mask, labels, cupy.arange(1, count + 1))

        def seconds(call: Callable[[], object]) -> float:
            times = []
            for _ in range(REPEATS + 3):
                begin, end = cupy.cuda.Event(), cupy.cuda.Event()
                begin.record()
                call()
                end.record()
                end.synchronize()
                times.append(cupy.cuda.get_elapsed_time(begin, end) / 1e3)
            return float(np.median(times[3:]))

        return {"CuPy: window of one film, no resampling": seconds(window), "CuPy: labels of a map": seconds(label)}


def verdicts(floor: dict[str, float], times: dict[str, float]) -> dict[str, float]:
    """The ratios that were asked for."""
    batch_bytes = BATCH * (ROWS * COLUMNS * 2 + SIZE * SIZE * 4)
    ratios = {}
    for pitch in PITCHES:
        batch = times[f"preprocess, {BATCH} x {ROWS}x{COLUMNS} u16, {pitch}"]
        one = times[f"preprocess, 1 x {ROWS}x{COLUMNS} u16, {pitch}"]
        ratios[f"batch, {pitch}: bandwidth over that of a copy (at least 0.8)"] = (
            batch_bytes / batch / floor["copy_bandwidth"]
        )
        ratios[f"one film, {pitch}: transfer and kernel over transfer and launch (at most 2)"] = (
            floor["transfer"] + one
        ) / (floor["transfer"] + floor["launch"])
    return ratios | {
        "aggregate: microseconds (at most 15)": 1e6 * times[f"aggregate, {SIZE}x{SIZE}, typical map"],
    }


class TorchTensor:
    """A tensor of PyTorch's as the film graph wants it: an address on the device, and page-locked memory."""

    def __init__(self, shape: tuple[int, ...], where: Any) -> None:
        import torch

        self.tensor = torch.zeros(shape, device=where)
        self.device = SimpleNamespace(handle=self.tensor.data_ptr())
        self.pinned = torch.zeros(shape, pin_memory=True)
        self.host = self.pinned.numpy()


def stand_in(gpu: Gpu, engine: Engine) -> FilmGraph | None:
    """A film graph around a small convolutional network in PyTorch, for lack of TensorRT."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    where = torch.device("cuda", gpu.index)
    outputs = engine.manifest.outputs
    image = TorchTensor((1, 1, *engine.manifest.input.size), where)
    patch = TorchTensor((1, *outputs.patch_logits.grid), where)
    mask = TorchTensor((1, *outputs.mask_logits.size), where)
    layers = [torch.nn.Conv2d(1, 16, 3, 2, 1), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, 2, 1), torch.nn.ReLU()]
    body = torch.nn.Sequential(*layers, torch.nn.Conv2d(32, 1, 3, 1, 1)).to(where).eval()

    @torch.no_grad()
    def network(stream: int) -> bool:
        with torch.cuda.stream(torch.cuda.ExternalStream(stream, where)):
            made = body(image.tensor)
            patch.tensor.copy_(torch.nn.functional.adaptive_avg_pool2d(made, patch.tensor.shape[1:])[0])
            mask.tensor.copy_(torch.nn.functional.interpolate(made, size=mask.tensor.shape[1:])[0])
        return True

    stream = gpu.stream()
    address = int(stream.handle)
    for _ in range(3):  # cuDNN makes its choices outside the capture
        network(address)
    torch.cuda.synchronize(where)
    return FilmGraph(gpu, stream, network=network, image=image, patch=patch, mask=mask, engine=engine, locate=True)


def end_to_end(gpu: Gpu) -> dict[str, Any]:
    """Seconds of a film's graph and of its parts, launched and waited for from the host."""
    engine = Engine.open(Engine.default_path())
    pixels = np.random.default_rng(0).integers(0, 4096, (ROWS, COLUMNS)).astype(np.uint16)
    film = Radiograph.from_array(pixels, window=(0, 4080))
    usable, reason = backends.probe("tensorrt")
    with contextlib.ExitStack() as stack:
        if usable:
            backend = backends.load(engine, backend="tensorrt", device=f"cuda:{gpu.index}", precision="auto", threads=0)
            stack.callback(backend.close)
            graph, what = backend.film_graph(locate=True), "TensorRT"  # type: ignore[attr-defined]
        else:
            print(f"TensorRT: {reason}")
            found = stand_in(gpu, engine)
            if found is None:
                print("no end-to-end time: neither TensorRT nor PyTorch")
                return {}
            graph, what = found, "a small network in PyTorch"
        stack.callback(graph.close)
        stack.enter_context(gpu.current())
        memory = graph._memory
        # The network, and the way back of the map, as graphs of their own, launched and waited for alike.
        network = gpu.captured(memory.stream, lambda stream: memory.network(stream))
        back = gpu.captured(memory.stream, graph._fetch)
        runs = [graph.run(film.pixels, film.display) for _ in range(60)][10:]
        alone, fetched = (replayed(graph, each) for each in (network, back))
    launched = float(np.median([run.network for run in runs]))
    return {
        "network": what,
        "seconds": {
            "upload": float(np.median([run.preprocess for run in runs])),
            "graph": launched,
            "network alone": alone,
            "map down alone": fetched,
            "graph beyond network and map": launched - alone - fetched,
        },
    }


def replayed(graph: FilmGraph, part: Any) -> float:
    """Median seconds of a graph on the pipeline's stream, launched and waited for from the host."""
    times = []
    for _ in range(60):
        started = perf_counter()
        part.launch(graph._memory.stream)
        graph._wait()
        times.append(perf_counter() - started)
    return float(np.median(times[10:]))


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gpu = Gpu.open(options.device)
    with gpu.current():
        bench = Bench(gpu)
        floor = floors(bench)
        times = preprocess_times(bench) | aggregate_time(bench)
        others = torch_times(bench) | cupy_times(bench)
    report = {
        "machine": machine(),
        "gpu": {"name": gpu.name, "capability": ".".join(map(str, gpu.capability)), "driver": gpu.driver},
        "floors": floor,
        "seconds": times | others,
        "verdicts": verdicts(floor, times),
        "end_to_end": end_to_end(gpu),
    }
    print(f"{gpu.name}: copy {floor['copy_bandwidth'] / 1e9:.0f} GB/s, launch {1e6 * floor['launch']:.1f} us, "
          f"transfer of a film {1e6 * floor['transfer']:.0f} us")  # fmt: skip
    for name, value in report["seconds"].items():
        print(f"  {name:70} {1e6 * value:10.1f} us")
    for name, value in report["verdicts"].items():
        print(f"  {name:70} {value:10.3f}")
    for name, value in report["end_to_end"].get("seconds", {}).items():
        print(f"  end to end, {name:58} {1e6 * value:10.1f} us")
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    assert all(math.isfinite(value) for value in report["seconds"].values())


if __name__ == "__main__":
    main()
