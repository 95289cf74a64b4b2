"""The report: its curves against hand-computed values and the measures, its page against what was measured."""

from __future__ import annotations

import base64
import dataclasses
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import cv2
import numpy as np
import pytest

pytest.importorskip("scipy")
pytest.importorskip("torch")
pytest.importorskip("matplotlib")

from training import metrics, report
from training.data.cache import FilmCache
from training.data.films import Film
from training.measure import compare, measure
from training.readings import Reading
from training.scoring import RegionRules

SIDE = 48
POINTS = {"balanced": 0.5, "high_sensitivity": 0.2}
SYSTEMS = {"masks": 1.5, "labels <b>only</b> & $x$": 0.7}
RULES = RegionRules(high=0.6, low=0.5, min_area=1)
VOID = {"meta", "image", "use", "path", "line", "br", "circle", "rect"}


class Page(HTMLParser):
    """Collects tags with their attributes, ids, text and tables of a page, and checks that its tags nest."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words, self.tables = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag in ("caption", "tr"):
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open or not data.strip():
            return
        self.words.append(data.strip())
        if self.open[-1] == "caption":
            self.tables[-1][-1].append(data)
        elif "table" in self.open and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data

    def table(self, caption):
        """Return the rows of the one table whose caption begins so, without its head."""
        (found,) = [rows for rows in self.tables if rows[0][0].startswith(caption)]
        return found[2:]


def make_film(index):
    positive = index % 3 == 0
    boxed = index % 9 == 0
    return Film(
        image=f"images/{index:03}<i>.png",
        mask=f"masks/{index:03}.png" if positive and not boxed else "",
        boxes=((4, 4, 8, 8),) if positive and boxed else (),
        origin="nih",
        patient=f"p{index // 2}",
        label=int(positive),
        labelled_by="box" if positive and boxed else "siim",
        findings=("Effusion",) if index % 4 == 0 else ("No Finding",),
        view="AP" if index % 2 else "PA",
    )


def make_readings(skill, seed, count=90):
    rng = np.random.default_rng(seed)
    readings = []
    for index in range(count):
        film = make_film(index)
        logit = rng.normal(skill if film.label else -skill, 1.5)
        probability = round(float(1 / (1 + np.exp(-logit))), 2)  # rounded: with ties
        reading = Reading(
            film=film,
            probability=probability,
            flagged=tuple(name for name, threshold in POINTS.items() if probability >= threshold),
            found=0.03 * (index % 2),
            regions=index % 2,
        )
        if film.label:
            overlap = float(rng.random()) if film.has_mask else None
            located = {"truth": 0.02, "dice": overlap, "peak_hits": bool(index % 2), "box_iou": float(rng.random())}
            reading = dataclasses.replace(reading, **located)
        readings.append(reading)
    return readings


@pytest.fixture(scope="module")
def systems():
    return {name: make_readings(skill, seed) for seed, (name, skill) in enumerate(SYSTEMS.items())}


@pytest.fixture(scope="module")
def measured(systems):
    return {name: measure(own, tuple(POINTS), replicates=40) for name, own in systems.items()}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """Films with two columns of padding on either side; the truth of a positive is a square."""
    folder = tmp_path_factory.mktemp("cache")
    films = [make_film(index) for index in range(90)]
    located = [film for film in films if film.label]
    rng = np.random.default_rng(0)
    regions = np.zeros((len(located), SIDE, SIDE), np.uint8)
    regions[:, 10:20, 12:22] = 1
    np.save(folder / "images.npy", rng.integers(0, 256, (len(films), SIDE, SIDE), dtype=np.uint8))
    np.save(folder / "regions.npy", regions)
    np.save(folder / "contents.npy", np.tile(np.int32([2, 0, SIDE - 2, SIDE]), (len(films), 1)))
    rows = {film.image: row for row, film in enumerate(films)}
    places = {film.image: row for row, film in enumerate(located)}
    (folder / "index.json").write_text(json.dumps({"rows": rows, "regions": places}))
    return FilmCache(folder)


def make_map():
    logits = np.full((SIDE, SIDE), -6, np.float32)
    logits[10:20, 14:24] = 4
    logits[30:40, :6] = 4  # partly in the padding
    return logits


@pytest.fixture(scope="module")
def panels(systems, cache):
    readings = systems["masks"]
    shown = [readings[index] for index in report.choose_panels(readings, 3, "balanced")]
    return report.make_panels(shown, [make_map()] * len(shown), RULES, cache)


@pytest.fixture(scope="module")
def written(systems, measured, panels, tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    first, other = systems.values()
    options = {
        "panels": panels,
        "notes": ["Folds: 5 <6>."],
        "comparisons": {"masks less <labels>": compare(first, other, replicates=20)},
    }
    report.write_report(path, "Systems <s> & films", systems, measured, **options)
    before = path.read_bytes()
    report.write_report(path, "Systems <s> & films", systems, measured, **options)
    assert path.read_bytes() == before
    return before.decode()


@pytest.fixture(scope="module")
def page(written):
    return Page(written)


LABELS = np.array([True, False, True, True, False, False])
SCORES = np.array([0.9, 0.8, 0.8, 0.6, 0.4, 0.4])


def test_roc_points_by_hand():
    across, up = report.roc_points(LABELS, SCORES)
    np.testing.assert_allclose(across, [0, 0, 1 / 3, 1 / 3, 1])
    np.testing.assert_allclose(up, [0, 1 / 3, 2 / 3, 1, 1])


def test_precision_recall_points_by_hand():
    recall, precision = report.precision_recall_points(LABELS, SCORES)
    np.testing.assert_allclose(recall, [0, 1 / 3, 2 / 3, 1, 1])
    np.testing.assert_allclose(precision, [1, 1, 2 / 3, 3 / 4, 1 / 2])


def test_calibration_bins_by_hand():
    bins = metrics.calibration_bins(LABELS, SCORES, bins=4)
    np.testing.assert_allclose(bins.count, [2, 2, 1, 1])
    np.testing.assert_allclose(bins.probability, [0.4, 0.7, 0.8, 0.9])
    np.testing.assert_allclose(bins.frequency, [0, 0.5, 1, 1])


@pytest.mark.parametrize("count", [7, 41, 301])
def test_curves_hold_the_areas_that_are_measured(count):
    rng = np.random.default_rng(count)
    labels = np.arange(count) % 3 == 0
    scores = np.round(1 / (1 + np.exp(-rng.normal(labels * 1.0))), 1)  # with ties
    across, up = report.roc_points(labels, scores)
    assert ((across[1:] - across[:-1]) * (up[1:] + up[:-1]) / 2).sum() == pytest.approx(metrics.auc(labels, scores))
    recall, precision = report.precision_recall_points(labels, scores)
    assert (np.diff(recall) * precision[1:]).sum() == pytest.approx(metrics.average_precision(labels, scores))
    bins = metrics.calibration_bins(labels, scores)
    error = (bins.count * abs(bins.probability - bins.frequency)).sum() / count
    assert error == pytest.approx(metrics.expected_calibration_error(labels, scores))


def test_curves_need_their_classes():
    with pytest.raises(ValueError, match="both classes"):
        report.roc_points(np.ones(3, bool), SCORES[:3])
    with pytest.raises(ValueError, match="positive"):
        report.precision_recall_points(np.zeros(3, bool), SCORES[:3])


def test_the_page_is_whole_and_loads_nothing(written, page):
    assert not page.open
    assert not [tag for tag, _ in page.tags if tag in {"script", "link", "iframe", "object", "embed"}]
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,"))
    assert not re.search(r"https?://|@import|url\((?!#)", written)


def test_ids_are_unique_and_references_lead_somewhere(written, page):
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    wanted = {attributes["href"][1:] for _, attributes in page.tags if attributes.get("href", "").startswith("#")}
    assert wanted | set(re.findall(r"url\(#([^)]*)\)", written)) <= set(ids)


def test_drawings_are_well_formed(written):
    drawings = re.findall(r"<svg.*?</svg>", written, re.DOTALL)
    for drawing in drawings:
        ET.fromstring(drawing)
    assert len(re.findall('<figure class="plot">', written)) == 2 + len(SYSTEMS)
    assert report._INK not in written


def shown(own):
    return f"{own['value']:.3f} ({own['low']:.3f} to {own['high']:.3f}) n {own['n']}"


@pytest.mark.parametrize("point", POINTS)
def test_the_table_holds_every_value_with_interval_and_n(page, measured, point):
    rows = page.table(f"Operating point: {point}.")
    assert [row[0] for row in rows] == list(SYSTEMS)
    for (_, *cells), own in zip(rows, measured.values(), strict=True):
        at = own["operating_points"][point]
        values = [at["accuracy"], at["precision"], at["sensitivity"], own["classification"]["auc"]]
        assert cells == [shown(value) for value in [*values, own["localization"]["dice_mean_positives"]]]


@pytest.mark.parametrize("point", POINTS)
def test_confusion_counts_are_those_measured_truth_in_rows(page, measured, point):
    for name, own in measured.items():
        counts = own["operating_points"][point]["confusion"]
        negative, positive = page.table(f"{name}, {point}, n 90")
        assert negative[:3] == ["negative", str(counts["true_negative"]), str(counts["false_positive"])]
        assert positive[:3] == ["pneumothorax", str(counts["false_negative"]), str(counts["true_positive"])]
        assert positive[3] == shown(own["operating_points"][point]["sensitivity"])


def test_every_measure_of_place_and_stratum_is_shown(page, measured):
    own = list(measured.values())
    places = page.table("Shown:")
    assert len(places) == len(own[0]["localization"])
    assert [row[1:] for row in places if row[0] == "A region's box and one of the truth: IoU > 0.25"] == [
        [shown(each["localization"]["box_iou_above_0.25"]) for each in own]
    ]
    first = own[0]["strata"]["view"]["AP"]
    values = [shown(first[key]) for key in ("auc", "sensitivity", "specificity")]
    assert page.table("Strata: view.")[0] == ["AP", "masks", str(first["n"]), str(first["positive"]), *values]
    assert [row[0] for row in page.table("Strata: other finding.")] == ["Effusion"] * len(SYSTEMS)


def test_comparisons_show_both_tests(page, systems):
    ((label, bootstrap, exact, *_),) = page.table("First less second")
    first, other = systems.values()
    expected = compare(first, other, replicates=20)
    assert (label, bootstrap) == ("masks less <labels>", shown(expected["auc"]))
    p = expected["auc_delong"]["p"]
    assert exact == shown(expected["auc_delong"]) + ("p < 0.001" if p < 0.001 else f"p = {p:.3f}")


def test_text_of_the_data_is_escaped(written, page):
    assert not {"<i>", "<s>"} & set(re.findall(r"<\w+>", written))
    assert "only</b>" not in written
    words = " ".join(page.words)
    for text in ("labels <b>only</b> & $x$", "masks less <labels>", "Folds: 5 <6>."):
        assert text in words
    assert re.search(r"images/\d{3}<i>\.png", words)


def test_the_page_says_what_it_is_not_and_clears_nobody(page):
    words = " ".join(page.words).lower()
    assert words.count("not a medical device") == 2
    assert "not flagged" in words
    assert not re.search(r"\bnormal\b|no pneumothorax", words)


def test_panels_show_every_outcome_at_even_ranks(systems):
    readings = systems["masks"]
    chosen = report.choose_panels(readings, 3, "balanced")
    groups = {}
    for index, each in enumerate(readings):
        groups.setdefault((bool(each.film.label), "balanced" in each.flagged), []).append(index)
    assert set(groups) == set(report.OUTCOMES)
    expected = []
    for outcome in report.OUTCOMES:
        ranked = sorted(groups[outcome], key=lambda index: -readings[index].probability)
        picked = chosen[len(expected) : len(expected) + min(3, len(ranked))]
        expected += picked
        assert set(picked) <= set(ranked)
        assert len(set(picked)) == len(picked)
        assert readings[picked[0]].probability == readings[ranked[0]].probability
        assert readings[picked[-1]].probability == readings[ranked[-1]].probability
    assert chosen == expected
    assert sorted(report.choose_panels(readings, 1000, "balanced")) == list(range(len(readings)))
    assert report.choose_panels(list(reversed(readings)), 3, "balanced") == [
        len(readings) - 1 - each for each in chosen
    ]


def test_one_panel_an_outcome_is_the_median(systems):
    readings = [each for each in systems["masks"] if not each.film.label and not each.flagged]
    (index,) = report.choose_panels(readings, 1, "balanced")
    ranked = sorted((each.probability for each in readings), reverse=True)
    assert readings[index].probability == ranked[(len(ranked) - 1) // 2]


def test_panels_of_an_outcome_stand_under_its_heading(written, panels):
    for (label, flagged), heading in report.OUTCOMES.items():
        own = [each for each in panels if (each.label, "balanced" in each.flagged) == (label, flagged)]
        group = written.split(f"<h3>{heading} ({len(own)} shown)</h3>")[1].split("<h3>")[0].split("</section>")[0]
        assert group.count('<figure class="panel">') == len(own)
        assert group.count('<path class="truth"') == (len(own) if label else 0)
        for each in own:
            assert f"Probability {each.probability:.3f}" in group


def test_panels_hold_film_truth_and_regions_without_padding(panels, cache, systems):
    by_caption = {each.film.image: each for each in systems["masks"]}
    for panel in panels:
        reading = by_caption[panel.caption.split(";")[0]]
        np.testing.assert_array_equal(panel.film, cache.image(reading.film))
        assert (panel.truth is None) == (not reading.film.label)
        assert panel.found[10:20, 14:24].all()
        assert panel.found[30:40, 2:6].all()
        assert not panel.found[:, :2].any()
        outline = "box" if reading.film.boxes else "mask"
        assert (f"ground truth: {outline}" in panel.caption) == reading.film.has_mask | bool(reading.film.boxes)


def test_a_panel_needs_its_map(systems, cache):
    with pytest.raises(ValueError, match="no map"):
        report.make_panels(systems["masks"][:1], [None], RULES, cache)


def test_outlines_run_along_the_mask_and_its_holes():
    mask = np.zeros((20, 31), bool)
    mask[3:12, 5:18] = True
    mask[6:9, 9:13] = False
    mask[16, 25] = True
    parts = report._outline(mask).split(" M")
    assert len(parts) == 3
    points = [np.array(re.findall(r"([\d.]+) ([\d.]+)", part), float) - 0.5 for part in parts]
    filled = np.zeros(mask.shape, np.uint8)
    cv2.fillPoly(filled, [each.astype(np.int32) for each in points], 1)  # even-odd, as a hole needs
    np.testing.assert_array_equal(filled > 0, mask)


def test_the_stored_film_is_the_film(written, panels):
    urls = re.findall(r'<image id="film0"[^>]*href="data:image/png;base64,([^"]*)"', written)
    pixels = cv2.imdecode(np.frombuffer(base64.b64decode(urls[0]), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(pixels, panels[0].film)


def test_a_system_without_its_measures_is_refused(systems, measured, tmp_path):
    path = tmp_path / "report.html"
    with pytest.raises(ValueError, match=r"labels .* was not measured"):
        report.write_report(path, "t", systems, {"masks": measured["masks"]})
    with pytest.raises(ValueError, match="89 films were read, 90 measured"):
        report.write_report(path, "t", {"masks": systems["masks"][:-1]}, measured)
    with pytest.raises(ValueError, match="no system"):
        report.write_report(path, "t", {}, measured)
    assert not path.exists()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interval of an AUC that is nowhere defined
@pytest.mark.parametrize("label", [0, 1])
def test_films_of_one_class_are_reported_without_curves(tmp_path, label):
    own = [each for each in make_readings(1.0, 3) if each.film.label == label]
    plain = measure(own, tuple(POINTS), replicates=5)
    report.write_report(tmp_path / "report.html", "one class", {"set": own}, {"set": plain})
    page = Page((tmp_path / "report.html").read_text())
    assert page.table("Curves")[0][1] == f"– n {len(own)}"
