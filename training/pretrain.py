"""First weights for a backbone that has none offline: ``python -m training.pretrain --data DIR --out weights.pt``.

The backbone learns to tell what the records say of a film: every finding of its report, the label, sex and
projection. Unknown entries count nothing. Films of the held-out folds, and films that look like them, are left out,
so that the weights know no patient they will be measured on. Where ImageNet weights can be had they are better.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch.callbacks import TQDMProgressBar
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from training.data.augment import AUGMENTATIONS, Augmentation
from training.data.cache import FilmCache
from training.data.films import Film
from training.data.nih import FINDING
from training.data.stream import to_input
from training.learner import TrainConfig, learning_rate
from training.models.backbones import create_backbone
from training.train import LEFT_OUT, add_config_options, bf16_is_fast, config_of, prepare

logger = logging.getLogger(__name__)

FIELDS = (
    *("backbone", "weights", "size", "batch", "steps", "seed", "lr", "weight_decay", "augmentation"),
    *("split", "folds", "validation_fold", "test_fold", "look_alike"),
)
"""The fields of `TrainConfig` that matter here."""


def attributes(films: Sequence[Film]) -> list[str]:
    """Return the names of what is to be told: findings by name, then the label, male sex, AP projection."""
    named = sorted({name for film in films for name in film.findings} - {FINDING, "No Finding"})
    return [*named, FINDING, "male", "AP"]


def attribute_targets(film: Film, names: Sequence[str]) -> NDArray[np.float32]:
    """Return 1, 0 or NaN (not known) for every attribute of a film, (L,) float32.

    A film of which the record names no finding at all, not even "No Finding", has no report: its findings are not
    known.
    """
    known = {name: float(name in film.findings) for name in names[:-3]} if film.findings else {}
    known[FINDING] = float(film.label)
    if film.sex:
        known["male"] = float(film.sex == "M")
    if film.view:
        known["AP"] = float(film.view == "AP")
    return np.array([known.get(name, np.nan) for name in names], np.float32)


class AttributeStream(Dataset[tuple[Tensor, Tensor]]):
    """Batches of augmented films and their attributes, each a function of the seed and the step.

    Parameters
    ----------
    cache : FilmCache
        Where the films lie.
    films : sequence of Film
        Films to draw from, evenly.
    names : sequence of str
        See `attributes`.
    batch, steps, seed : int
        Films in a batch, steps of the run, and the seed.
    augmentation : Augmentation or None
        How films are changed.
    """

    def __init__(
        self,
        cache: FilmCache,
        films: Sequence[Film],
        names: Sequence[str],
        *,
        batch: int,
        steps: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ) -> None:
        self.cache = cache
        self.films = films
        self.names = names
        self.batch = batch
        self.steps = steps
        self.seed = seed
        self.augmentation = augmentation

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        if not 0 <= step < self.steps:
            raise IndexError(step)
        rng = np.random.default_rng((self.seed, step))
        chosen = [self.films[index] for index in rng.choice(len(self.films), self.batch)]
        images = [self.cache.image(film) for film in chosen]
        if self.augmentation is not None:
            images = [self.augmentation(image, None, rng)[0] for image in images]
        targets = np.stack([attribute_targets(film, self.names) for film in chosen])
        return to_input(np.stack(images)), torch.from_numpy(targets)


class AttributeLearner(lightning.LightningModule):
    """A backbone that learns attributes through global pooling and one linear layer.

    Parameters
    ----------
    config : TrainConfig
        Backbone, learning rate and steps.
    count : int
        Number of attributes.
    """

    def __init__(self, config: TrainConfig, count: int) -> None:
        super().__init__()
        self.config = config
        self.bf16 = bf16_is_fast()
        self.backbone = create_backbone(config.backbone, weights=config.weights)
        self.head = nn.Linear(self.backbone.feature_info.channels()[-1], count)

    def training_step(self, batch: tuple[Tensor, Tensor], _: int) -> Tensor:
        """Return the mean cross-entropy of the attributes that are known."""
        images, targets = batch
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            logits = self.head(self.backbone(images.contiguous(memory_format=torch.channels_last))[-1].mean((2, 3)))
        known = ~targets.isnan()
        loss = F.binary_cross_entropy_with_logits(logits.float()[known], targets[known])
        self.log("loss", loss, prog_bar=True, batch_size=len(images))
        return loss

    def configure_optimizers(self) -> Any:
        """Return AdamW with the schedule of `training.train`."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.config.lr, weight_decay=self.config.weight_decay)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, self.config.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def pretrain(
    config: TrainConfig,
    cache: FilmCache,
    films: Sequence[Film],
    *,
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Train a backbone on attributes and return its weights under timm's names.

    Parameters
    ----------
    config : TrainConfig
        Backbone, first weights, batch, steps, seed, learning rate, augmentation.
    cache : FilmCache
        Where the films lie.
    films : sequence of Film
        Films to learn from; none of a held-out patient.
    workers : int
        Processes that prepare batches.
    progress : bool
        Show a bar.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    lightning.seed_everything(config.seed, verbose=False)
    names = attributes(films)
    stream = AttributeStream(
        cache,
        films,
        names,
        batch=config.batch,
        steps=config.steps,
        seed=config.seed,
        augmentation=AUGMENTATIONS[config.augmentation],
    )
    learner = AttributeLearner(config, len(names))
    learner.to(memory_format=torch.channels_last)
    trainer = lightning.Trainer(
        max_steps=config.steps,
        max_epochs=-1,
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=progress,
        callbacks=[TQDMProgressBar(refresh_rate=5)] if progress else [],
        gradient_clip_val=5.0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PossibleUserWarning)  # advice: few loader processes
        trainer.fit(learner, DataLoader(stream, batch_size=None, num_workers=workers))
    return {name: value.cpu() for name, value in learner.backbone.state_dict().items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.pretrain",
        description="Give a backbone first weights from what the records say of the films.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of films in a layout training.data reads")
    parser.add_argument("--out", type=Path, required=True, help="file of weights, for --weights of training.train")
    parser.add_argument("--cache", type=Path, help="folder of preprocessed films; cache beside OUT when not given")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches")
    parser.add_argument("--threads", type=int, default=0, help="threads of the arithmetic; 0 leaves it to PyTorch")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    add_config_options(parser, only=FIELDS)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    config = config_of(options)
    cache, parts = prepare(options.data, options.cache or options.out.parent / "cache", config)
    weights = pretrain(config, cache, parts.train, workers=options.workers, progress=options.progress)
    draft = options.out.with_suffix(".part")
    left_out = sorted({film.patient for film in (*parts.validation, *parts.test)})
    torch.save({"state_dict": weights, LEFT_OUT: left_out}, draft)
    draft.replace(options.out)
    logger.info("%s: %s from %d films", options.out.name, config.backbone, len(parts.train))


if __name__ == "__main__":
    main()
