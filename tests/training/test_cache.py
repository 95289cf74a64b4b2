"""The cache holds each film as the SDK would see it, and its mask, run lengths or boxes at the same place."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pytest.importorskip("pydicom")

from run_lengths import encode_rle  # noqa: E402

from training.data.cache import FilmCache, read_film, sdk_preprocess  # noqa: E402
from training.data.films import Film  # noqa: E402
from training.data.manifest import read_manifest  # noqa: E402


def write_dicom(path, pixels, *, photometric, center, width):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film = Dataset()
    film.file_meta = meta
    film.SOPClassUID, film.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    film.Modality = "CR"
    film.Rows, film.Columns = pixels.shape
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, photometric
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 16, 12, 11, 0
    film.WindowCenter, film.WindowWidth, film.VOILUTFunction = center, width, "LINEAR_EXACT"
    film.PixelData = pixels.astype("<u2").tobytes()
    film.save_as(path, enforce_file_format=True)


def refuse(pixels, size, *, display=None):
    raise AssertionError("decoded again")


def test_the_cache_holds_the_preprocessed_film_and_its_region(tmp_path, data_folder, plain_preprocess):
    films = read_manifest(data_folder)[:3]
    cache = FilmCache.open(data_folder, films, 64, tmp_path, preprocess=plain_preprocess)
    for each in films:
        pixels = cv2.imread(str(data_folder / each.image), cv2.IMREAD_GRAYSCALE)
        assert np.array_equal(cache.image(each), np.rint(plain_preprocess(pixels, 64)[0] * 255))
        assert cache.content(each) == (0, 0, 64, 64)
    mask = cv2.imread(str(data_folder / films[0].mask), cv2.IMREAD_GRAYSCALE)
    assert np.array_equal(cache.region(films[0]), plain_preprocess(mask, 64)[0] >= 0.5)
    assert cache.region(films[1]) is None


def test_boxes_stand_in_where_there_is_no_mask(tmp_path, data_folder, plain_preprocess):
    boxed = dataclasses.replace(
        read_manifest(data_folder)[0], mask="", labelled_by="box", boxes=((24.0, 48.0, 12.0, 24.0),)
    )
    region = FilmCache.open(data_folder, [boxed], 96, tmp_path, preprocess=plain_preprocess).region(boxed)
    assert np.argwhere(region).min(0).tolist() == [48, 24]
    assert np.argwhere(region).max(0).tolist() == [71, 35]
    assert region.sum() == 12 * 24


def test_run_lengths_are_drawn_as_the_mask_file_is(tmp_path, data_folder, plain_preprocess):
    masked = read_manifest(data_folder)[0]
    mask = cv2.imread(str(data_folder / masked.mask), cv2.IMREAD_GRAYSCALE)
    coded = dataclasses.replace(masked, mask="", rle=(encode_rle(mask),))
    of_file = FilmCache.open(data_folder, [masked], 48, tmp_path, preprocess=plain_preprocess)
    of_runs = FilmCache.open(data_folder, [coded], 48, tmp_path, preprocess=plain_preprocess)
    assert of_file.folder != of_runs.folder
    assert of_file.region(masked).any()
    assert np.array_equal(of_file.region(masked), of_runs.region(coded))


def test_a_cache_is_made_once(tmp_path, data_folder, plain_preprocess):
    films = read_manifest(data_folder)[:4]
    first = FilmCache.open(data_folder, films, 32, tmp_path, preprocess=plain_preprocess)
    second = FilmCache.open(data_folder, films, 32, tmp_path, preprocess=refuse)
    assert np.array_equal(first.images, second.images)
    assert [path.name.endswith(".part") for path in tmp_path.iterdir()] == [False]


def test_the_name_and_files_of_a_cache_stay_as_they_are(tmp_path, plain_preprocess):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((4, 4), np.uint8))
    film = Film(image="a.png", origin="nih", patient="p", label=0, labelled_by="nih")
    cache = FilmCache.open(tmp_path, [film], 4, tmp_path / "caches", preprocess=plain_preprocess)
    assert cache.folder.name == "4-dd851f61b000"  # caches made before are found again
    assert {path.name for path in cache.folder.iterdir()} == {
        "images.npy",
        "regions.npy",
        "contents.npy",
        "index.json",
    }


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_dicom_film_is_windowed_and_its_polarity_applied_but_not_to_its_mask(tmp_path, photometric):
    pytest.importorskip("ptxsdk._core")
    stored = np.random.default_rng(3).integers(0, 4096, (60, 40))
    write_dicom(tmp_path / "a.dcm", stored, photometric=photometric, center=2000, width=1600)
    mask = np.zeros((60, 40), np.uint8)
    mask[10:30, 4:16] = 1
    film = Film(image="a.dcm", rle=(encode_rle(mask),), origin="siim", patient="p", label=1, labelled_by="siim")
    cache = FilmCache.open(tmp_path, [film], 30, tmp_path / "caches")
    shown = np.clip((stored - 1200) / 1600, 0, 1)  # center 2000 and width 1600 span 1200 to 2800
    shown = 1 - shown if photometric == "MONOCHROME1" else shown
    assert cache.content(film) == (5, 0, 25, 30)
    wanted = shown.reshape(30, 2, 20, 2).mean((1, 3)) * 255
    assert np.abs(cache.image(film)[:, 5:25] - wanted).max() <= 0.51
    assert not cache.image(film)[:, :5].any()
    region = np.zeros((30, 30), np.uint8)
    region[5:15, 7:13] = 1
    assert np.array_equal(cache.region(film), region)


def test_a_film_that_cannot_be_read_is_named(tmp_path):
    from ptxsdk.errors import InputError

    for name in ("a.png", "b.dcm"):
        (tmp_path / name).write_bytes(b"no film at all")
    with pytest.raises(FileNotFoundError, match=r"a\.png"):
        read_film(tmp_path / "a.png")
    with pytest.raises(InputError, match=r"b\.dcm"):
        read_film(tmp_path / "b.dcm")


def test_the_sdks_preprocessing_fits_and_averages():
    pytest.importorskip("ptxsdk._core")
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96), dtype=np.uint8)
    tensor, content = sdk_preprocess(pixels, 48)
    assert content == (0, 8, 48, 40)
    wanted = pixels.reshape(32, 2, 48, 2).mean((1, 3)) / 255
    np.testing.assert_allclose(tensor[8:40], wanted, atol=1e-6)
    assert not tensor[:8].any()
    assert not tensor[40:].any()
