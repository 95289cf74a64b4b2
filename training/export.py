"""Export a run: ``python -m training.export RUNDIR --data DIR --out model.ptxengine``.

The averaged weights become an ONNX network of standard operators, which is checked against PyTorch in onnxruntime and
in OpenVINO. With what validation films decided and golden vectors it becomes an engine file. Those decisions and the
measures come from the run's own validation and test films, or, where the run trained on every film, from the
cross-validation of the same configuration.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import logging
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.choices import Choices, choose, labels_of
from training.crossval import HELD_OUT, common_config, differences, fold_config, load_held_out
from training.data.cache import FilmCache, is_display_ready, read_gray, sdk_preprocess
from training.data.films import Film
from training.data.folders import read_films
from training.data.sources import source_of
from training.data.splits import describe_split
from training.evaluate import evaluate_run
from training.learner import TrainConfig
from training.measure import measure
from training.models.output import INPUT_MEAN, INPUT_STD
from training.predictions import Predictions, onnx_predictor
from training.reproduce import ARMS, POINTS, read_arm
from training.scoring import prescribed
from training.train import BEST, LAST, load_network, split

if TYPE_CHECKING:
    from ptxsdk.manifest import DataSource, Golden, Manifest, MeasuredPoint, Metric

logger = logging.getLogger(__name__)

OPSET = 18
ONNX_TOLERANCE = 1e-4
INTENDED_USE = (
    "Research and integration; not a medical device. Finds signs of pneumothorax on frontal chest radiographs of "
    "adults and shows where they are. A film that is not flagged is not thereby free of pneumothorax. Trained and "
    "measured on one hospital's films, most of them from the public ChestX-ray14; not validated for clinical use."
)

GOLDEN_CREDIT = "{source}, film {film}: {credit}"


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What an engine is given besides its network: decisions, and what they were measured to do.

    Attributes
    ----------
    choices : Choices
        Aggregation, calibration, operating points and region rules.
    calibrated_on : str
        What films decided them, with their number and prevalence.
    n : int
        How many.
    measured : dict of str to dict
        Measures (`training.measure.measure`) by what they were taken on; the first vouches for the operating points.
    train : sequence of Film
        What the network was trained on.
    """

    choices: Choices
    calibrated_on: str
    n: int
    measured: dict[str, dict[str, Any]]
    train: Sequence[Film]


class _Network(nn.Module):
    """The network with plain outputs, in the order and under the names of the engine format."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Return patch logits and mask logits."""
        output = self.network(image)
        return output.patch_logits, output.mask_logits


def export_onnx(network: nn.Module, path: Path) -> float:
    """Write a network as ONNX and hold it against PyTorch.

    Input ``image`` (1, 1, S, S) float32, outputs ``patch_logits`` (1, P, P) and ``mask_logits`` (1, S, S) float32,
    weights inside the file, standard operators only.

    Returns
    -------
    float
        Largest difference between onnxruntime and PyTorch on a random film, relative where a logit is above 1.

    Raises
    ------
    ValueError
        The file holds other than standard operators, or onnxruntime or OpenVINO computes something else.
    """
    wrapped = _Network(network.cpu().to(memory_format=torch.contiguous_format)).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 1, network.size, network.size, generator=generator) * 2 - 1
    program = torch.onnx.export(
        wrapped,
        (image,),
        input_names=["image"],
        output_names=["patch_logits", "mask_logits"],
        opset_version=OPSET,
        dynamo=True,
        optimize=True,
        verbose=False,
    )
    if program is None:
        raise ValueError("PyTorch's exporter gave nothing back")
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    foreign = {node.domain for node in model.graph.node} - {"", "ai.onnx"}
    if foreign or model.functions:
        raise ValueError(f"the network holds operators of {sorted(foreign) or 'local functions'}")
    path.write_bytes(model.SerializeToString())

    with torch.inference_mode():
        wanted = [output.numpy() for output in wrapped(image)]
    error = _largest_error(wanted, onnx_predictor(path)(image.numpy()))
    if error > ONNX_TOLERANCE:
        raise ValueError(f"onnxruntime differs from PyTorch by {error:.2g}")
    in_openvino = _largest_error(wanted, _run_openvino(path, image.numpy()))
    if in_openvino > 10 * ONNX_TOLERANCE:
        raise ValueError(f"OpenVINO differs from PyTorch by {in_openvino:.2g}")
    logger.info("ONNX: %d bytes, differences %.2g, in OpenVINO %.2g", path.stat().st_size, error, in_openvino)
    return error


def export_engine(
    onnx_path: Path,
    evidence: Evidence,
    config: TrainConfig,
    films: Sequence[Film],
    data: Path,
    out: Path,
    *,
    name: str = "clasegnet",
    version: str = "0.1.0",
) -> None:
    """Write the engine file: network, manifest and golden vectors.

    Parameters
    ----------
    onnx_path : Path
        The network, as `export_onnx` wrote it.
    evidence : Evidence
        Decisions and measures.
    config : TrainConfig
        How the network was trained.
    films : sequence of Film
        Films to take golden vectors from, with a source that may be passed on with credit.
    data : Path
        Folder the films' paths start from.
    out : Path
        The engine file.
    name, version : str
        Of the model.
    """
    from ptxsdk import __version__
    from ptxsdk import manifest as parts
    from ptxsdk.engine import write_engine

    choices = evidence.choices
    golden, arrays = make_golden(onnx_path, choices, films, data, config.size)
    side, grid = (config.size, config.size), (config.grid, config.grid)
    manifest: Manifest = parts.Manifest(
        name=name,
        version=version,
        created=dt.datetime.now(dt.timezone.utc).date().isoformat(),
        intended_use=INTENDED_USE,
        input=parts.InputSpec(size=side, mean=INPUT_MEAN, std=INPUT_STD),
        outputs=parts.OutputSpec(patch_logits=parts.PatchOutput(grid=grid), mask_logits=parts.MaskOutput(size=side)),
        aggregation=parts.Aggregation(**asdict(choices.aggregation)),
        regions=parts.RegionRules(**asdict(choices.regions)),
        calibration=parts.Calibration(
            scale=choices.calibration.scale, bias=choices.calibration.bias, data=evidence.calibrated_on, n=evidence.n
        ),
        operating_points=operating_points(evidence),
        default_operating_point=POINTS[0],
        metrics=tuple(metric for on, measured in evidence.measured.items() for metric in metrics_of(measured, on)),
        provenance=parts.Provenance(
            training_data=training_data(evidence.train),
            code_version=f"ptxsdk {__version__}",
            command=command_of(config),
            seed=config.seed,
        ),
        networks={"fp32": parts.Network(entry="network/fp32.onnx")},
        golden=golden,
    )
    engine = write_engine(out, manifest, arrays | {"network/fp32.onnx": onnx_path.read_bytes()})
    logger.info("%s: %d bytes, SHA-256 %s", out.name, out.stat().st_size, engine.sha256)


LOOK_ALIKES = (
    "films without a patient id that look like a held-out film left training, which finds about half of the pairs of "
    "one patient; some may remain"
)


def evidence_of_run(network: nn.Module, config: TrainConfig, cache: FilmCache, films: Sequence[Film]) -> Evidence:
    """Return what a run's own validation films decide and its validation and test films measure."""
    parts = split(films, cache, config)
    results, _ = evaluate_run(network, cache, parts, system=config.system)
    labels = "text-mined and experts' labels" if config.split == "paper" else "trusted labels"
    held_out = f"films with {labels}, held out {describe_split(films)}; {LOOK_ALIKES}"
    return Evidence(
        choices=Choices.from_dict(results["choices"]),
        calibrated_on=_prevalence(parts.validation, "validation: " + held_out),
        n=len(parts.validation),
        measured={
            _prevalence(parts.test, "test, nothing chosen here: " + held_out): results["test"],
            _prevalence(parts.validation, "validation, choices made here: " + held_out): results["validation"],
        },
        train=parts.train,
    )


def evidence_of_folds(arm: str, folder: Path, config: TrainConfig, cache: FilmCache, films: Sequence[Film]) -> Evidence:
    """Return what the pooled out-of-fold logits of a cross-validation decide, and what it measured.

    The measures are cross-fitted: each fold was read with choices made on the others. The engine's own choices are
    made on all of them.

    Raises
    ------
    ValueError
        The cross-validation differs from `config` in more than the fold.
    """
    runs = [folder / f"{arm}-{fold}" for fold in range(config.folds)]
    shared = common_config(runs)
    wanted = fold_config(dataclasses.replace(config, leave_out=shared.leave_out), 0)
    if wanted != shared:
        raise ValueError(f"the cross-validation is of another configuration: {differences(shared, wanted)}")
    found, predictions, _ = load_held_out([run / HELD_OUT for run in runs], films)
    choices, _ = choose(
        predictions, cache, found, aggregations=prescribed(ARMS[arm].system, predictions.patch_logits.shape[-1])
    )
    readings = read_arm(arm, films, cache, config.folds, folder)
    experts = [reading for reading in readings if reading.film.expert]
    how = (
        f"{config.folds}-fold cross-validation {describe_split(films)} of the same configuration, each fold read with "
        "choices made on the others; the network of this engine was then trained on the films of all folds. The recipe "
        "was developed on these films; masks marked as predicted come from a network that may have learnt from them. "
        + LOOK_ALIKES
    )
    return Evidence(
        choices=choices,
        calibrated_on=_prevalence(found, f"pooled out-of-fold films with trusted labels; {how}"),
        n=len(found),
        measured={
            _prevalence([each.film for each in readings], f"trusted labels; {how}"): measure(readings, POINTS),
            _prevalence([each.film for each in experts], f"radiologists' and experts' labels alone; {how}"): measure(
                experts, POINTS
            ),
        },
        train=split(films, cache, dataclasses.replace(config, test_fold=-1, validation_fold=-1)).train,
    )


def operating_points(evidence: Evidence) -> tuple[MeasuredPoint, ...]:
    """Return the operating points with what films they were not chosen on say of them."""
    from ptxsdk import manifest as parts

    on, measured = next(iter(evidence.measured.items()))
    return tuple(
        parts.MeasuredPoint(
            name=point.name,
            threshold=point.threshold,
            sensitivity=parts.Estimate(**measured["operating_points"][point.name]["sensitivity"]),
            specificity=parts.Estimate(**measured["operating_points"][point.name]["specificity"]),
            data=on,
        )
        for point in evidence.choices.operating_points
    )


def metrics_of(measured: dict[str, Any], data: str) -> list[Metric]:
    """Return every measure with an interval of one set of films, strata by projection and size included."""
    from ptxsdk import manifest as parts

    flat = measured["classification"] | measured["localization"]
    for point, rates in measured["operating_points"].items():
        flat |= {f"{rate}_at_{point}": value for rate, value in rates.items()}
    for kind in ("view", "size of the finding"):
        for stratum, values in measured["strata"][kind].items():
            flat |= {f"{name}_{stratum}": value for name, value in values.items()}
    return [
        parts.Metric(name=_label(name), data=data, **value)
        for name, value in flat.items()
        if isinstance(value, dict) and value.keys() == {"value", "low", "high", "n"} and value["value"] is not None
    ]


def training_data(films: Sequence[Film]) -> tuple[DataSource, ...]:
    """Return the sets the network was trained on, with credit."""
    from ptxsdk import manifest as parts

    found = []
    for origin, count in sorted(Counter(film.origin for film in films).items()):
        source = source_of(origin)
        found.append(parts.DataSource(name=source.name, n=count, credit=source.credit, licence=source.licence))
    return tuple(found)


def _label(name: str) -> str:
    """Return a name as the manifest's labels are written: a-z, 0-9 and underscores."""
    return re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")


def _prevalence(films: Sequence[Film], what: str) -> str:
    """Return a description with the number of films and of positives in front."""
    return f"{len(films)} films, {int(labels_of(films).sum())} positive: {what}"


def command_of(config: TrainConfig) -> str:
    """Return the command that trains with this configuration; folders are left to the reader."""
    default = TrainConfig()
    changed = {key: value for key, value in asdict(config).items() if value != getattr(default, key)}
    options = [f"--{key.replace('_', '-')}" + ("" if value is True else f" {value}") for key, value in changed.items()]
    lungs = ["--lungs LUNGS.npz"] if config.made else []
    return " ".join(["python -m training.train --data DIR --out RUNDIR", *options, *lungs])


def make_golden(
    onnx_path: Path, choices: Choices, films: Sequence[Film], data: Path, size: int
) -> tuple[tuple[Golden, ...], dict[str, bytes]]:
    """Make golden vectors from three films: a sure positive, one at the threshold, a sure negative.

    Inputs pass through the SDK's preprocessing from the stored pixels, as they will on the device.

    Returns
    -------
    tuple of Golden
        What the manifest says of them.
    dict of str to bytes
        Their arrays by entry name.
    """
    from ptxsdk import manifest as parts
    from ptxsdk.engine import npy_bytes

    run = onnx_predictor(onnx_path)
    results = []
    for film in films:
        pixels = read_gray(data / film.image)
        image, _ = sdk_preprocess(pixels, size, mean=INPUT_MEAN, std=INPUT_STD)
        predictions = Predictions(*run(image[None, None]))
        results.append((film, pixels, predictions, float(choices.probabilities(predictions)[0])))
    positives = [result for result in results if result[0].label]
    if not positives or len(positives) == len(results):
        raise ValueError("golden vectors need PNG or JPEG films of both classes with trusted labels")
    edge = choices.operating_points[0].threshold
    chosen = [
        max(positives, key=lambda result: result[3]),
        min(positives, key=lambda result: abs(result[3] - edge)),
        min((result for result in results if not result[0].label), key=lambda result: result[3]),
    ]
    golden: list[Golden] = []
    arrays: dict[str, bytes] = {}
    for film, pixels, predictions, probability in chosen:
        stem = Path(film.image).stem.lower()
        vector = parts.Golden(
            name=f"{film.origin}-{stem}",
            pixels=f"golden/{stem}.pixels.npy",
            patch_logits=f"golden/{stem}.patch.npy",
            mask_logits=f"golden/{stem}.mask.npy",
            probability=probability,
            credit=GOLDEN_CREDIT.format(
                source=source_of(film.origin).name, film=Path(film.image).stem, credit=source_of(film.origin).credit
            ),
            # None for bf16, so no device runs the network in it: single films moved by up to .08 of probability.
            tolerance={"fp32": parts.Tolerance(logits=0.05, probability=0.005)},
        )
        golden.append(vector)
        arrays |= {
            vector.pixels: npy_bytes(pixels),
            vector.patch_logits: npy_bytes(predictions.patch_logits[0].astype(np.float32)),
            vector.mask_logits: npy_bytes(predictions.mask_logits[0].astype(np.float16)),
        }
    return tuple(golden), arrays


def main(arguments: Sequence[str] | None = None) -> None:
    """Export from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.export",
        description="Export a run as an engine file, or as an ONNX network alone.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUNDIR", help="folder of the run")
    add("--out", type=Path, required=True, help="file to write; the ONNX network is written beside an engine")
    add("--data", type=Path, help="folder of films, for choices, measures and golden vectors")
    add("--cache", type=Path, help="folder of preprocessed films; RUNDIR/cache when not given")
    add("--checkpoint", help="best.ckpt for the weights that validated best, last.ckpt for the last")
    add("--cross-validated", type=Path, help="folder of training.reproduce with the same configuration in folds")
    add("--arm", choices=list(ARMS), default="clasegnet", help="arm of it")
    add("--onnx-only", action="store_true", help="write the ONNX network to OUT and nothing else")
    add("--name", default="clasegnet", help="name of the model")
    add("--version", default="0.1.0", help="version of the model")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    for chatty in ("onnxscript", "onnx_ir"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if not options.onnx_only and options.data is None:
        parser.error("an engine needs --data")
    checkpoint = options.checkpoint or (BEST if (options.run / BEST).exists() else LAST)
    network, config = load_network(options.run, checkpoint=checkpoint)
    onnx_path = options.out if options.onnx_only else options.out.with_suffix(".onnx")
    export_onnx(network, onnx_path)
    if options.onnx_only:
        return
    films = read_films(options.data)
    cache = FilmCache.open(options.data, films, config.size, options.cache or options.run / "cache")
    if options.cross_validated:
        evidence = evidence_of_folds(options.arm, options.cross_validated, config, cache, films)
    else:
        evidence = evidence_of_run(network, config, cache, films)
    unseen = set(filter(None, config.leave_out.split(",")))
    golden = [
        film
        for film in films
        if film.trusted and is_display_ready(film.image) and (not unseen or film.patient in unseen)
    ]
    export_engine(
        onnx_path, evidence, config, golden, options.data, options.out, name=options.name, version=options.version
    )


def _strip(model: onnx.ModelProto) -> None:
    """Take out what names the exporting machine: stack traces, documentation, metadata."""
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    graph.doc_string = ""
    del graph.metadata_props[:]
    for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]


def _largest_error(wanted: Iterable[NDArray[np.float32]], found: Iterable[NDArray[np.floating]]) -> float:
    """Return the largest difference of logits, relative where they are above 1."""
    return max(float((np.abs(a - b) / np.maximum(1, np.abs(a))).max()) for a, b in zip(wanted, found, strict=True))


def _run_openvino(path: Path, image: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Run a network once in OpenVINO on the CPU, in float32."""
    from ptxsdk.backends.openvino import runtime

    openvino = runtime()

    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    result = compiled(image)
    return [result[name] for name in ("patch_logits", "mask_logits")]


if __name__ == "__main__":
    main()
