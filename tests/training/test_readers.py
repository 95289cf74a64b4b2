"""Folders as published and our own: what is read of them, and every way in which they can be wrong."""

from __future__ import annotations

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")
pydicom = pytest.importorskip("pydicom")

from run_lengths import encode_rle  # noqa: E402

from training.data.films import Film  # noqa: E402
from training.data.folders import read_films  # noqa: E402
from training.data.manifest import read_manifest  # noqa: E402
from training.data.nih import read_nih  # noqa: E402
from training.data.rows import TableError, parse_age  # noqa: E402
from training.data.siim import decode_rle, read_siim  # noqa: E402

MANIFEST = "image,set,patient,label,labelled_by,mask,boxes_xywh,age\n"
NIH_2017 = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],\n"
)
BOXES = "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
EXPERTS = "Image Index,Patient ID,Fracture,Pneumothorax,Airspace opacity,Nodule or mass\n"


def write_png(path, rows=4, columns=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.zeros((rows, columns), np.uint8))


def write_dicom(path, *, rows=4, columns=6, **fields):
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film = Dataset()
    film.file_meta = meta
    film.Rows, film.Columns = rows, columns
    for name, value in fields.items():
        setattr(film, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    film.save_as(path, enforce_file_format=True)


@pytest.fixture
def nih(tmp_path):
    """Five films of three patients in two image folders, boxes, and the experts' view of three of them."""
    for name in ("00000001_000", "00000001_001", "00000002_000"):
        write_png(tmp_path / "images_001" / "images" / f"{name}.png", 1024, 1024)
    for name in ("00000003_000", "00000003_001"):
        write_png(tmp_path / "images_002" / "images" / f"{name}.png", 512, 256)
    (tmp_path / "Data_Entry_2017.csv").write_text(
        NIH_2017
        + "00000001_000.png,Cardiomegaly|Pneumothorax,0,1,058Y,M,PA,2682,2749,0.143,0.143,\n"
        + "00000001_001.png,No Finding,1,1,411Y,M,PA,2682,2749,0.143,0.143,\n"
        + "00000002_000.png,Pneumothorax,0,2,006M,F,AP,2682,2749,0.143,0.143,\n"
        + "00000003_000.png,Effusion,0,3,81,F,AP,2682,2749,0.143,0.143,\n"
        + "00000003_001.png,Pneumothorax,1,3,81,F,AP,2682,2749,0.143,0.143,\n"
    )
    (tmp_path / "BBox_List_2017.csv").write_text(
        BOXES
        + "00000001_000.png,Cardiomegaly,1,2,3,4,,,\n"
        + "00000001_000.png,Pneumothorax,225.5,547,86.25,79,,,\n"
        + "00000001_000.png,Pneumothorax,10,20,30,40,,,\n"
        + "00000002_000.png,Pneumothorax,10,20,30,40,,,\n"
        + "00000003_000.png,Pneumothorax,128,256,64,32,,,\n"
    )
    experts = tmp_path / "four_findings_expert_labels"
    experts.mkdir()
    (experts / "test_labels.csv").write_text(EXPERTS + "00000002_000.png,2,NO,NO,NO,NO\n")
    (experts / "validation_labels.csv").write_text(
        EXPERTS + "00000001_001.png,1,NO,YES,NO,NO\n00000003_001.png,3,NO,HEDGE,NO,NO\n00000003_000.png,3,NO,,NO,NO\n"
    )
    other = tmp_path / "all_findings_expert_labels"
    other.mkdir()
    (other / "test_labels.csv").write_text("Image ID,Pneumothorax\n00000003_001.png,NO\n")
    return tmp_path


@pytest.fixture
def siim(tmp_path):
    """Three films of 4 x 6, the first with two masks, and one film that no row names."""
    nested = tmp_path / "dicom-images-train" / "1.2" / "1.3"
    write_dicom(nested / "a.1.dcm", PatientID="pa", PatientSex="F", PatientAge="062Y", ViewPosition="PA")
    write_dicom(nested / "b.2.dcm", PatientID="pb", PatientSex="M", PatientAge="130Y", ViewPosition="AP")
    write_dicom(nested / "c.3.dcm")
    write_dicom(nested / "d.4.dcm")
    (tmp_path / "train-rle.csv").write_text(
        "ImageId, EncodedPixels\na.1, 1 2 3 1\nb.2,-1\na.1,20 4\nc.3, -1\na.1,20 4\n"
    )
    return tmp_path


def test_nih_labels_go_from_experts_to_boxes_to_text_mining(nih):
    films = read_nih(nih)
    assert [(film.label, film.labelled_by) for film in films] == [
        (1, "box"),
        (1, "adjudicated"),  # text mining found nothing
        (0, "adjudicated"),  # against text mining and a box
        (1, "box"),  # an empty cell decides nothing
        (1, "nih"),  # nor does a hedge
    ]
    assert films[0] == Film(
        image="images_001/images/00000001_000.png",
        origin="nih",
        patient="00000001",
        label=1,
        labelled_by="box",
        boxes=((225.5, 547.0, 86.25, 79.0), (10.0, 20.0, 30.0, 40.0)),
        findings=("Cardiomegaly", "Pneumothorax"),
        view="PA",
        sex="M",
        age=58.0,
    )
    assert films[1].findings == ("No Finding",)
    assert films[2].boxes == ()  # nothing to find where the experts see nothing
    assert films[3].boxes == ((32.0, 128.0, 16.0, 16.0),)  # an image of 256 x 512 instead of 1024 x 1024
    assert [film.age for film in films] == [58.0, None, 0.5, 81.0, 81.0]


def test_nih_reads_the_table_of_2020_and_needs_neither_boxes_nor_experts(tmp_path):
    write_png(tmp_path / "images" / "00000007_000.png")
    header = NIH_2017.replace("Patient Gender", "Patient Sex")
    (tmp_path / "Data_Entry_2017_v2020.csv").write_text(header + "00000007_000.png,Hernia,0,7,44,F,AP,1,1,1,1,\n")
    (film,) = read_nih(tmp_path)
    assert (film.patient, film.sex, film.label, film.labelled_by) == ("00000007", "F", 0, "nih")


@pytest.mark.parametrize(
    ("table", "old", "new", "message"),
    [
        ("Data_Entry_2017.csv", "Patient ID", "Person", r"Data_Entry_2017.csv: no column 'Patient ID'"),
        ("Data_Entry_2017.csv", "00000002_000", "00000009_000", r"line 4: there is no image 00000009_000.png"),
        ("Data_Entry_2017.csv", "00000001_001", "00000001_000", r"line 3: 00000001_000.png comes a second time"),
        ("Data_Entry_2017.csv", "058Y", "old", r"line 2: age 'old'"),
        ("Data_Entry_2017.csv", "0,2,006M", "0,x,006M", r"line 4: patient id 'x'"),
        ("Data_Entry_2017.csv", ",0,2,006M,F,AP,2682,2749,0.143,0.143,", "", r"line 4: 2 fields"),
        ("BBox_List_2017.csv", "Bbox [x", "Box [x", r"BBox_List_2017.csv: no column 'Bbox \[x'"),
        ("BBox_List_2017.csv", "547", "many", r"line 3: box .* is not four numbers"),
        ("BBox_List_2017.csv", "547", "-1", r"line 3: box .* outside any image or empty"),
        ("BBox_List_2017.csv", "86.25", "0", r"line 3: box .* empty"),
        ("BBox_List_2017.csv", "86.25", "nan", r"line 3: box"),
        ("BBox_List_2017.csv", "547", "1000", r"line 3: the box leaves the 1024 pixels"),
        ("BBox_List_2017.csv", "10,20,30,40", "225.5,547,86.25,79", r"line 4: this box of 00000001_000.png"),
        ("four_findings_expert_labels/test_labels.csv", "Pneumothorax", "PTX", r"test_labels.csv: no column"),
        ("four_findings_expert_labels/test_labels.csv", "2,NO,NO", "2,NO,MAYBE", r"line 2: 'MAYBE' is none of"),
        ("four_findings_expert_labels/validation_labels.csv", "1_001", "2_000", r"00000002_000.png comes a second"),
    ],
)
def test_a_wrong_nih_table_is_refused_with_file_line_and_reason(nih, table, old, new, message):
    path = nih / table
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(TableError, match=message):
        read_nih(nih)


@pytest.mark.parametrize(
    ("text", "years"),
    [("58", 58), ("058Y", 58), ("006M", 0.5), ("110", 110), ("111", None), ("411Y", None), ("", None)],
)
def test_ages(text, years):
    assert parse_age(text) == years


@pytest.mark.parametrize("text", ["-3", "5.5", "58 years", "Y", "058y"])
def test_a_malformed_age_is_refused(text):
    with pytest.raises(ValueError, match="is not like"):
        parse_age(text)


def test_siim_films_are_read_from_headers_and_rows(siim):
    films = read_siim(siim)
    assert films == [
        Film(
            image="dicom-images-train/1.2/1.3/a.1.dcm",
            rle=("1 2 3 1", "20 4"),
            origin="siim",
            patient="pa",
            label=1,
            labelled_by="siim",
            view="PA",
            sex="F",
            age=62.0,
        ),
        Film(
            image="dicom-images-train/1.2/1.3/b.2.dcm",
            origin="siim",
            patient="pb",
            label=0,
            labelled_by="siim",
            view="AP",
            sex="M",
        ),
        Film(image="dicom-images-train/1.2/1.3/c.3.dcm", origin="siim", patient="c.3", label=0, labelled_by="siim"),
    ]
    assert [film.has_mask for film in films] == [True, False, False]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" EncodedPixels", "Pixels", r"train-rle.csv: no column 'EncodedPixels'"),
        ("b.2", "e.5", r"line 3: there is no film e.5.dcm"),
        ("b.2", "a.1", r"line 3: a.1 has both a mask and -1"),
        ("c.3, -1", "b.2,1 1", r"line 5: b.2 has both a mask and -1"),
        ("20 4", "20 4 1", r"line 4: the mask is not pairs"),
        ("20 4", "20 -4", r"line 4: the mask is not pairs"),
        ("20 4", "", r"line 4: the mask is not pairs"),
        ("20 4", "20 0", r"line 4: the mask has a run of length 0"),
        ("20 4", "20 5", r"line 4: the mask ends at pixel 25 of a film of 4 x 6"),
    ],
)
def test_a_wrong_siim_table_is_refused_with_file_line_and_reason(siim, old, new, message):
    path = siim / "train-rle.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(TableError, match=message):
        read_siim(siim)


def test_a_file_that_is_no_dicom_is_refused(siim):
    (siim / "dicom-images-train" / "1.2" / "1.3" / "b.2.dcm").write_bytes(b"no film")
    with pytest.raises(TableError, match=r"line 3: the header of b\.2\.dcm cannot be read"):
        read_siim(siim)


def test_a_header_without_a_size_is_refused(siim):
    path = siim / "dicom-images-train" / "1.2" / "1.3" / "b.2.dcm"
    header = pydicom.dcmread(path)
    del header.Rows
    header.save_as(path)
    with pytest.raises(TableError, match=r"line 3: the header of b\.2\.dcm cannot be read"):
        read_siim(siim)


def decode_by_the_pixel(text, rows, columns):
    """The published code in plain loops: gaps and lengths alternate, down the columns."""
    numbers = [int(word) for word in text.split()]
    order = [(row, column) for column in range(columns) for row in range(rows)]
    mask = np.zeros((rows, columns), np.uint8)
    inside = False
    for number in numbers:
        run, order = order[:number], order[number:]
        for row, column in run:
            mask[row, column] = inside
        inside = not inside
    return mask


def test_run_lengths_of_a_worked_example():
    # Three rows, four columns; pixel number n lies in row n % 3 of column n // 3. Gap 1: pixels 1, 2, 3;
    # gap 2 after pixel 3: pixels 6 and 7.
    wanted = [[0, 1, 1, 0], [1, 0, 1, 0], [1, 0, 0, 0]]
    decoded = decode_rle(("1 3 2 2",), 3, 4)
    assert decoded.dtype == np.uint8
    assert decoded.tolist() == wanted
    assert encode_rle(np.array(wanted)) == "1 3 2 2"


def test_run_lengths_match_plain_loops_both_ways_at_odd_sizes():
    rng = np.random.default_rng(1)
    for rows, columns in ((1, 1), (1, 9), (9, 1), (13, 7), (32, 33)):
        for _ in range(20):
            mask = (rng.random((rows, columns)) < rng.random()).astype(np.uint8)
            mask.flat[0] = 1
            code = encode_rle(mask * 255)
            assert np.array_equal(decode_by_the_pixel(code, rows, columns), mask)
            assert np.array_equal(decode_rle((code,), rows, columns), mask)


def test_masks_of_one_film_are_united_and_none_is_empty():
    union = decode_by_the_pixel("0 3", 4, 5) | decode_by_the_pixel("2 4 7 1", 4, 5)
    assert np.array_equal(decode_rle(("0 3", "2 4 7 1"), 4, 5), union)
    assert not decode_rle((), 4, 5).any()
    assert encode_rle(np.zeros((4, 5))) == "-1"


@pytest.mark.parametrize("text", ["", "-1", "1", "1 x", "0 21", "0 0"])
def test_malformed_run_lengths_are_refused(text):
    with pytest.raises(ValueError, match="the mask"):
        decode_rle((text,), 4, 5)


def test_the_manifest_is_read_in_order(data_folder):
    films = read_manifest(data_folder)
    assert len(films) == 80
    assert films[0] == Film(
        image="film000.png",
        mask="film000.mask.png",
        origin="nih",
        patient="p00",
        label=1,
        labelled_by="siim",
        view="PA",
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b.png,nih,p,1,siim,,", r"line 3: 7 fields"),
        ("b.png,nih,p,1,siim,,,", r"line 3: there is no file b.png"),
        ("a.png,nih,p,1,siim,,,", r"line 3: a.png comes a second time"),
        ("c.png,nih,p,1,siim,m.png,,", r"line 3: there is no file m.png"),
        (",nih,p,1,siim,,,", r"line 3: no image is named"),
        ("c.png,nih,p,2,siim,,,", r"line 3: label '2' is neither 0 nor 1"),
        ("c.png,nih,p,1,rumour,,,", r"line 3: no trust is known for label 1 by 'rumour'"),
        ("c.png,nih,p,1,box,,1 2 3,", r"line 3: box '1 2 3' is not four numbers"),
        ("c.png,nih,p,1,box,,1 2 3 0,", r"line 3: box '1 2 3 0' is outside any image or empty"),
        ("c.png,nih,p,1,siim,,,-1", r"line 3: age -1 is not a number of years"),
        ("c.png,nih,p,1,siim,,,old", r"line 3: could not convert"),
    ],
)
def test_a_wrong_manifest_is_refused_with_file_line_and_reason(tmp_path, row, message):
    for name in ("a.png", "c.png"):
        write_png(tmp_path / name)
    # The short row counts only against columns that are needed, so the needed ones are put last.
    header = MANIFEST if not row.endswith("siim,,") else "age," + MANIFEST.replace(",age", "")
    first = "a.png,nih,p,0,siim,,,\n" if header == MANIFEST else ",a.png,nih,p,0,siim,,\n"
    (tmp_path / "manifest.csv").write_text(f"{header}{first}{row}\n")
    with pytest.raises(TableError, match=f"manifest.csv, {message}"):
        read_manifest(tmp_path)


def test_a_manifest_without_a_column_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_text("image,set,patient,label,mask,boxes_xywh\n")
    with pytest.raises(TableError, match=r"manifest\.csv: no column 'labelled_by'"):
        read_manifest(tmp_path)


def test_an_empty_table_is_refused(tmp_path):
    (tmp_path / "manifest.csv").write_text("")
    with pytest.raises(TableError, match="no column 'image'"):
        read_films(tmp_path)


def test_the_layout_of_a_folder_is_recognised(data_folder, nih):
    assert read_films(data_folder) == read_manifest(data_folder)
    assert read_films(nih) == read_nih(nih)


@pytest.mark.parametrize("name", ["train-rle.csv", "stage_2_train.csv", "train-rle-sample.csv"])
def test_the_tables_of_siim_are_recognised(siim, name):
    (siim / "train-rle.csv").rename(siim / name)
    assert [film.label for film in read_films(siim)] == [1, 0, 0]


def test_an_unknown_layout_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(ValueError, match=r"manifest\.csv, Data_Entry_2017_v2020\.csv.*train-rle\.csv"):
        read_films(tmp_path)
    with pytest.raises(FileNotFoundError, match="Data_Entry_2017"):
        read_nih(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"train-rle\.csv"):
        read_siim(tmp_path)


def test_two_published_layouts_in_one_folder_are_refused(nih):
    (nih / "train-rle.csv").write_text("ImageId,EncodedPixels\n")
    with pytest.raises(ValueError, match="both"):
        read_films(nih)
