"""The films to build with: tables, the split, what is refused."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from build_films import SHAPE, write_films
from made import SIZE

from ptxsdk import BuildError, InputError, OutOfScope
from ptxsdk.build.films import FEWEST, BuildFilm, ReadFilm, find_build_films, read_films, split_films, usable
from ptxsdk.manifest import InputSpec

CONTRACT = InputSpec(size=(SIZE, SIZE), mean=0.5, std=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_films(tmp_path_factory.mktemp("films"), 8)


def refused(source, match):
    with pytest.raises(BuildError, match=match) as caught:
        find_build_films(source)
    assert caught.value.code == "build.films"


def test_a_table_says_what_is_known(folder):
    films = find_build_films(folder)
    assert len(films) == 8
    assert films[0].label is True
    assert films[0].mask == folder / "mask000.bmp"
    assert films[1].label is False
    assert films[1].mask is None
    assert [film.group for film in films[:3]] == ["p0", "p0", "p1"]
    assert find_build_films(folder / "films.csv") == films


def test_a_folder_without_a_table_is_searched(tmp_path):
    write_films(tmp_path / "deep" / "er", 2, labels=False)
    for mask in tmp_path.rglob("*.bmp"):
        mask.unlink()
    films = find_build_films(tmp_path)
    assert [film.path.name for film in films] == ["film000.png", "film001.png"]
    assert {film.label for film in films} == {None}


def test_boxes_and_parts_are_read(tmp_path):
    (tmp_path / "films.csv").write_text("image,label,boxes_xywh,part\na.png,1,1 2 3 4;5 6 7.5 8,validation\nb.png,,,\n")
    films = find_build_films(tmp_path)
    assert films[0].boxes == ((1, 2, 3, 4), (5, 6, 7.5, 8))
    assert films[0].part == "validation"
    assert films[1].label is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "no rows"),
        ("image,label\n", "no rows"),
        ("file,label\na.png,1\n", "no column 'image'"),
        ("image,label\na.png,1\nb.png,yes\n", "line 3"),
        ("image,label\n,1\n", "line 2"),
        ("image,part\na.png,test\n", "line 2"),
        ("image,boxes_xywh\na.png,1 2 3\n", "'1 2 3' is not a box"),
        ("image,boxes_xywh\na.png,1 2 3 nan\n", "is not a box"),
        ("image,boxes_xywh\na.png,1 2 0 4\n", "is not a box"),
        ("image,boxes_xywh\na.png,a b c d\n", "line 2"),
    ],
)
def test_a_malformed_table_is_refused(tmp_path, text, match):
    (tmp_path / "films.csv").write_text(text)
    refused(tmp_path, match)


def test_a_table_that_is_no_text_is_refused(tmp_path):
    (tmp_path / "films.csv").write_bytes(b"image\n\xff\xfe\x00")
    refused(tmp_path, "cannot be read")


def test_nothing_there_is_refused(tmp_path):
    refused(tmp_path / "missing", "no folder or table")
    refused(tmp_path, "holds no film")


def test_the_split_keeps_groups_together_and_never_moves_a_film():
    films = [BuildFilm(path=f"{index}.png", group=f"patient {index // 3}") for index in range(300)]
    calibration, validation = split_films(films)
    assert 50 < len(calibration) < 150
    assert len(calibration) + len(validation) == 300
    assert not {film.group for film in calibration} & {film.group for film in validation}
    fewer, _ = split_films(films[:150])
    assert fewer == [film for film in calibration if film in films[:150]]


def test_a_patient_on_both_sides_is_refused():
    films = [BuildFilm(path=f"{part}.png", group="p", part=part) for part in ("calibration", "validation")]
    with pytest.raises(BuildError, match="one patient to different parts"):
        split_films(films)


def test_the_split_does_not_depend_on_how_the_folder_is_named(tmp_path, monkeypatch):
    write_films(tmp_path / "d", 30, labels=False)
    monkeypatch.chdir(tmp_path)
    sides = [
        [[film.path.name for film in side] for side in split_films(find_build_films(Path(name)))]
        for name in ("d", str(tmp_path / "d"), "./d")
    ]
    assert sides[0] == sides[1] == sides[2]


def test_odd_names_are_typed_errors(tmp_path):
    refused(Path("x" * 300), "cannot be looked at")
    (tmp_path / os.fsdecode(b"\xff.png")).write_bytes(b"")
    assert len(split_films(find_build_films(tmp_path))) == 2


def test_what_the_table_says_decides_the_split():
    films = [
        BuildFilm(path=f"{index}", group=f"{index}", part=part)
        for index, part in enumerate(["calibration", "validation"] * 9)
    ]
    calibration, validation = split_films(films)
    assert {film.part for film in calibration} == {"calibration"}
    assert {film.part for film in validation} == {"validation"}


def test_films_are_read_as_the_device_reads_them(folder):
    from ptxsdk import readers
    from ptxsdk.ops import preprocess

    read = list(read_films(find_build_films(folder), CONTRACT))
    assert len(read) == 8
    film = readers.read(folder / "film003.png")
    tensor, geometry = preprocess(film.pixels, size=(SIZE, SIZE), display=film.display, mean=0.5, std=0.5)
    np.testing.assert_array_equal(read[3].tensor, tensor.astype(np.float16))
    assert read[3].geometry == geometry


def test_a_mask_lies_where_the_finding_is(folder):
    for film in list(read_films(find_build_films(folder), CONTRACT))[::2]:
        x0, y0, x1, y1 = film.geometry.content
        shown = film.tensor[y0:y1, x0:x1].astype(np.float32)
        truth = film.truth[y0:y1, x0:x1]
        assert 20 < truth.sum() < 600
        assert shown[truth].mean() > 0.9
        assert shown[~truth].mean() < 0.3
        y, x = np.argwhere(film.truth)[len(np.argwhere(film.truth)) // 2]
        assert film.holds(int(y), int(x)) is True
        assert film.holds(0, 0) is False


def test_what_cannot_be_scored_comes_back_as_its_error(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), noise)
    (tmp_path / "text.png").write_text("no film")
    films = [BuildFilm(path=tmp_path / name, group=name) for name in ("noise.png", "text.png", "missing.png")]
    found = list(read_films(films, CONTRACT))
    assert isinstance(found[0], OutOfScope)
    assert [type(error) for error in found[1:]] == [InputError, InputError]
    with pytest.raises(BuildError, match=r"0 of 3 films serve for calibration.*input\.unknown_format 1") as caught:
        usable(found, "calibration")
    assert caught.value.code == "build.films"


def test_one_bad_film_in_many_is_left_out_and_more_are_too_many():
    good = ReadFilm(film=BuildFilm(path="a", group="a"), tensor=np.zeros((2, 2), np.float16), geometry=None)
    bad = InputError("input.empty", "no bytes")
    assert usable([good] * FEWEST + [bad] * 3, "validation") == [good] * FEWEST
    with pytest.raises(BuildError, match=r"refused: input\.empty 4"):
        usable([good] * FEWEST + [bad] * 4, "validation")
    with pytest.raises(BuildError, match=f"at least {FEWEST}"):
        usable([good] * (FEWEST - 1), "validation")


@pytest.mark.parametrize(
    "content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\1\x86\xa0\0\1\x86\xa0\x08\0\0\0\0"]
)
def test_a_mask_that_cannot_be_read_is_refused(tmp_path, content):
    folder = write_films(tmp_path, 1)
    (folder / "mask000.bmp").write_bytes(content)
    with pytest.raises(BuildError, match=r"'mask000\.bmp' cannot be read"):
        list(read_films(find_build_films(folder), CONTRACT))


def test_a_mask_of_another_size_is_refused(tmp_path):
    folder = write_films(tmp_path, 1)
    cv2.imwrite(str(folder / "mask000.bmp"), np.zeros((9, 9), np.uint8))
    with pytest.raises(BuildError, match=r"'mask000.bmp' is \(9, 9\)"):
        list(read_films(find_build_films(folder), CONTRACT))
