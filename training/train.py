"""Train a network: ``python -m training.train --data DIR --out RUNDIR``."""

from __future__ import annotations

import argparse
import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import cv2
import lightning
import numpy as np
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ptxsdk.files import write_file
from training.data.augment import AUGMENTATIONS
from training.data.cache import FilmCache, Preprocess, sdk_preprocess
from training.data.duplicates import drop_look_alikes, embed
from training.data.films import Film, describe
from training.data.folders import read_films
from training.data.splits import Split, paper_split, split_films
from training.data.stream import Batch, StepSampler, TrainingStream, collate_targets, to_input
from training.learner import HELP, Learner, MovingAverage, TrainConfig

logger = logging.getLogger(__name__)

LAST = "last.ckpt"
BEST = "best.ckpt"
CONFIG = "config.json"
LEFT_OUT = "left_out"


def prepare(
    data: Path,
    cache: Path,
    config: TrainConfig,
    *,
    preprocess: Preprocess = sdk_preprocess,
    describe_films: Callable[[FilmCache], NDArray[np.float32]] = embed,
) -> tuple[FilmCache, Split]:
    """Read a data folder, cache its films and split them; look-alikes of held-out films leave training.

    The vectors that `describe_films` gives the films are kept with the cache.
    """
    films = read_films(data)
    cached = FilmCache.open(data, films, config.size, cache, preprocess=preprocess)
    return cached, split(films, cached, config, describe_films=describe_films)


def split(
    films: Sequence[Film],
    cache: FilmCache,
    config: TrainConfig,
    *,
    describe_films: Callable[[FilmCache], NDArray[np.float32]] = embed,
) -> Split:
    """Split films as a configuration says; see `prepare`."""
    if config.split == "paper":
        parts = paper_split(films, seed=config.seed)
    else:
        validate, test = (None if fold < 0 else fold for fold in (config.validation_fold, config.test_fold))
        parts = split_films(films, folds=config.folds, validate=validate, test=test)
    unused = set(filter(None, config.leave_out.split(",")))
    if unknown := unused - {film.patient for film in films}:
        raise ValueError(f"there are no films of the patients {', '.join(sorted(unknown))} to leave out")
    parts = Split(*([film for film in part if film.patient not in unused] for part in parts))
    held_out = [*parts.validation, *parts.test, *(film for film in films if film.patient in unused)]
    if not held_out or all(film.patient for film in parts.train):
        return parts
    stored = cache.folder / "vectors.npy"
    if not stored.exists():
        draft = stored.with_name(f"{os.getpid()}.part.npy")
        np.save(draft, describe_films(cache))
        draft.replace(stored)
    train = drop_look_alikes(parts.train, held_out, np.load(stored), cache.row_of, threshold=config.look_alike)
    return parts._replace(train=train)


class ValidationFilms(Dataset[Batch]):
    """Films in batches, as they are.

    Parameters
    ----------
    cache : FilmCache
        Where the films lie.
    films : sequence of Film
        Films to show.
    batch : int
        Films in a batch.
    """

    def __init__(self, cache: FilmCache, films: Sequence[Film], *, batch: int) -> None:
        self.cache = cache
        self.films = films
        self.batch = batch

    def __len__(self) -> int:
        return -(-len(self.films) // self.batch)

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        films = self.films[index * self.batch : (index + 1) * self.batch]
        images = np.stack([self.cache.image(film) for film in films])
        targets = collate_targets(films, [self.cache.region(film) for film in films], self.cache.size)
        return Batch(to_input(images), targets)


def fit(
    config: TrainConfig,
    cache: FilmCache,
    parts: Split,
    out: Path,
    *,
    lungs: dict[str, NDArray[np.uint8]] | None = None,
    resume: bool = False,
    precision: str = "auto",
    workers: int = 1,
    devices: int | str = "auto",
    tensorboard: bool = True,
    progress: bool = True,
    until: int | None = None,
) -> None:
    """Train a network to its last step, or to `until`, and leave its checkpoints in a folder.

    ``last.ckpt`` is written after every epoch, ``best.ckpt`` whenever the validation films score best. The schedule
    is that of the whole run whether it is broken off or not.

    Parameters
    ----------
    config : TrainConfig
        What to train.
    cache : FilmCache
        Where the films lie.
    parts : Split
        Films to train and to validate on; the test films are not touched.
    out : Path
        Folder of the run: ``config.json``, checkpoints, ``journal`` (CSV) and ``tensorboard``.
    lungs : dict of str to ndarray
        Lung outlines by image path, where positives are to be made.
    resume : bool
        Go on from ``last.ckpt``, if it is there.
    precision : {"auto", "bf16", "fp32"}
        Arithmetic of the forward pass; auto takes bfloat16 where the processor has it.
    workers : int
        Processes that prepare batches.
    devices : int or "auto"
        GPUs that train together, each with batches of its own.
    tensorboard, progress : bool
        Write event files; show a bar.
    until : int or None
        Step to stop at.

    Raises
    ------
    ValueError
        The configuration needs validation films and there are none, or its first weights know a held-out patient.
    """
    if not parts.validation and (config.patience or config.schedule == "plateau"):
        raise ValueError("early stopping and the plateau schedule need validation films")
    check_weights(config.weights, parts)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(config.seed, verbose=False)
    out.mkdir(parents=True, exist_ok=True)
    write_file(out / CONFIG, json.dumps(asdict(config), indent=2).encode())
    learner = Learner(config, bf16=precision == "bf16" or (precision == "auto" and bf16_is_fast()))
    learner.to(memory_format=torch.channels_last)
    last = ModelCheckpoint(
        out, filename="last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    callbacks: list[Callback] = [last]
    if config.ema:
        callbacks.append(MovingAverage(config.ema))
    if parts.validation:
        watched: dict[str, Any] = {"monitor": "validation/score", "mode": "max"}
        best = ModelCheckpoint(
            out,
            filename="best",
            save_top_k=1,
            save_weights_only=True,
            save_on_train_epoch_end=False,  # a resumed run ends its epoch again, without a validation
            enable_version_counter=False,
            **watched,
        )
        callbacks.append(best)
        if config.patience:
            callbacks.append(EarlyStopping(patience=config.patience, check_on_train_epoch_end=False, **watched))
    if progress:
        callbacks.append(TQDMProgressBar(refresh_rate=5))
    loggers: list[Logger] = [CSVLogger(out, name="journal")]  # a folder for every start of the run
    if tensorboard:
        loggers.append(TensorBoardLogger(out, name="tensorboard"))
    trainer = lightning.Trainer(
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=devices if torch.cuda.is_available() else 1,
        max_steps=config.steps if until is None else min(until, config.steps),
        max_epochs=-1,
        callbacks=callbacks,
        logger=loggers,
        log_every_n_steps=10,
        gradient_clip_val=5.0,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_progress_bar=progress,
        enable_model_summary=False,
    )
    stream = TrainingStream(
        cache,
        parts.train,
        batch=config.batch,
        steps=config.steps,
        seed=config.seed,
        rank=trainer.global_rank,
        augmentation=AUGMENTATIONS[config.augmentation],
        supervision=config.supervision,
        warm_size=config.warm_size,
        warm_steps=config.warm_steps,
        made=config.made,
        lungs=lungs,
    )
    own = torch.Generator()  # its own, or starting the loader would shift the network's draws
    loader = DataLoader(
        stream,
        batch_size=None,
        sampler=StepSampler(config.epoch_steps, lambda: trainer.global_step),
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=own,
    )
    shown = DataLoader(ValidationFilms(cache, parts.validation, batch=config.batch), batch_size=None, generator=own)
    checkpoint = out / LAST if resume and (out / LAST).exists() else None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # advice: no validation films, few loader processes
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists")
        trainer.fit(learner, loader, shown if parts.validation else None, ckpt_path=checkpoint, weights_only=False)


def read_config(run: Path) -> TrainConfig:
    """Return the configuration of a run."""
    return TrainConfig.from_dict(json.loads((run / CONFIG).read_text()))


def load_network(run: Path, *, checkpoint: str = LAST) -> tuple[nn.Module, TrainConfig]:
    """Return the averaged network of a run, in evaluation mode, and the run's configuration.

    Parameters
    ----------
    run : Path
        Folder of the run.
    checkpoint : str
        ``last.ckpt`` for the last weights, ``best.ckpt`` for those that validated best.
    """
    config = read_config(run)
    state = torch.load(run / checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    network = config.network(weights="none")
    prefix = "network."
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    network.load_state_dict(own)
    return network.eval(), config


def check_weights(weights: str, parts: Split) -> None:
    """Refuse first weights from `training.pretrain` that were learnt on a patient who is held out now.

    Raises
    ------
    ValueError
        They were.
    """
    if weights in {"imagenet", "none"} or Path(weights).suffix == ".safetensors":
        return
    left_out = torch.load(weights, map_location="cpu", weights_only=True).get(LEFT_OUT)
    held_out = {film.patient for film in (*parts.validation, *parts.test)}
    if left_out is not None and (known := held_out - set(left_out)):
        raise ValueError(f"{weights} was learnt on {len(known)} of the {len(held_out)} patients held out here")


def load_lungs(path: Path, size: int) -> dict[str, NDArray[np.uint8]]:
    """Read the lung outlines that ``python -m training.lungs`` wrote, at a side of `size`, by image path.

    Films without an outline are left out.
    """
    with np.load(path) as stored:
        images, lungs = stored["images"], stored["lungs"]
    return {
        str(image): np.asarray(cv2.resize(outline, (size, size), interpolation=cv2.INTER_NEAREST))
        for image, outline in zip(images, lungs, strict=True)
        if outline.any()
    }


def bf16_is_fast() -> bool:
    """Tell whether bfloat16 arithmetic is native to the device that trains."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - there is no public one


def add_config_options(parser: argparse.ArgumentParser, *, only: Sequence[str] | None = None) -> None:
    """Give a parser one option for every field of `TrainConfig`, or for some of them."""
    hints = get_type_hints(TrainConfig)
    for field in fields(TrainConfig):
        if only is not None and field.name not in only:
            continue
        flag, kind = f"--{field.name.replace('_', '-')}", hints[field.name]
        if kind is bool:
            parser.add_argument(flag, action="store_true", help=HELP[field.name])
        elif choices := get_args(kind):
            parser.add_argument(flag, choices=choices, default=field.default, help=HELP[field.name])
        else:
            parser.add_argument(flag, type=kind, default=field.default, help=HELP[field.name])


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options that change how a run is carried out, not what comes out."""
    add = parser.add_argument
    add("--lungs", type=Path, help="lung outlines by training.lungs, for --made")
    add("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="arithmetic of the forward pass")
    add("--workers", type=int, default=1, help="processes that prepare batches")
    add("--threads", type=int, default=0, help="threads of the arithmetic; 0 leaves it to PyTorch")
    add("--devices", type=int, default=1, help="GPUs that train together")
    add("--no-progress", dest="progress", action="store_false", help="no progress bar")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Train a network on a folder of films: manifest.csv, NIH ChestX-ray14 or SIIM-ACR.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of films in a layout training.data reads")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run: configuration, logs, checkpoints")
    parser.add_argument("--cache", type=Path, help="folder of preprocessed films; OUT/cache when not given")
    add_config_options(parser)
    add_run_options(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    return parser


def config_of(options: argparse.Namespace) -> TrainConfig:
    """Return the part of the command line that defines the run."""
    return TrainConfig(**{f.name: getattr(options, f.name) for f in fields(TrainConfig) if hasattr(options, f.name)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    config = config_of(options)
    cache, parts = prepare(options.data, options.cache or options.out / "cache", config)
    for name, films in parts._asdict().items():
        logger.info("%s: %s", name, describe(films))
    fit(
        config,
        cache,
        parts,
        options.out,
        lungs=load_lungs(options.lungs, config.size) if options.lungs else None,
        resume=options.resume,
        precision=options.precision,
        workers=options.workers,
        devices=options.devices,
        progress=options.progress,
    )


if __name__ == "__main__":
    main()
