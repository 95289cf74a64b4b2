"""Trust in labels, and the stream of batches."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from training.data.augment import Augmentation  # noqa: E402
from training.data.films import TRUST, Film  # noqa: E402
from training.data.stream import StepSampler, TrainingStream, boxes_about, collate_targets  # noqa: E402


def film(name, patient, label, labelled_by="siim"):
    return Film(image=name, origin="nih", patient=patient, label=label, labelled_by=labelled_by)


def test_every_kind_of_label_has_a_trust():
    assert all(0 < trust.label <= 1 for trust in TRUST.values())
    assert {kind for kind, trust in TRUST.items() if not trust.draw} == {("made", 1)}  # made of a drawn film instead
    assert film("a", "p", 1, "predicted").trust.mask < film("a", "p", 1).trust.mask


def test_a_batch_is_a_function_of_seed_and_step(prepared):
    cache, split = prepared
    make = {"batch": 6, "steps": 9, "augmentation": Augmentation()}
    one = TrainingStream(cache, split.train, seed=4, **make)[5]
    two = TrainingStream(cache, split.train, seed=4, **make)[5]
    other = TrainingStream(cache, split.train, seed=5, **make)[5]
    assert one.image.shape == (6, 1, 64, 64)
    assert one.image.min() >= -1
    assert one.image.max() <= 1
    assert torch.equal(one.image, two.image)
    assert not torch.equal(one.image, other.image)
    assert 0 < one.targets.label.sum() < 6


def test_processes_that_train_together_see_other_films(prepared):
    cache, split = prepared
    make = {"batch": 6, "steps": 9, "seed": 4}
    first, second = (TrainingStream(cache, split.train, rank=rank, **make)[0].image for rank in (0, 1))
    assert not torch.equal(first, second)


def test_the_share_of_positives_slides_down(prepared):
    cache, split = prepared
    stream = TrainingStream(cache, split.train, batch=16, steps=100)
    early, late = (
        sum(stream[step].targets.label.sum().item() for step in steps) for steps in (range(9), range(90, 99))
    )
    assert early > late
    assert early / (9 * 16) == pytest.approx(0.6, abs=0.03)


def test_an_epoch_goes_on_where_the_run_stands():
    done = 0
    sampler = StepSampler(4, lambda: done)
    found = []
    for done in (0, 4, 8):  # noqa: B007 - the sampler reads it
        found.append(list(sampler))
    assert list(itertools.chain(*found)) == list(range(12))


def test_the_first_steps_are_small(prepared):
    cache, split = prepared
    stream = TrainingStream(cache, split.train, batch=4, steps=9, warm_size=32, warm_steps=2)
    assert [stream[step].image.shape[-1] for step in (0, 1, 2)] == [32, 32, 64]
    targets = stream[0].targets
    located = targets.has_region & (targets.label > 0)
    assert (targets.region[located].flatten(1).sum(1) > 0).all()


def test_supervision_hides_what_it_should(prepared):
    cache, split = prepared
    films = [each for each in split.train if each.has_mask][:3] + [each for each in split.train if not each.label][:3]
    regions = [cache.region(each) for each in films]
    masks, boxes, image = (collate_targets(films, regions, 64, each) for each in ("masks", "boxes", "image"))
    assert masks.has_region.all()
    assert (masks.mask_weight > 0).all()
    assert boxes.has_region.all()
    assert boxes.mask_weight.sum() == 0
    assert all(np.array_equal(boxes.region[index], boxes_about(regions[index])) for index in range(3))
    assert not image.has_region.any()
    assert image.mask_weight.sum() == image.region.sum() == 0
    assert torch.equal(image.label, masks.label)


def test_boxes_are_drawn_about_every_part():
    region = np.zeros((12, 12), np.uint8)
    region[1, 2] = region[2, 3] = region[3, 4] = 1  # one part by its corners
    region[8:10, 8] = 1
    boxes = boxes_about(region)
    assert boxes[1:4, 2:5].all()
    assert boxes[8:10, 8].all()
    assert boxes.sum() == 9 + 2


def test_made_positives_take_their_share(prepared):
    cache, split = prepared
    rows, columns = np.mgrid[:64, :64]
    lungs = np.zeros((64, 64), np.uint8)
    lungs[((rows - 32) / 22) ** 2 + ((columns - 18) / 10) ** 2 < 1] = 1
    lungs[((rows - 32) / 22) ** 2 + ((columns - 46) / 10) ** 2 < 1] = 2
    films = [each for each in split.train if each.expert]
    outlines = {each.image: lungs for each in films if not each.label}
    stream = TrainingStream(cache, films, batch=16, steps=9, made=0.5, lungs=outlines)
    targets = stream[0].targets
    known = torch.tensor(TRUST["made", 1].label)
    made = (targets.label_weight == known) & (targets.label > 0)
    assert 0 < made.sum() < targets.label.sum()
    assert (targets.region[made].flatten(1).sum(1) > 0).all()
    assert not targets.region[made][:, lungs == 0].any()


def test_made_positives_need_outlines(prepared):
    cache, split = prepared
    with pytest.raises(ValueError, match="there is none"):
        TrainingStream(cache, split.train, batch=4, steps=1, made=0.5)
