"""Train ClaSegNet: ``python -m training.train --data DIR --out RUNDIR``."""

from __future__ import annotations

import argparse
import copy
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from training.augment import Augmentation
from training.data import (
    Batch,
    FilmCache,
    Preprocess,
    Split,
    TrainingStream,
    describe,
    read_manifest,
    sdk_preprocess,
    split_films,
)
from training.depthwise import Float32DepthwiseBackward
from training.duplicates import drop_look_alikes, embed
from training.evaluate import quick_scores
from training.losses import PAPER_FLOOR, LossWeights, clasegnet_loss
from training.model import DEFAULT_BACKBONE, ClaSegNet

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.pt"
BEST = "best.pt"
CONFIG = "config.json"
JOURNAL = "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a run is made of; stored beside its checkpoints as ``config.json``.

    Attributes
    ----------
    backbone : str
        timm model with feature maps at strides 4 to 32.
    size, grid : int
        Side of the input and of the patch grid.
    batch, steps, seed : int
        Films in a batch, steps of the whole run, seed of every draw.
    lr, backbone_lr : float
        Peak learning rate, and its share for the pretrained backbone.
    weight_decay : float
        Decoupled weight decay of the convolutions.
    ema : float
        Decay of the averaged weights.
    folds : int
        Patient folds of the trusted films.
    look_alike : float
        Similarity to a held-out film at which a film without a patient id leaves training.
    exact_product : bool
        Use the paper's product over patches rather than its re-weighed mean.
    paper_floor : bool
        Map every factor of the products to [0.98, 1], as Li et al. do.
    pretrained : bool
        Start from ImageNet weights.
    """

    backbone: str = DEFAULT_BACKBONE
    size: int = 384
    grid: int = 12
    batch: int = 16
    steps: int = 1500
    seed: int = 0
    lr: float = 1e-3
    backbone_lr: float = 0.6
    weight_decay: float = 0.02
    ema: float = 0.99
    folds: int = 4
    look_alike: float = 0.15
    exact_product: bool = False
    paper_floor: bool = False
    pretrained: bool = True

    @property
    def loss_weights(self) -> LossWeights:
        """The weights of the loss terms."""
        floor = PAPER_FLOOR if self.paper_floor else 0.0
        # A sum over patches is a hundred times a mean over them; bring its weight down to match.
        region = 0.05 if self.exact_product or self.paper_floor else LossWeights.region
        return LossWeights(region=region, exact_product=self.exact_product, floor=floor)

    def network(self, *, pretrained: bool | None = None) -> ClaSegNet:
        """Build the network, from ImageNet weights unless told otherwise."""
        start = self.pretrained if pretrained is None else pretrained
        return ClaSegNet(self.backbone, size=self.size, grid=self.grid, pretrained=start)


class MovingAverage:
    """An exponential moving average of a network's weights and statistics.

    Attributes
    ----------
    network : Module
        The averaged network, in evaluation mode.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Take in the network after `step`; early averages follow quickly."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for averaged, current in zip(self.network.state_dict().values(), network.state_dict().values(), strict=True):
            if averaged.is_floating_point():
                averaged.lerp_(current, 1 - decay)
            else:
                averaged.copy_(current)


def learning_rate(step: int, steps: int, *, warmup: float = 0.06) -> float:
    """Return the share of the peak rate at a step: a linear rise, then half a cosine down to 1 %."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))


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
    films = read_manifest(data)
    cached = FilmCache.open(data, films, config.size, cache, preprocess=preprocess)
    stored = cached.folder / "vectors.npy"
    if not stored.exists():
        np.save(stored, describe_films(cached))
    split = split_films(films, folds=config.folds)
    held_out = [*split.validation, *split.test]
    train = drop_look_alikes(split.train, held_out, np.load(stored), cached.row_of, threshold=config.look_alike)
    return cached, split._replace(train=train)


class Trainer:
    """One run in one folder: steps, checkpoints, validation.

    Parameters
    ----------
    config : TrainConfig
        What to train.
    cache : FilmCache
        Where the films lie.
    split : Split
        Films to train and to validate on; the test films are not touched.
    out : Path
        Folder of the run.
    precision : {"auto", "bf16", "fp32"}
        Arithmetic of the forward pass; auto takes bfloat16 where the processor has it.
    workers : int
        Processes that prepare batches.
    tensorboard : bool
        Write event files too.
    """

    def __init__(
        self,
        config: TrainConfig,
        cache: FilmCache,
        split: Split,
        out: Path,
        *,
        precision: str = "auto",
        workers: int = 1,
        tensorboard: bool = False,
    ) -> None:
        self.config = config
        self.cache = cache
        self.split = split
        self.out = out
        self.workers = workers
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bf16 = precision == "bf16" or (precision == "auto" and _bf16_is_fast(self.device))
        torch.manual_seed(config.seed)
        self.network = config.network().to(self.device, memory_format=torch.channels_last)
        self.average = MovingAverage(self.network, config.ema)
        self.optimizer = torch.optim.AdamW(_parameter_groups(self.network, config), lr=config.lr)
        self.step = 0
        self.best = -math.inf
        out.mkdir(parents=True, exist_ok=True)
        (out / CONFIG).write_text(json.dumps(asdict(config), indent=2))
        self._board = _open_board(out) if tensorboard else None

    def resume(self) -> None:
        """Go on from the checkpoint of the run's folder, if there is one."""
        path = self.out / CHECKPOINT
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"].cpu())
        self.step = state["step"]
        self.best = state["best"]
        logger.info("resumed at step %d", self.step)

    def save(self) -> None:
        """Write the checkpoint; a run killed meanwhile keeps the one before."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "step": self.step,
            "best": self.best,
        }
        _save_atomically(state, self.out / CHECKPOINT)

    def fit(
        self, *, save_every: int = 150, validate_every: int = 150, log_every: int = 10, until: int | None = None
    ) -> None:
        """Train to the last step, or to step `until`, from wherever the run stands.

        The schedule is that of the whole run either way. The averaged weights that validate best (AUC plus Dice)
        are kept as ``best.pt``.
        """
        config = self.config
        last = config.steps if until is None else min(until, config.steps)
        stream = TrainingStream(
            self.cache,
            self.split.train,
            batch=config.batch,
            steps=config.steps,
            seed=config.seed,
            augmentation=Augmentation(),
        )
        loader = DataLoader(
            Subset(stream, range(self.step, last)),
            batch_size=None,
            num_workers=self.workers,
            generator=torch.Generator(),  # its own, or starting the loader would shift the network's draws
        )
        self.network.train()
        started = time.monotonic()
        for batch in self._progress(loader, last):
            terms = self._train_step(batch)
            self.step += 1
            self.average.update(self.network, self.step)
            if self.step % log_every == 0 or self.step == last:
                seconds, started = time.monotonic() - started, time.monotonic()
                self._journal({name: float(value) for name, value in terms.items()} | {"seconds": seconds})
            if self.step % validate_every == 0 or self.step == config.steps:
                self._validate()
                started = time.monotonic()
            if self.step % save_every == 0 or self.step == last:
                self.save()

    def _train_step(self, batch: Batch) -> dict[str, Tensor]:
        """Take one step of the optimizer and return the terms of the loss."""
        share = learning_rate(self.step, self.config.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * group["share"] * share
        image = batch.image.to(self.device, memory_format=torch.channels_last)
        targets = type(batch.targets)(*(tensor.to(self.device) for tensor in batch.targets))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            output = self.network(image)
        terms = clasegnet_loss(output, targets, self.config.loss_weights)
        self.optimizer.zero_grad(set_to_none=True)
        with Float32DepthwiseBackward():
            terms["total"].backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimizer.step()
        return {name: term.detach() for name, term in terms.items()}

    def _validate(self) -> None:
        """Score the averaged weights on the validation films and keep them when they are the best so far."""
        scores = quick_scores(self.average.network, self.cache, self.split.validation)
        self._journal({f"validation_{name}": value for name, value in scores.items()})
        if (total := sum(scores.values())) > self.best:
            self.best = total
            _save_atomically({"average": self.average.network.state_dict(), "step": self.step}, self.out / BEST)

    def _journal(self, values: dict[str, float]) -> None:
        """Log values of this step, and append them to the run's journal."""
        logger.info("step %d %s", self.step, " ".join(f"{name} {value:.4g}" for name, value in values.items()))
        with (self.out / JOURNAL).open("a") as stream:
            stream.write(json.dumps({"step": self.step} | values) + "\n")
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, self.step)

    def _progress(self, loader: DataLoader[Batch], last: int) -> Iterator[Batch]:
        """Iterate batches behind a bar, which a log file is spared."""
        yield from track(loader, total=last, completed=self.step, disable=not sys.stdout.isatty())


def load_average(run: Path, *, checkpoint: str = CHECKPOINT) -> tuple[ClaSegNet, TrainConfig]:
    """Return the averaged network of a run, in evaluation mode, and the run's configuration.

    Parameters
    ----------
    run : Path
        Folder of the run.
    checkpoint : str
        ``checkpoint.pt`` for the last weights, ``best.pt`` for those that validated best.
    """
    config = TrainConfig(**json.loads((run / CONFIG).read_text()))
    network = config.network(pretrained=False)
    state = torch.load(run / checkpoint, map_location="cpu", weights_only=True)
    network.load_state_dict(state["average"])
    return network.eval(), config


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    default = TrainConfig()
    parser = argparse.ArgumentParser(
        prog="python -m training.train",
        description="Train ClaSegNet on a folder of films with a manifest.csv.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder with manifest.csv and the films it names")
    add("--out", type=Path, required=True, help="folder of the run: configuration, journal, checkpoints")
    add("--cache", type=Path, help="folder of preprocessed films; OUT/cache when not given")
    add("--backbone", default=default.backbone, help="timm model with feature maps at strides 4 to 32")
    add("--size", type=int, default=default.size, help="side of the network's input, a multiple of 32")
    add("--grid", type=int, default=default.grid, help="side of the patch grid; size / grid is 8, 16 or 32")
    add("--batch", type=int, default=default.batch, help="films in a batch")
    add("--steps", type=int, default=default.steps, help="steps of the whole run")
    add("--seed", type=int, default=default.seed, help="seed of every draw")
    add("--lr", type=float, default=default.lr, help="peak learning rate")
    add("--backbone-lr", type=float, default=default.backbone_lr, help="the backbone's share of it")
    add("--weight-decay", type=float, default=default.weight_decay, help="decay of the convolutions' weights")
    add("--ema", type=float, default=default.ema, help="decay of the averaged weights")
    add("--folds", type=int, default=default.folds, help="patient folds; one validates, one tests")
    add("--look-alike", type=float, default=default.look_alike, help="similarity that costs an unnamed film its place")
    add("--exact-product", action="store_true", help="sum the paper's product over patches, not its mean")
    add("--paper-floor", action="store_true", help="map every factor of the products to [0.98, 1]")
    add("--no-pretrained", dest="pretrained", action="store_false", help="start from random weights")
    add("--resume", action="store_true", help="go on from the checkpoint in OUT; --steps may differ")
    add("--precision", choices=["auto", "bf16", "fp32"], default="auto", help="arithmetic of the forward pass")
    add("--workers", type=int, default=1, help="processes that prepare batches")
    add("--threads", type=int, default=0, help="threads of the arithmetic; 0 leaves it to PyTorch")
    add("--save-every", type=int, default=150, help="steps between checkpoints")
    add("--validate-every", type=int, default=150, help="steps between validations")
    add("--tensorboard", action="store_true", help="write TensorBoard event files to OUT")
    return parser


def config_of(options: argparse.Namespace) -> TrainConfig:
    """Return the part of the command line that defines the run."""
    return TrainConfig(**{name: getattr(options, name) for name in asdict(TrainConfig())})


def main(arguments: Sequence[str] | None = None) -> None:
    """Train from the command line."""
    options = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    if options.threads:
        torch.set_num_threads(options.threads)
    config = config_of(options)
    cache, split = prepare(options.data, options.cache or options.out / "cache", config)
    for name, films in split._asdict().items():
        logger.info("%s: %s", name, describe(films))
    trainer = Trainer(
        config,
        cache,
        split,
        options.out,
        precision=options.precision,
        workers=options.workers,
        tensorboard=options.tensorboard,
    )
    if options.resume:
        trainer.resume()
    trainer.fit(save_every=options.save_every, validate_every=options.validate_every)


def _parameter_groups(network: ClaSegNet, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups: backbone and heads, kernels (decayed) and vectors (not)."""
    groups = []
    backbone = {id(parameter) for parameter in network.backbone.parameters()}
    for share, inside in ((config.backbone_lr, True), (1.0, False)):
        own = [parameter for parameter in network.parameters() if (id(parameter) in backbone) == inside]
        for decay, kernels in ((config.weight_decay, True), (0.0, False)):
            chosen = [parameter for parameter in own if (parameter.ndim > 1) == kernels]
            groups.append({"params": chosen, "weight_decay": decay, "share": share})
    return groups


def _bf16_is_fast(device: torch.device) -> bool:
    """Tell whether bfloat16 arithmetic is native to the device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001 - there is no public one


def _save_atomically(state: dict[str, Any], path: Path) -> None:
    """Save a checkpoint beside its place and move it there."""
    draft = path.with_suffix(".part")
    torch.save(state, draft)
    draft.replace(path)


def _open_board(out: Path) -> Any:
    """Return a TensorBoard writer; imported here because it is optional."""
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(out))


if __name__ == "__main__":
    main()
