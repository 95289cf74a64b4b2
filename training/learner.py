"""One network in training, as Lightning sees it: loss, optimizer, schedule, averaged weights, validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import lightning
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision

from training.data.stream import Batch, Supervision
from training.depthwise import Float32DepthwiseBackward
from training.losses import (
    PAPER_FLOOR,
    LossWeights,
    clasegnet_loss,
    classifier_loss,
    li2018_loss,
    soft_dice,
    top_k_logit,
)
from training.models.backbones import DEFAULT_BACKBONE
from training.models.clasegnet import ClaSegNet
from training.models.classifier import Classifier
from training.models.li2018 import LiNet

System = Literal["clasegnet", "classifier", "li2018"]
Schedule = Literal["cosine", "plateau"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What a run is made of. Every field is an option of ``python -m training.train``, explained in `HELP`.

    Two runs with the same configuration on the CPU of the same machine agree.
    """

    system: System = "clasegnet"
    backbone: str = DEFAULT_BACKBONE
    weights: str = "imagenet"
    frozen: int = 0
    size: int = 384
    grid: int = 12
    batch: int = 16
    steps: int = 1500
    warm_size: int = 0
    warm_steps: int = 0
    seed: int = 0
    lr: float = 1e-3
    backbone_lr: float = 0.6
    weight_decay: float = 0.02
    schedule: Schedule = "cosine"
    ema: float = 0.99
    supervision: Supervision = "masks"
    made: float = 0.0
    augmentation: Literal["portable", "paper", "none"] = "portable"
    split: Literal["folds", "paper"] = "folds"
    folds: int = 5
    validation_fold: int = 0
    test_fold: int = 1
    look_alike: float = 0.2
    leave_out: str = ""
    context: bool = False
    image_weight: float = LossWeights.image
    exact_product: bool = False
    paper_floor: bool = False
    focal: float = 0.0
    patience: int = 0
    epoch_steps: int = 50

    @property
    def loss_weights(self) -> LossWeights:
        """The weights of ClaSegNet's loss."""
        floor = PAPER_FLOOR if self.paper_floor else 0.0
        if self.supervision == "image":
            return LossWeights(region=0.0, pixel=0.0, dice=0.0, image=self.image_weight, floor=floor)
        # A sum over patches is a hundred times a mean over them; bring its weight down to match.
        region = 0.05 if self.exact_product or self.paper_floor else LossWeights.region
        return LossWeights(
            region=region, image=self.image_weight, exact_product=self.exact_product, floor=floor, focal=self.focal
        )

    def network(self, *, weights: str | None = None) -> ClaSegNet | Classifier | LiNet:
        """Build the network, from the weights named here unless others are named."""
        common: dict[str, Any] = {"size": self.size, "weights": weights or self.weights, "frozen": self.frozen}
        if self.system == "classifier":
            return Classifier(self.backbone, **common)
        if self.system == "li2018":
            return LiNet(self.backbone, grid=self.grid, **common)
        return ClaSegNet(
            self.backbone, grid=self.grid, decoder=self.supervision == "masks", context=self.context, **common
        )

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> TrainConfig:
        """Read back what `asdict` wrote; a field that an older run did not have keeps its default."""
        return cls(**{field.name: plain[field.name] for field in fields(cls) if field.name in plain})


HELP = {
    "system": "network and loss: ClaSegNet, the paper's classifier, or Li et al. 2018",
    "backbone": "timm model with feature maps (at strides 4 to 32 for clasegnet)",
    "weights": "first weights of the backbone: imagenet, none, or a file",
    "frozen": "keep the stem and so many first stages of the backbone as they are",
    "size": "side of the network's input in pixels, a multiple of 32",
    "grid": "side of the patch grid",
    "batch": "films in a batch, of each process",
    "steps": "steps of the whole run",
    "warm_size": "side of the input in the first --warm-steps steps; 0: as --size",
    "warm_steps": "steps at --warm-size",
    "seed": "seed of every draw",
    "lr": "peak learning rate",
    "backbone_lr": "the backbone's share of it",
    "weight_decay": "decoupled weight decay of the convolutions; 0 is plain Adam",
    "schedule": "cosine: rise and half a cosine; plateau: a tenth whenever validation stalls, as in the paper",
    "ema": "decay of the averaged weights that are validated and kept; 0: no average",
    "supervision": "how much of the truth is shown: image labels, boxes about the masks, masks",
    "made": "share of the positives that are made from negatives; needs --lungs",
    "augmentation": "paper: rotation, shift, flip; portable: tone, noise, blur, scale and borders too",
    "split": "folds: patient folds of trusted films; paper: 722/90/91 films of each class",
    "folds": "patient folds of the trusted films",
    "validation_fold": "fold that decides early stopping; -1: none",
    "test_fold": "fold that is held out and never looked at; -1: none",
    "look_alike": "similarity to a held-out film that costs a film without a patient id its place",
    "leave_out": "patients whose films are never used, by id, with commas: those of examples, for instance",
    "context": "add a logit of the whole film to every patch of clasegnet",
    "image_weight": "weight of clasegnet's image-level cross-entropy",
    "exact_product": "sum the paper's product over patches, not its re-weighed mean",
    "paper_floor": "map every factor of the products to [0.98, 1], as Li et al. do",
    "focal": "exponent of the focal form of the decoder's cross-entropy",
    "patience": "validations without a gain after which the run stops; 0: never",
    "epoch_steps": "steps between validations and checkpoints",
}
"""What each field of `TrainConfig` means."""


class Learner(lightning.LightningModule):
    """A network with its loss and optimizer.

    Parameters
    ----------
    config : TrainConfig
        What to train.
    bf16 : bool
        Run the forward pass in bfloat16.
    """

    def __init__(self, config: TrainConfig, *, bf16: bool = False) -> None:
        super().__init__()
        self.config = config
        self.bf16 = bf16
        self.network = config.network()
        self.auroc = BinaryAUROC()
        self.precision_recall = BinaryAveragePrecision()
        self._dice: list[Tensor] = []
        self.save_hyperparameters({"config": asdict(config)}, logger=False)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Return the terms of the loss of a batch, and their sum as ``total``."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            output = self.network(batch.image.contiguous(memory_format=torch.channels_last))
        if self.config.system == "classifier":
            return classifier_loss(output, batch.targets)
        if self.config.system == "li2018":
            return li2018_loss(output, batch.targets)
        return clasegnet_loss(output, batch.targets, self.config.loss_weights)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        """Seed the network's own draws by the step, so that a resumed run draws what the unbroken one would."""
        torch.manual_seed((self.config.seed << 32) + self.global_step)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Return the loss of a batch and log its terms."""
        terms = self.loss(batch)
        self.log_dict({f"train/{name}": value.detach() for name, value in terms.items()}, batch_size=len(batch.image))
        return terms["total"]

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Run the backward pass, around the slow kernels of a CPU."""
        with Float32DepthwiseBackward():
            super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: Batch, _: int) -> None:
        """Take in a batch of validation films, without augmentation."""
        output = self.network(batch.image)
        pooled = top_k_logit(output.patch_logits, self._pooled(output.patch_logits))
        positive = batch.targets.label > 0
        self.auroc.update(pooled, positive.long())
        self.precision_recall.update(pooled, positive.long())
        outlined = batch.targets.mask_weight * positive > 0
        hard = torch.where(output.mask_logits[outlined] > 0, 100.0, -100.0)
        self._dice.append(1 - soft_dice(hard, batch.targets.region[outlined], smooth=1e-6))

    def on_validation_epoch_end(self) -> None:
        """Log AUC, average precision, Dice of positives, and the sum of AUC and Dice that early stopping watches."""
        dice = torch.cat(self._dice)
        self._dice.clear()
        values = {"auc": self.auroc.compute(), "average_precision": self.precision_recall.compute()}
        values["dice"] = dice.mean() if len(dice) else torch.tensor(0.0)
        outlines = self.config.system == "clasegnet" and self.config.supervision == "masks"
        values["score"] = values["auc"] + (values["dice"] if outlines else 0.0)
        self.log_dict({f"validation/{name}": value for name, value in values.items()}, sync_dist=True)
        self.auroc.reset()
        self.precision_recall.reset()

    def configure_optimizers(self) -> Any:
        """Return AdamW with its groups, and the schedule."""
        config = self.config
        optimizer = torch.optim.AdamW(parameter_groups(self.network, config), lr=config.lr)
        if config.schedule == "plateau":
            falling = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", factor=0.1, patience=3)
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": falling, "monitor": "validation/score", "strict": False},
            }
        cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate(step, config.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def _pooled(self, patch_logits: Tensor) -> int:
        """Return how many patch logits make the image's: all of a classifier's, the largest few of the others'."""
        if self.config.system == "classifier":
            return patch_logits[0].numel()
        return min(LossWeights.pooled, patch_logits[0].numel())


class MovingAverage(WeightAveraging):
    """Averages weights and statistics exponentially; early averages follow quickly.

    The averaged weights are validated and stored; a checkpoint holds the others too, to resume from.

    Parameters
    ----------
    decay : float
        Share of the old average kept at a step, once the run is some hundred steps old.
    """

    def __init__(self, decay: float) -> None:
        def average(kept: Sequence[Tensor], current: Sequence[Tensor], steps: Tensor | int) -> None:
            share = min(decay, (1 + int(steps)) / (10 + int(steps)))
            for old, new in zip(kept, current, strict=True):
                if old.is_floating_point():
                    old.lerp_(new.to(old.dtype), 1 - share)
                else:
                    old.copy_(new)

        super().__init__(use_buffers=True, multi_avg_fn=average)


def learning_rate(step: int, steps: int, *, warmup: float = 0.06) -> float:
    """Return the share of the peak rate at a step: a linear rise, then half a cosine down to 1 %."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return (step + 1) / rise
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1, steps - rise))))


def parameter_groups(network: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups: backbone and heads, kernels (decayed) and vectors (not)."""
    groups = []
    backbone = {id(parameter) for parameter in network.backbone.parameters()}
    for share, inside in ((config.backbone_lr, True), (1.0, False)):
        own = [
            parameter
            for parameter in network.parameters()
            if parameter.requires_grad and (id(parameter) in backbone) == inside
        ]
        for decay, kernels in ((config.weight_decay, True), (0.0, False)):
            chosen = [parameter for parameter in own if (parameter.ndim > 1) == kernels]
            groups.append({"params": chosen, "weight_decay": decay, "lr": config.lr * share})
    return groups
