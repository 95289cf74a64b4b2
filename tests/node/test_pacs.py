"""With a real PACS: what the node sends is there, once, however the two of them fail."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
import urllib.request
from collections import Counter

import numpy as np
import pydicom
import pytest
from node_process import Node, Orthanc, encoded, example, film_files, send, storescu, wait_for

POSITIVE, NEGATIVE = "00029943_001", "00017098_003"


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    with Orthanc(tmp_path_factory.mktemp("pacs")) as made:
        yield made


def arguments(folder, *destinations):
    forward = [part for name in destinations for part in ("--forward", name)]
    return ("--port", 0, "--http", 0, "--spool", folder / "spool", *forward)


def counted(pacs, studies):
    """How many objects of each modality the PACS holds of each study."""
    return Counter((study, modality) for modality, study, _, _ in pacs.instances() if study in studies)


def dicomweb(pacs, path, accept="application/dicom+json"):
    request = urllib.request.Request(f"http://127.0.0.1:{pacs.http}/dicom-web{path}", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=20) as answer:
        return answer.read()


def test_a_film_comes_back_as_picture_report_and_segmentation(pacs, tmp_path):
    film, other = example(POSITIVE, 1), example(NEGATIVE, 2)
    paths = [tmp_path / "film.dcm", tmp_path / "other.dcm"]
    for path, ds in zip(paths, (film, other), strict=True):
        path.write_bytes(encoded(ds))
    with Node(*arguments(tmp_path, pacs.name)) as node:  # the engine that ships
        status, said = storescu(node.port, paths)
        assert status == 0, said
        node.wait_done(2)
        assert node.stop() == 0
    study = film.StudyInstanceUID
    assert counted(pacs, {study}) == {(study, "OT"): 1, (study, "SR"): 1, (study, "SEG"): 1}
    assert counted(pacs, {other.StudyInstanceUID}) == {
        (other.StudyInstanceUID, "OT"): 1,
        (other.StudyInstanceUID, "SR"): 1,
    }
    uids = {modality: (series, uid) for modality, found, series, uid in pacs.instances() if found == study}

    # DICOMweb: the study by query, the objects' headers, and the picture as a viewer asks for it.
    (found,) = json.loads(dicomweb(pacs, f"/studies?StudyInstanceUID={study}"))
    assert found["00100020"]["Value"] == [film.PatientID]
    series, uid = uids["SR"]
    (header,) = json.loads(dicomweb(pacs, f"/studies/{study}/series/{series}/instances/{uid}/metadata"))
    assert header["00080016"]["Value"] == ["1.2.840.10008.5.1.4.1.1.88.34"]  # Comprehensive 3D SR
    series, uid = uids["OT"]
    rendered = dicomweb(pacs, f"/studies/{study}/series/{series}/instances/{uid}/rendered", "image/png")
    assert rendered[:8] == b"\x89PNG\r\n\x1a\n"

    # REST: the objects whole, of one patient and study, and each refers to the film.
    report, segmentation, picture = (pacs.file(uids[modality][1]) for modality in ("SR", "SEG", "OT"))
    for made in (report, segmentation, picture):
        assert (made.StudyInstanceUID, made.PatientID) == (study, film.PatientID)
    referenced = report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert film.SOPInstanceUID in {
        item.ReferencedSOPInstanceUID for series in referenced for item in series.ReferencedSOPSequence
    }
    assert segmentation.SegmentationType == "BINARY"
    assert (segmentation.Rows, segmentation.Columns) == (film.Rows, film.Columns)
    marked = segmentation.pixel_array.any(axis=0) if segmentation.pixel_array.ndim == 3 else segmentation.pixel_array
    rows, columns = np.nonzero(marked)
    assert 26 <= rows.mean() <= 213  # radiologists' box, examples/films.csv: 164 26 321 213
    assert 164 <= columns.mean() <= 321
    assert picture.Modality == "OT"


def test_a_real_film_in_jpeg_2000(pacs, tmp_path):
    """A Philips CR of pydicom-data: MONOCHROME1, 15 bits, with what real units write into a header."""
    from pydicom.data import get_testdata_file

    film = pydicom.dcmread(get_testdata_file("RG1_J2KR.dcm", download=False))
    with Node(*arguments(tmp_path, pacs.name)) as node:
        assert send(node.port, film) == 0
        node.wait_done(1)
        assert node.stop() == 0
    found = counted(pacs, {film.StudyInstanceUID})
    assert found[film.StudyInstanceUID, "OT"] == found[film.StudyInstanceUID, "SR"] == 1


@pytest.mark.parametrize("count", [20, pytest.param(50, marks=pytest.mark.slow)])
def test_a_kill_in_the_middle_of_films_loses_and_doubles_nothing(pacs, engine_file, tmp_path, count):
    paths = film_files(tmp_path / "films", count, 1000 * count)
    studies = {pydicom.dcmread(path, stop_before_pixels=True).StudyInstanceUID for path in paths}
    options = ("--engine", engine_file, *arguments(tmp_path, pacs.name))
    node = Node(*options)
    assert storescu(node.port, paths)[0] == 0
    kills = 0
    for share in (count // 10, count * 3 // 10, count // 2):  # in the middle of scoring, and of sending
        node.wait_done(share, 60)
        before = node.health()["queue"]
        node.kill()
        node.process.stderr.close()
        kills += before["received"] + before["scored"] > 0
        node = Node(*options)
    assert kills >= 2  # it was in the middle
    with node:
        node.wait_done(count)
        queue = node.health()["queue"]
        assert node.stop() == 0
    assert queue == {"received": 0, "scored": 0, "done": count, "refused": 0, "failed": 0}
    found = counted(pacs, studies)
    assert all(found[study, "OT"] == 1 and found[study, "SR"] == 1 for study in studies)
    assert sum(modality == "SEG" for _, modality in found) == count // 2
    assert max(found.values()) == 1


def test_a_pacs_that_is_down_gets_all_when_it_is_back(engine_file, tmp_path):
    with Orthanc(tmp_path / "late", aet="LATE") as late:
        late.stop()
        paths = film_files(tmp_path / "films", 4, 2000)
        with Node("--engine", engine_file, *arguments(tmp_path, late.name), "--out", tmp_path / "out") as node:
            assert storescu(node.port, paths)[0] == 0
            wait_for(lambda: len(list((tmp_path / "out").glob("*/result.json"))) == 4, 30, "the other destination")
            wait_for(lambda: len(node.events("unreachable")) >= 2, 20)
            assert node.health()["status"] == "ok"
            assert node.health()["destinations"][late.name] == "unreachable"
            assert node.health()["queue"]["scored"] == 4
            late.start()
            node.wait_done(4, 60)
            waits = [entry["again_in"] for entry in node.events("unreachable")]
            assert waits[0] <= 2
            assert node.stop() == 0
        assert Counter(modality for modality, *_ in late.instances()) == {"OT": 4, "SR": 4, "SEG": 2}


def test_a_film_sent_again_changes_nothing_in_the_pacs(pacs, engine_file, tmp_path):
    (path,) = film_files(tmp_path / "films", 1, 3001)
    ds = pydicom.dcmread(path)
    for attempt in range(2):  # the second node has forgotten the film: a new spool
        with Node("--engine", engine_file, *arguments(tmp_path / str(attempt), pacs.name)) as node:
            assert send(node.port, ds) == 0
            node.wait_done(1)
            assert node.stop() == 0
    study = ds.StudyInstanceUID
    assert counted(pacs, {study}) == {(study, "OT"): 1, (study, "SR"): 1, (study, "SEG"): 1}


def test_a_stop_does_not_wait_for_a_destination_that_hangs(engine_file, tmp_path):
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    released = threading.Event()

    def hang(_):
        released.wait(60)
        return 0x0000

    entity = AE("HANGS")
    entity.supported_contexts = AllStoragePresentationContexts
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, hang)])
    try:
        name = f"HANGS@127.0.0.1:{server.server_address[1]}"
        options = ("--engine", engine_file, *arguments(tmp_path, name), "--grace", 1)
        with Node(*options) as node:
            assert storescu(node.port, film_files(tmp_path / "films", 1, 5000))[0] == 0
            wait_for(lambda: server.active_associations, 20, "a delivery")
            started = time.monotonic()
            assert node.stop() == 0
            assert time.monotonic() - started < 10
        released.set()
        with Node(*options) as node:
            node.wait_done(1, 30)
            assert node.stop() == 0
    finally:
        released.set()
        server.shutdown()


def associate_accept(request):
    """An A-ASSOCIATE-AC that takes every context of a request, in Explicit VR Little Endian."""
    contexts, at = b"", 74
    while at < len(request):
        kind, _, length = struct.unpack_from(">BBH", request, at)
        if kind == 0x20:
            syntax = b"\x40\0\0\x13" + b"1.2.840.10008.1.2.1"
            contexts += struct.pack(">BBHBBBB", 0x21, 0, 4 + len(syntax), request[at + 4], 0, 0, 0) + syntax
        at += 4 + length
    application = b"\x10\0\0\x15" + b"1.2.840.10008.3.1.1.1"
    user = b"\x50\0\0\x08\x51\0\0\x04" + struct.pack(">L", 1 << 17)
    body = request[6:74] + application + contexts + user
    return b"\x02\0" + struct.pack(">L", len(body)) + body


@pytest.mark.requirement("R-NODE-2")
@pytest.mark.parametrize("fault", ["half an acceptance", "half an answer", "four gigabytes", "takes nothing"])
def test_a_pacs_that_falls_silent_is_tried_again(engine_file, tmp_path, fault):
    held = []

    def misbehave(peer):
        request = peer.recv(65536)
        if fault == "half an acceptance":
            peer.sendall(b"\x02\0" + struct.pack(">L", 200) + bytes(10))
        elif fault == "four gigabytes":
            peer.sendall(b"\x02\0\xff\xff\xff\xf0")
            for _ in range(300):
                peer.sendall(bytes(1 << 20))
        else:
            peer.sendall(associate_accept(request))
            if fault == "half an answer":
                peer.recv(65536)
                peer.sendall(b"\x04\0\0")

    def serve():
        with contextlib.suppress(OSError):
            while True:
                held.append(server.accept()[0])
                with contextlib.suppress(OSError):
                    misbehave(held[-1])

    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
        threading.Thread(target=serve, daemon=True).start()
        name = f"SILENT@127.0.0.1:{server.getsockname()[1]}"
        options = ("--engine", engine_file, *arguments(tmp_path, name), "--idle", 1, "--grace", 1)
        with Node(*options) as node:
            before = node.metric("ptxsdk_resident_bytes")
            assert send(node.port, example(NEGATIVE, 6000)) == 0
            wait_for(lambda: len(node.events("unreachable")) >= 2, 40)
            assert node.health()["destinations"] == {name: "unreachable"}
            assert node.health()["queue"]["scored"] == 1
            assert node.metric("ptxsdk_resident_bytes") - before < 200 << 20
            assert node.stop() == 0
        server.shutdown(socket.SHUT_RDWR)
    for peer in held:
        peer.close()


def test_a_destination_that_refuses_is_tried_again(engine_file, tmp_path):
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    statuses, taken = [0xA700, 0xC000], []

    def take(event):
        if statuses:
            return statuses.pop()
        taken.append(event.request.AffectedSOPInstanceUID)
        return 0x0000

    entity = AE("PICKY")
    entity.supported_contexts = AllStoragePresentationContexts
    server = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, take)])
    try:
        name = f"PICKY@127.0.0.1:{server.server_address[1]}"
        paths = film_files(tmp_path / "films", 2, 4000)
        with Node("--engine", engine_file, *arguments(tmp_path, name)) as node:
            assert storescu(node.port, paths)[0] == 0
            node.wait_done(2, 30)
            assert {entry["reason"] for entry in node.events("not_taken")} == {
                "sc: status A700",
                "sc: status C000",
            }
            assert node.stop() == 0
    finally:
        server.shutdown()
    assert len(set(taken)) == len(taken) == 5
