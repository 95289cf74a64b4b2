"""Precision variants of an engine: made, held against fp32 on films, and written only if they pass."""

from __future__ import annotations

import datetime as dt
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from ptxsdk.backends.openvino import runtime, unsigned
from ptxsdk.build import quantize as int8
from ptxsdk.build.accuracy import Accuracy, Budget, Outputs, compare, intervals, probabilities
from ptxsdk.build.films import BuildFilm, ReadFilm, find_build_films, read_films, split_films, usable
from ptxsdk.build.network import (
    checked_bytes,
    heads,
    merge_pointwise,
    multiply_accumulates,
    parse_network,
    rewritten,
    to_half,
)
from ptxsdk.engine import Engine, write_engine
from ptxsdk.errors import BuildError, WriterError
from ptxsdk.manifest import Golden, Manifest, MeasuredPoint, Metric, Network, Tolerance

if TYPE_CHECKING:
    import onnx

VariantPrecision = Literal["fp16", "int8"]
VARIANTS: tuple[VariantPrecision, ...] = get_args(VariantPrecision)
MOST_CALIBRATION = 300
FEWEST_FLAGGED = 8
MOST_FLOAT = 0.15
"""Greatest share of the multiply-accumulates that an INT8 variant may give back to float."""
_LEAST_TOLERANCE = {"fp16": (0.2, 0.02), "int8": (0.5, 0.05)}  # of logits and of the probability
_LARGEST_LOGIT = 1e4  # a certainty in any precision
_HALF_HEADROOM = 32752.0  # half of the largest number in half precision

Track = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A variant that passed the gate.

    Attributes
    ----------
    precision : {"fp16", "int8"}
        Which.
    network : bytes
        ONNX.
    accuracy : Accuracy
        Against fp32.
    metrics : tuple of Metric
        The changes with their intervals, for the manifest.
    float_layers : tuple of str
        Convolutions that stayed in float, those first that cost most for their work.
    """

    precision: VariantPrecision
    network: bytes
    accuracy: Accuracy
    metrics: tuple[Metric, ...]
    float_layers: tuple[str, ...]


def build_engine(
    engine: Engine,
    films: Path,
    out: str | os.PathLike[str],
    *,
    validation: Path | None = None,
    precisions: Sequence[VariantPrecision] = VARIANTS,
    int8_network: bytes | None = None,
    budget: Budget | None = None,
    version: str | None = None,
    describe: str = "",
    track: Track | None = None,
) -> tuple[Engine, tuple[Variant, ...]]:
    """Add precision variants to an engine and write it; what it holds in these precisions is replaced.

    Parameters
    ----------
    engine : Engine
        Has a network in fp32.
    films, validation : Path
        As `find_build_films`; where `validation` is None, `films` are split between calibration and measurement.
    out : path
        The engine to write, whole or not at all; may be the file `engine` came from. It is not signed.
    precisions : sequence of str
        "fp16", "int8".
    int8_network : bytes, optional
        The fp32 network quantized elsewhere in the form that `ptxsdk.build.quantize.quantize` gives, as
        ``training.distil_int8`` does; otherwise it is quantized here.
    budget : Budget, optional
        How much a variant may lose.
    version : str, optional
        Version of the new engine; default: that of the old.
    describe : str
        What the films are, for the manifest.
    track : callable, optional
        Told ``(stage, done, of)``.

    Returns
    -------
    Engine, tuple of Variant
        The engine as written, and what was added.

    Raises
    ------
    BuildError
        ``build.films``, ``build.network``, ``build.accuracy``, ``build.option`` or ``build.unavailable``; nothing was
        written.
    EngineError, WriterError
        As `ptxsdk.engine.write_engine`.
    """
    _check_place(Path(out))
    manifest = engine.manifest
    variants = build_variants(
        manifest,
        engine.network("fp32"),
        films,
        validation=validation,
        precisions=precisions,
        int8_network=int8_network,
        budget=budget,
        describe=describe,
        track=track,
    )
    entries, networks = engine.entries(), dict(manifest.networks)
    for variant in variants:
        entry = f"network/{variant.precision}.onnx"
        entries[entry] = variant.network
        networks[variant.precision] = Network(entry=entry, accuracy=variant.accuracy.numbers())
    replaced = tuple(f"{variant.precision}_" for variant in variants)
    changed = replace(
        manifest,
        version=version or manifest.version,
        created=dt.datetime.now(dt.timezone.utc).date().isoformat(),
        networks=networks,
        entries={},
        metrics=(
            *(metric for metric in manifest.metrics if not metric.name.startswith(replaced)),
            *(metric for variant in variants for metric in variant.metrics),
        ),
        golden=_with_tolerances(engine, variants),
    )
    return write_engine(out, changed, entries), variants


def _check_place(out: Path) -> None:
    """Say now, not when all is done, where an engine cannot be written."""
    try:
        fits = out.parent.is_dir() and not out.is_dir() and os.access(out.parent, os.W_OK)
    except OSError as error:
        raise WriterError("writer.failed", f"{str(out)!r} cannot be written: {error.strerror}") from error
    if not fits:
        raise WriterError("writer.failed", f"there is no folder to write {str(out)!r} in")


def _default_point(manifest: Manifest) -> MeasuredPoint:
    return next(each for each in manifest.operating_points if each.name == manifest.default_operating_point)


def _worst(costs: Mapping[str, float]) -> str:
    return ", ".join(f"{name} ({cost:.3f})" for name, cost in list(costs.items())[:8])


def build_variants(
    manifest: Manifest,
    network: bytes,
    films: Path,
    *,
    validation: Path | None = None,
    precisions: Sequence[VariantPrecision] = VARIANTS,
    int8_network: bytes | None = None,
    budget: Budget | None = None,
    describe: str = "",
    track: Track | None = None,
) -> tuple[Variant, ...]:
    """Make variants of a network and hold each against it; parameters and errors as in `build_engine`."""
    if not precisions or any(precision not in VARIANTS for precision in precisions):
        raise BuildError("build.option", f"precisions {tuple(precisions)} are not of {', '.join(VARIANTS)}")
    budget, track = budget or Budget(), track or (lambda stage, done, of: None)
    model = merge_pointwise(parse_network(network, manifest.input, manifest.outputs))
    given = None
    if int8_network is not None:
        given = int8.check_quantized(parse_network(int8_network, manifest.input, manifest.outputs), model)
    calibration, measured = _films(manifest, films, validation, track)
    whole = run_network(network, manifest, measured, lambda done, of: track("fp32 on validation films", done, of))
    flagged = int((probabilities(manifest, whole) >= _default_point(manifest).threshold).sum())
    if flagged < FEWEST_FLAGGED:
        raise BuildError(
            "build.films",
            f"the fp32 network flags {flagged} of {len(measured)} validation films; at least {FEWEST_FLAGGED} must be, "
            "to see whether a variant finds the same",
        )
    bench = _Bench(manifest, model, calibration, measured, whole, budget, describe, track)
    return tuple(bench.half() if precision == "fp16" else bench.int8(given) for precision in precisions)


def _films(
    manifest: Manifest, films: Path, validation: Path | None, track: Track
) -> tuple[list[ReadFilm], list[ReadFilm]]:
    """Read the films to calibrate and to measure with."""
    found = find_build_films(films)
    if validation is None:
        calibration, measured = split_films(found)
    else:
        calibration, measured = found, find_build_films(validation)
        groups = {film.group for film in measured}
        paths = {film.path.resolve() for film in measured}
        calibration = [film for film in calibration if film.group not in groups and film.path.resolve() not in paths]

    def read(part: Sequence[BuildFilm], what: str) -> list[ReadFilm]:
        results = []
        for done, film in enumerate(read_films(part, manifest.input), 1):
            results.append(film)
            track(f"reading films for {what}", done, len(part))
        return usable(results, what)

    return read(_spread(calibration, MOST_CALIBRATION), "calibration"), read(measured, "validation")


def _spread(films: Sequence[BuildFilm], most: int) -> list[BuildFilm]:
    """Return at most `most` films, evenly over the list, a third of them positives where there are so many."""
    if len(films) <= most:
        return list(films)
    positive = [film for film in films if film.label]
    other = [film for film in films if not film.label]
    wanted = min(len(positive), most // 3)

    def even(part: Sequence[BuildFilm], count: int) -> list[BuildFilm]:
        return [part[index * len(part) // count] for index in range(count)]

    return even(positive, wanted) + even(other, min(len(other), most - wanted))


def run_network(
    network: bytes, manifest: Manifest, films: Sequence[ReadFilm], track: Callable[[int, int], None] | None = None
) -> Outputs:
    """Run a network on films on this CPU, in OpenVINO, in float32 where the network says nothing else.

    Raises
    ------
    BuildError
        ``build.network``: OpenVINO refuses it, or it gives NaN or infinity.
    """
    openvino = runtime()

    names = manifest.outputs.patch_logits.name, manifest.outputs.mask_logits.name
    patch = np.empty((len(films), *manifest.outputs.patch_logits.grid), np.float32)
    mask = np.empty((len(films), *manifest.outputs.mask_logits.size), np.float16)
    done, finite = 0, True

    def keep(request: Any, index: int) -> None:
        nonlocal done, finite
        logits = [request.get_tensor(name).data[0] for name in names]
        if not all(bool(np.isfinite(part).all()) for part in logits):
            finite = False  # never set back: the callbacks of several streams meet here
        patch[index], mask[index] = logits[0], np.clip(logits[1], -_LARGEST_LOGIT, _LARGEST_LOGIT)
        done += 1
        if track is not None:
            track(done, len(films))

    try:
        core = openvino.Core()
        options = {"PERFORMANCE_HINT": "THROUGHPUT", "INFERENCE_PRECISION_HINT": "f32", "CACHE_DIR": ""}
        queue = openvino.AsyncInferQueue(core.compile_model(core.read_model(unsigned(network)), "CPU", options))
        queue.set_callback(keep)
        for index, film in enumerate(films):
            queue.start_async({manifest.input.name: film.tensor[None, None].astype(np.float32)}, index)
        queue.wait_all()
    except RuntimeError as error:
        raise BuildError("build.network", f"OpenVINO refuses the network: {str(error)[:300]}") from error
    if not finite:
        raise BuildError("build.network", "the network gives NaN or infinity on a film")
    return Outputs(patch=patch, mask=mask)


@dataclass(frozen=True)
class _Bench:
    """One network and the films its variants are made and measured with."""

    manifest: Manifest
    model: onnx.ModelProto
    calibration: Sequence[ReadFilm]
    measured: Sequence[ReadFilm]
    whole: Outputs
    budget: Budget
    describe: str
    track: Track

    def half(self) -> Variant:
        """Make the fp16 variant: all in half precision but the heads."""
        self._check_range()
        model = rewritten(self.model)
        half = to_half(model, heads(model))
        network, accuracy, outputs = self._measure("fp16", half)
        broken = accuracy.broken(self.budget)
        if broken:
            costs = self._costs_in_half()
            raise BuildError("build.accuracy", f"fp16: {'; '.join(broken)}; the layers that cost most: {_worst(costs)}")
        return self._variant("fp16", network, accuracy, outputs, ())

    def int8(self, given: onnx.ModelProto | None) -> Variant:
        """Make the INT8 variant; layers that cost too much go back to float, one after another."""
        tensors = [film.tensor for film in self.calibration]
        self.track("int8: ranges of activations", 0, 1)
        quantized = given or int8.quantize(
            self.model, tensors, track=lambda done, of: self.track("int8: ranges of activations", done, of)
        )
        costs = int8.sensitivities(
            quantized,
            self.model,
            tensors[:: max(1, len(tensors) // 16)],
            lambda done, of: self.track("int8: cost of layers", done, of),
        )
        broken: list[str] = []
        for layers in self._candidates(costs):
            mixed = int8.keep_float(quantized, self.model, layers)
            int8.mark_nonnegative(mixed)
            network, accuracy, outputs = self._measure(f"int8 with {len(layers)} float layers", rewritten(mixed))
            broken = accuracy.broken(self.budget)
            if not broken:
                return self._variant("int8", network, accuracy, outputs, layers)
        raise BuildError("build.accuracy", f"int8: {'; '.join(broken)}; the layers that cost most: {_worst(costs)}")

    def _costs_in_half(self) -> dict[str, float]:
        """Return the error that each convolution brings when it alone is in half precision."""
        tensors = [film.tensor for film in self.calibration]
        names = {node.name for node in self.model.graph.node}
        return int8.costs_alone(
            self.model,
            lambda name: to_half(self.model, names - {name}),
            tensors[:: max(1, len(tensors) // 8)],
            lambda done, of: self.track("fp16: cost of layers", done, of),
        )

    def _candidates(self, costs: Mapping[str, float]) -> Iterator[tuple[str, ...]]:
        """Yield ever more layers to keep in float, up to the share that may be: first what costs most for its work."""
        work = multiply_accumulates(self.model)
        names = sorted(costs, key=lambda name: -(costs[name] ** 2) / work[name])
        for count in range(len(names) + 1):
            layers = tuple(names[:count])
            if sum(work[name] for name in layers) > MOST_FLOAT * sum(work.values()):
                return
            yield layers

    def _measure(self, what: str, model: onnx.ModelProto) -> tuple[bytes, Accuracy, Outputs]:
        network = checked_bytes(model)
        stage = f"{what} on validation films"
        outputs = run_network(network, self.manifest, self.measured, lambda done, of: self.track(stage, done, of))
        return network, compare(self.manifest, self.measured, self.whole, outputs), outputs

    def _variant(
        self, precision: VariantPrecision, network: bytes, accuracy: Accuracy, outputs: Outputs, layers: tuple[str, ...]
    ) -> Variant:
        chosen = f"{len(layers)} layers in float, chosen on these films"
        data = (
            f"{accuracy.films} films, {accuracy.positives} positive, {accuracy.outlined} outlined"
            f"{f': {self.describe}' if self.describe else ''}{f'; {chosen}' if layers else ''}"
            f"; {precision} less fp32 on the same films"
        )
        metrics = tuple(
            Metric(name=f"{precision}_{name}", value=value, low=low, high=high, n=n, data=data)
            for name, (value, low, high, n) in intervals(self.manifest, self.measured, self.whole, outputs).items()
        )
        return Variant(precision=precision, network=network, accuracy=accuracy, metrics=metrics, float_layers=layers)

    def _check_range(self) -> None:
        """Refuse half precision where a tensor comes near the end of its range on calibration films."""
        names = [name for node in self.model.graph.node for name in node.output if name]
        films = [film.tensor for film in self.calibration[:: max(1, len(self.calibration) // 16)]]
        for values in int8.run_tensors(self.model, names, films):
            for name, value in values.items():
                if value.dtype == np.float32 and not np.abs(value).max(initial=0) < _HALF_HEADROOM:
                    raise BuildError("build.accuracy", f"fp16: the tensor {name!r} comes near the end of its range")


def _with_tolerances(engine: Engine, variants: Sequence[Variant]) -> tuple[Golden, ...]:
    """Return the golden films' records with what the variants may differ: three times what they do here, or more.

    Low precision is at the mercy of the last bit before each rounding, which differs between devices: the golden films
    are to find a device that computes something else, not to repeat the accuracy gate.
    """
    from ptxsdk.ops import preprocess
    from ptxsdk.radiograph import Display, Window

    manifest = engine.manifest
    films = []
    for vector in engine.golden():
        tensor, geometry = preprocess(
            vector.pixels,
            size=manifest.input.size,
            display=Display(voi=Window.from_range(*vector.window)),
            mean=manifest.input.mean,
            std=manifest.input.std,
        )
        film = BuildFilm(path=Path(vector.name), group=vector.name)
        films.append(ReadFilm(film=film, tensor=tensor.astype(np.float16), geometry=geometry))
    tolerances = [dict(golden.tolerance) for golden in manifest.golden]
    for variant in variants:
        outputs = run_network(variant.network, manifest, films)
        found = probabilities(manifest, outputs)
        for index, vector in enumerate(engine.golden()):
            logits = max(
                float(np.abs(outputs.patch[index] - vector.patch_logits).max()),
                float(np.abs(outputs.mask[index].astype(np.float32) - vector.mask_logits).max()),
            )
            change = abs(float(found[index]) - vector.probability)
            tolerances[index][variant.precision] = Tolerance(
                logits=max(_LEAST_TOLERANCE[variant.precision][0], round(3 * logits, 3)),
                probability=max(_LEAST_TOLERANCE[variant.precision][1], round(3 * change, 4)),
            )
    return tuple(replace(golden, tolerance=own) for golden, own in zip(manifest.golden, tolerances, strict=True))
