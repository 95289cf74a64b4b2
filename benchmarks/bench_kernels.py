"""The CUDA kernels against what the device can do, and against the same work in PyTorch and CuPy, in one run.

The floors are measured beside the kernels: the bandwidth of a device-to-device copy (bytes read plus written), the time
of the smallest launch, and the time of the film's transfer.  Kernel times are those of many launches in one CUDA graph,
so that the host does not count.  Needs a CUDA device; without one it ends with status 77.

Each part is written as soon as it is done, and one that fails costs no other: its error stands in its place.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from measure import interleaved, machine

from ptxsdk import BackendError, Display, Engine, Radiograph, Window, backends
from ptxsdk.backends.cuda import Gpu
from ptxsdk.backends.film_graph import FilmGraph
from ptxsdk.geometry import Geometry
from ptxsdk.ops.device import DeviceOps, pack_film
from ptxsdk.ops.preprocess import transfer_of

ROOT = Path(__file__).resolve().parents[1]
ROWS, COLUMNS, SIZE, BATCH = 3000, 2500, 512, 64
LAUNCHES = 20  # in one graph
REPEATS = 15
WARM_UP = 0.2  # seconds before each measurement: an idle device runs at a fraction of its clock
NOT_RUN = 77
PITCHES = ("rows as stored", "rows aligned to 16 bytes")


class LostDeviceError(Exception):
    """The device does not answer: nothing more can be measured."""


def warm_up(call: Callable[[], object]) -> None:
    """Do what is to be measured, and wait for it, until the device is at its working clock."""
    ends = perf_counter() + WARM_UP
    call()
    while perf_counter() < ends:
        call()


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
        if not self.cuda.wait(stream=self.handle, seconds=20):
            raise LostDeviceError("the device does not answer")

    def seconds(self, launch: Callable[[int], None], launches: int = LAUNCHES) -> float:
        """Median time of one launch, from a graph of many of them."""
        from cuda.bindings import driver

        def record(stream: int) -> None:
            for _ in range(launches):
                launch(stream)

        launch(self.handle)  # loads the kernel, and fails outside a capture if it fails
        self.wait()
        graph = self.gpu.captured(self.stream, record)
        stream = driver.CUstream(self.handle)
        events = [driver.cuEventCreate(0)[1] for _ in range(2)]

        def once() -> float:
            graph.launch(self.stream)  # keeps the device busy until the one that is timed is there
            driver.cuEventRecord(events[0], stream)
            graph.launch(self.stream)
            driver.cuEventRecord(events[1], stream)
            self.wait()
            status, milliseconds = driver.cuEventElapsedTime(*events)
            if int(status):
                raise RuntimeError(f"CUDA: {status.name}")
            return float(milliseconds) / 1e3 / launches

        warm_up(once)
        return float(np.median([once() for _ in range(REPEATS)]))


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
    smooth = cv2.GaussianBlur(np.random.default_rng(1).normal(0, 1, (SIZE, SIZE)), (0, 0), 20)
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
    """The same work in PyTorch's operations."""
    import torch

    if not torch.cuda.is_available():
        raise ImportError("PyTorch sees no GPU")
    where = torch.device("cuda", bench.gpu.index)
    torch.cuda.set_device(where)  # of graphs and events
    width = Geometry.fit((ROWS, COLUMNS), (SIZE, SIZE)).content
    pixels = torch.randint(0, 4096, (16, 1, ROWS, COLUMNS), dtype=torch.int16, device=where)
    logits = torch.randn(32, 32, device=where)

    def preprocess(films: Any) -> Any:
        shown = 1 - ((films.to(torch.float32) - 500) / 3000).clamp(0, 1)
        shown = torch.nn.functional.interpolate(shown, size=(SIZE, width[2] - width[0]), mode="area")
        padded = torch.nn.functional.pad(shown, (width[0], SIZE - width[2]))
        return (padded - 0.5) / 0.25

    def score() -> Any:
        s = torch.nn.functional.logsigmoid(-logits).sum()
        return torch.log(-torch.expm1(s)) - s

    def seconds(call: Callable[[], object]) -> float:
        for _ in range(3):  # before a capture PyTorch has to have chosen its kernels
            call()
        torch.cuda.synchronize(where)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call()

        def once() -> float:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            graph.replay()
            begin.record()
            graph.replay()
            end.record()
            torch.cuda.synchronize(where)
            return float(begin.elapsed_time(end)) / 1e3

        warm_up(once)
        return float(np.median([once() for _ in range(REPEATS)]))

    return {
        "PyTorch: preprocess of one film": seconds(lambda: preprocess(pixels[:1])),
        "PyTorch: preprocess of a batch": seconds(lambda: preprocess(pixels)) * BATCH / len(pixels),
        "PyTorch: the score alone, no regions": seconds(score),
    }


def cupy_times(bench: Bench) -> dict[str, float]:
    """Windowing and labelling in CuPy."""
    import cupy
    from cupyx.scipy import ndimage

    with cupy.cuda.Device(bench.gpu.index):
        pixels = cupy.random.randint(0, 4096, (ROWS, COLUMNS)).astype(cupy.uint16)
        mask = cupy.random.standard_normal((SIZE, SIZE), dtype=cupy.float32)

        def window() -> Any:
            return 1 - cupy.clip((pixels.astype(cupy.float32) - 500) / 3000, 0, 1)

        def label() -> Any:
            labels, count = ndimage.label(mask > 1, cupy.ones((3, 3)))
            return ndimage.sum_labels(mask, labels, cupy.arange(1, count + 1))

        def seconds(call: Callable[[], object]) -> float:
            def once() -> float:
                begin, end = cupy.cuda.Event(), cupy.cuda.Event()
                call()  # keeps the device busy while the host prepares the one that is timed
                begin.record()
                call()
                end.record()
                end.synchronize()
                return float(cupy.cuda.get_elapsed_time(begin, end)) / 1e3

            warm_up(once)
            return float(np.median([once() for _ in range(REPEATS)]))

        return {
            "CuPy: window of one film, no resampling": seconds(window),
            "CuPy: labels of a map, counted on the host": seconds(label),
        }


def verdicts(floor: dict[str, float], times: dict[str, float]) -> dict[str, float]:
    """The ratios that were asked for, as far as their parts were measured."""
    batch_bytes = BATCH * (ROWS * COLUMNS * 2 + SIZE * SIZE * 4)
    ratios = {}
    for pitch in PITCHES:
        batch = times.get(f"preprocess, {BATCH} x {ROWS}x{COLUMNS} u16, {pitch}")
        one = times.get(f"preprocess, 1 x {ROWS}x{COLUMNS} u16, {pitch}")
        if floor and batch is not None:
            ratios[f"batch, {pitch}: bandwidth over that of a copy (at least 0.8)"] = (
                batch_bytes / batch / floor["copy_bandwidth"]
            )
        if floor and one is not None:
            ratios[f"one film, {pitch}: transfer and kernel over transfer and launch (at most 2)"] = (
                floor["transfer"] + one
            ) / (floor["transfer"] + floor["launch"])
    typical = times.get(f"aggregate, {SIZE}x{SIZE}, typical map")
    return ratios | ({} if typical is None else {"aggregate: microseconds (at most 15)": 1e6 * typical})


def end_to_end(bench: Bench) -> dict[str, Any]:
    """Seconds of a film's graph and of its parts, launched and waited for from the host."""
    gpu = bench.gpu
    engine = Engine.open(Engine.default_path())
    pixels = np.random.default_rng(0).integers(0, 4096, (ROWS, COLUMNS)).astype(np.uint16)
    film = Radiograph.from_array(pixels, window=(0, 4080))
    with contextlib.ExitStack() as stack:
        backend, what = network_on(gpu, engine)
        stack.callback(backend.close)
        graph: FilmGraph = backend.film_graph(locate=True)
        stack.callback(graph.close)
        stack.enter_context(gpu.current())
        warm_up(lambda: graph.run(film.pixels, film.display))
        runs = [graph.run(film.pixels, film.display) for _ in range(50)]
        parts = graph_parts(gpu, graph)
    return {
        "network": what,
        "seconds": {
            "upload": float(np.median([run.preprocess for run in runs])),
            "graph, after the upload": float(np.median([run.network for run in runs])),
            **parts,
            "graph beyond network and map": parts["graph"] - parts["network and map down, one graph"],
        },
    }


def network_on(gpu: Gpu, engine: Engine) -> tuple[Any, str]:
    """What runs the network, and its name: TensorRT, or for lack of it a small network in PyTorch."""
    usable, reason = backends.probe("tensorrt")
    if usable:
        options: dict[str, Any] = {"device": f"cuda:{gpu.index}", "precision": "auto", "threads": 0}
        return backends.load(engine, backend="tensorrt", **options), "TensorRT"
    print(f"TensorRT: {reason}")
    sys.path.append(str(ROOT / "tests" / "support"))
    import stand_in

    missing = stand_in.why_not()
    if missing is not None:
        raise ImportError(f"neither TensorRT ({reason}) nor a stand-in: {missing}")
    return stand_in.TorchBackend(gpu, engine, stand_in.convolutions), "a small network in PyTorch"


def graph_parts(gpu: Gpu, graph: FilmGraph) -> dict[str, float]:
    """Seconds of the film's graph and of graphs of its parts, each launched and waited for alike, in turns.

    So a difference of two of them holds no launch and no wait.
    """
    memory, flag = graph._memory, gpu.allocate(256, stream=graph._memory.stream)

    def network_and_map(stream: int) -> None:
        memory.network(stream)
        graph._fetch(stream)

    graphs = {
        "graph": memory.graph,
        "network and map down, one graph": gpu.captured(memory.stream, network_and_map),
        "network alone": gpu.captured(memory.stream, memory.network),
        "map down alone": gpu.captured(memory.stream, graph._fetch),
        "a graph that zeroes four bytes": gpu.captured(
            memory.stream, lambda stream: graph._cuda.zero(to=int(flag.handle), size=4, stream=stream)
        ),
    }

    def replay(part: Any) -> Callable[[], None]:
        def call() -> None:
            part.launch(memory.stream)
            graph._wait()

        return call

    replays = {name: replay(part) for name, part in graphs.items()}
    warm_up(replays["graph"])
    return {name: each.median / 1e3 for name, each in interleaved(replays, 100).items()}


PARTS: dict[str, tuple[str, Callable[[Bench], dict[str, Any]]]] = {
    "floors": ("floors", floors),
    "preprocess": ("seconds", preprocess_times),
    "aggregate": ("seconds", aggregate_time),
    "end to end": ("end_to_end", end_to_end),
    "PyTorch": ("seconds", torch_times),
    "CuPy": ("seconds", cupy_times),
}
"""Where in the report each part stands, and what measures it."""


def measured(bench: Bench, names: list[str], report: dict[str, Any], write: Callable[[], None]) -> None:
    """Measure parts into the report, whatever becomes of each."""
    for name in names:
        where, measure = PARTS[name]
        try:
            report[where] |= measure(bench)
            report["verdicts"] = verdicts(report["floors"], report["seconds"])
            assert all(math.isfinite(value) for value in report["seconds"].values())
        except ImportError as error:
            report["not_run"][name] = str(error)
        except Exception as error:  # noqa: BLE001 -- whatever it is, the other parts are wanted
            traceback.print_exc()
            report["errors"][name] = f"{type(error).__name__}: {error}"
            if isinstance(error, LostDeviceError):
                break
        finally:
            write()
            bench.held.clear()  # may hang with the device


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    try:
        gpu = Gpu.open(options.device)
    except BackendError as error:
        print(error.message)
        sys.exit(NOT_RUN)
    report: dict[str, Any] = {
        "machine": machine(),
        "gpu": {"name": gpu.name, "capability": ".".join(map(str, gpu.capability)), "driver": gpu.driver},
        "floors": {},
        "seconds": {},
        "verdicts": {},
        "end_to_end": {},
        "errors": {},
        "not_run": {},
    }

    def write() -> None:
        if options.json:
            options.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")

    with gpu.current():
        measured(Bench(gpu), options.parts, report, write)
    print_report(report)
    sys.exit(1 if report["errors"] else NOT_RUN if len(report["not_run"]) == len(options.parts) else 0)


def print_report(report: dict[str, Any]) -> None:
    """The report for people."""
    floor = report["floors"]
    if floor:
        print(
            f"{report['gpu']['name']}: copy {floor['copy_bandwidth'] / 1e9:.0f} GB/s, "
            f"launch {1e6 * floor['launch']:.1f} us, transfer of a film {1e6 * floor['transfer']:.0f} us"
        )
    for name, value in report["seconds"].items():
        print(f"  {name:70} {1e6 * value:10.1f} us")
    for name, value in report["verdicts"].items():
        print(f"  {name:70} {value:10.3f}")
    for name, value in report["end_to_end"].get("seconds", {}).items():
        print(f"  end to end, {name:58} {1e6 * value:10.1f} us")
    for kind in ("not_run", "errors"):
        for name, reason in report[kind].items():
            print(f"  {name}: {kind.replace('_', ' ')}: {reason}")


if __name__ == "__main__":
    main()
