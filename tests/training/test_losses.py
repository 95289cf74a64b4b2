"""The losses against values computed by hand and by plain loops."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from training.losses import (  # noqa: E402
    PAPER_FLOOR,
    LossWeights,
    Targets,
    clasegnet_loss,
    classifier_loss,
    focal,
    li2018_loss,
    log_noisy_or,
    log_region_product,
    patch_targets,
    soft_dice,
    top_k_logit,
)
from training.models.output import Output  # noqa: E402


def logit(p):
    return math.log(p / (1 - p))


def loop_product(probabilities, inside, floor):
    """The paper's product, patch by patch, in double precision."""
    product = 1.0
    for p, within in zip(probabilities, inside, strict=True):
        product *= floor + (1 - floor) * (p if within else 1 - p)
    return product


@pytest.mark.parametrize("floor", [0.0, PAPER_FLOOR])
def test_region_product_is_the_papers_product(floor):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 3, 5, generator=generator)
    inside = torch.rand(2, 3, 5, generator=generator) > 0.6
    found = log_region_product(logits, inside, floor).exp()
    for film in range(2):
        probabilities = torch.sigmoid(logits[film].double()).flatten().tolist()
        wanted = loop_product(probabilities, inside[film].flatten().tolist(), floor)
        assert found[film].item() == pytest.approx(wanted, rel=1e-5)


def test_one_certain_patch_of_256_scores_two_percent_under_the_papers_map():
    logits = torch.full((1, 16, 16), -100.0)
    logits[0, 3, 7] = 100.0
    assert log_noisy_or(logits, PAPER_FLOOR).exp().item() == pytest.approx(0.02, abs=1e-5)
    assert log_noisy_or(logits).exp().item() == pytest.approx(1.0)


def test_thirty_five_certain_patches_reach_one_half_under_the_papers_map():
    logits = torch.full((2, 256), -100.0)
    logits[0, :34] = 100.0
    logits[1, :35] = 100.0
    below, above = log_noisy_or(logits.view(2, 16, 16), PAPER_FLOOR).exp()
    assert below < 0.5 < above


def test_one_percent_everywhere_scores_92_percent_by_noisy_or():
    logits = torch.full((1, 16, 16), logit(0.01))
    assert log_noisy_or(logits).exp().item() == pytest.approx(1 - 0.99**256, abs=1e-5)
    assert round(1 - 0.99**256, 2) == 0.92


@pytest.mark.parametrize("value", [-100.0, -12.01, -11.99, 0.0, 100.0])
def test_noisy_or_is_exact_and_differentiable_at_the_extremes(value):
    logits = torch.full((1, 4, 4), value, requires_grad=True)
    found = log_noisy_or(logits)
    p = 1 / (1 + math.exp(-value))
    wanted = (
        math.log(-math.expm1(16 * math.log1p(-p))) if 1e-300 < p < 1 else (math.log(16) + value if value < 0 else 0)
    )
    assert found.item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    found.sum().backward()
    assert torch.isfinite(logits.grad).all()
    if value < 0:
        assert (logits.grad > 0).all()


def test_patch_targets_keep_a_thin_line():
    region = torch.zeros(1, 64, 64, dtype=torch.uint8)
    region[0, 5, 20:30] = 1  # ten pixels in one patch of 256: 4 %
    region[0, 40:64, 40:64] = 0
    assert patch_targets(region, 4).nonzero().tolist() == [[0, 0, 1]]
    region[0, 32:48, 32:48] = 1  # a full patch beside it: the line is below 5 % and below half of the fullest
    assert patch_targets(region, 4).nonzero().tolist() == [[0, 2, 2]]
    assert not patch_targets(torch.zeros_like(region), 4).any()


def test_top_k_is_the_mean_of_the_largest():
    logits = torch.tensor([[[1.0, -2.0], [5.0, 3.0]]])
    assert top_k_logit(logits, 2).item() == pytest.approx(4.0)


def test_soft_dice_of_a_perfect_and_of_an_empty_mask():
    region = torch.zeros(1, 32, 32, dtype=torch.uint8)
    region[0, :8] = 1
    perfect = (region.float() - 0.5) * 200
    assert soft_dice(perfect, region).item() == pytest.approx(0.0, abs=1e-5)
    assert soft_dice(torch.full_like(perfect, -100.0), region).item() == pytest.approx(1 - 1 / 257, abs=1e-5)


def make_targets(label, *, located=True):
    region = torch.zeros(1, 32, 32, dtype=torch.uint8)
    if label and located:
        region[0, :16, :16] = 1
    return Targets(
        label=torch.tensor([float(label)]),
        region=region,
        has_region=torch.tensor([not label or located]),
        label_weight=torch.ones(1),
        mask_weight=torch.tensor([float(not label or located)]),
    )


def make_output(value):
    return Output(torch.full((1, 2, 2), value, requires_grad=True), torch.full((1, 32, 32), value, requires_grad=True))


@pytest.mark.parametrize("weights", [LossWeights(), LossWeights(exact_product=True), LossWeights(floor=PAPER_FLOOR)])
@pytest.mark.parametrize("targets", [make_targets(0), make_targets(1), make_targets(1, located=False)])
@pytest.mark.parametrize("value", [-100.0, 0.0, 100.0])
def test_the_loss_is_finite_and_has_finite_gradients(weights, targets, value):
    output = make_output(value)
    total = clasegnet_loss(output, targets, weights)["total"]
    total.backward()
    assert torch.isfinite(total)
    assert torch.isfinite(output.patch_logits.grad).all()
    assert output.mask_logits.grad is None or torch.isfinite(output.mask_logits.grad).all()


def test_the_terms_have_their_values_on_an_undecided_positive():
    terms = clasegnet_loss(make_output(0.0), make_targets(1), LossWeights())
    nat = math.log(2)
    assert terms["region"].item() == pytest.approx(5 * nat * (3 + 3) / 4, rel=1e-5)  # one patch inside, weighing 3
    assert terms["image"].item() == pytest.approx(nat, rel=1e-5)
    assert terms["pixel"].item() == pytest.approx(3 * nat, rel=1e-5)
    assert terms["dice"].item() == pytest.approx(1 - (256 + 1) / (512 + 256 + 1), rel=1e-5)
    assert terms["noisy_or"].item() == 0


def test_a_positive_of_unknown_place_trains_by_noisy_or_alone():
    terms = clasegnet_loss(make_output(0.0), make_targets(1, located=False), LossWeights())
    assert terms["noisy_or"].item() == pytest.approx(-0.2 * math.log(1 - 0.5**4), rel=1e-5)
    assert terms["region"].item() == terms["pixel"].item() == terms["dice"].item() == 0


def test_the_exact_product_is_the_sum_over_patches():
    terms = clasegnet_loss(make_output(0.0), make_targets(1), LossWeights(exact_product=True, region=1.0))
    assert terms["region"].item() == pytest.approx(4 * math.log(2), rel=1e-5)


def test_a_label_half_trusted_counts_half():
    for targets in (make_targets(0), make_targets(1), make_targets(1, located=False)):
        half = targets._replace(label_weight=targets.label_weight / 2, mask_weight=targets.mask_weight / 2)
        full = clasegnet_loss(make_output(0.3), targets, LossWeights())["total"].item()
        assert clasegnet_loss(make_output(0.3), half, LossWeights())["total"].item() == pytest.approx(full / 2)


def test_image_labels_alone_leave_no_other_term():
    targets = make_targets(0)._replace(has_region=torch.tensor([False]), mask_weight=torch.zeros(1))
    terms = clasegnet_loss(make_output(0.0), targets, LossWeights())
    assert terms["total"].item() == terms["image"].item() == pytest.approx(math.log(2))


def test_li2018_weighs_the_box_five_times_and_scores_the_rest_by_noisy_or():
    located = li2018_loss(make_output(0.0), make_targets(1), floor=0.0)
    assert located["region"].item() == pytest.approx(5 * 4 * math.log(2), rel=1e-5)
    assert located["noisy_or"].item() == 0
    unknown = li2018_loss(make_output(0.0), make_targets(1, located=False), floor=0.0)
    assert unknown["total"].item() == pytest.approx(-math.log(1 - 0.5**4), rel=1e-5)
    negative = li2018_loss(make_output(0.0), make_targets(0), floor=0.0)
    assert negative["total"].item() == pytest.approx(4 * math.log(2), rel=1e-5)
    exact = li2018_loss(make_output(0.0), make_targets(1))
    assert exact["total"].item() == pytest.approx(-5 * 4 * math.log(0.99), rel=1e-4)


def test_the_classifier_is_scored_by_the_mean_patch():
    output = Output(torch.tensor([[[1.0, 3.0], [0.0, -2.0]]]), torch.zeros(1, 4, 4))
    found = classifier_loss(output, make_targets(1)._replace(label_weight=torch.tensor([0.5])))
    assert found["total"].item() == pytest.approx(0.5 * math.log1p(math.exp(-0.5)), rel=1e-5)


def test_focal_weighs_what_is_learned_less():
    logits, target = torch.tensor([0.0, 4.0, -4.0]), torch.tensor([1.0, 1.0, 0.0])
    sure = 1 / (1 + math.exp(-4))
    assert focal(logits, target, 2.0).tolist() == pytest.approx(
        [0.25 * math.log(2), (1 - sure) ** 2 * -math.log(sure), (1 - sure) ** 2 * -math.log(sure)], rel=1e-4
    )
    assert focal(logits, target, 0.0).tolist() == pytest.approx(
        [math.log(2), -math.log(sure), -math.log(sure)], rel=1e-4
    )
