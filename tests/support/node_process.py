"""A node, a PACS and films for the tests of the node: real programs on free ports of the loopback interface."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import cv2
import numpy as np
import pytest
from made import make_chest

ROOT = Path(__file__).parents[2]
FLAGGED = {"blob": (200, 120, 50)}
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def program(name):
    """The path of a program, or a skipped test."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin")
    if found is None:
        pytest.skip(f"{name} is not installed (Debian: orthanc, orthanc-dicomweb, dcmtk)")
    return found


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(condition, seconds=60, what="the condition"):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what} was not met in {seconds} s")


def get(url, *, headers=None, timeout=10):
    """Status, headers and body of an answer, whatever its status."""
    request = urllib.request.Request(url, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, error.read()


# --- films ------------------------------------------------------------------------------------------------------------


def dx(pixels=None, number=1, **attributes):
    """A DX data set of an 8-bit picture as 12 bits, complete enough for a PACS; every number has UIDs of its own."""
    from dicom_files import dataset
    from pydicom.uid import generate_uid

    pixels = make_chest((512, 448)) if pixels is None else pixels
    ds = dataset(pixels.astype(np.uint16) * 16 + number % 16)
    uid = generate_uid(entropy_srcs=["ptxsdk test film", str(number)])
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID = uid
    ds.StudyInstanceUID = generate_uid(entropy_srcs=["ptxsdk test study", str(number)])
    ds.SeriesInstanceUID = generate_uid(entropy_srcs=["ptxsdk test series", str(number)])
    ds.PatientID = f"SECRET-{number}"
    ds.PatientBirthDate, ds.PatientSex, ds.PatientAge = "19600101", "F", "064Y"
    ds.StudyTime, ds.StudyID, ds.AccessionNumber = "120000", "1", f"A{number}"
    ds.ReferringPhysicianName = ""
    ds.BodyPartExamined, ds.ViewPosition = "CHEST", "PA"
    ds.PatientOrientation = ["L", "F"]
    ds.ImagerPixelSpacing = [0.7, 0.7]
    ds.PresentationIntentType = "FOR PRESENTATION"
    for name, value in attributes.items():
        setattr(ds, name, value)
    return ds


def example(name, number=1, **attributes):
    """One of the example films as a DX data set."""
    return dx(cv2.imread(str(ROOT / "examples" / f"{name}.jpg"), cv2.IMREAD_GRAYSCALE), number, **attributes)


def encoded(ds):
    buffer = io.BytesIO()
    ds.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def film_files(folder, count, start=0, **options):
    """Files of `count` films, every other one flagged by the small engine."""
    folder.mkdir(exist_ok=True)
    flagged, plain = make_chest((512, 448), **FLAGGED), make_chest((512, 448))
    paths = []
    for number in range(start, start + count):
        path = folder / f"{number:05}.dcm"
        path.write_bytes(encoded(dx(flagged if number % 2 else plain, number, **options)))
        paths.append(path)
    return paths


# --- programs ---------------------------------------------------------------------------------------------------------


class Node:
    """A node as a process of its own; `log` grows with what it says."""

    def __init__(self, *arguments, command="node", environment=None):
        self.log = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ptxsdk", command, *(str(argument) for argument in arguments)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        started = wait_for(
            lambda: self.events("started") or self.process.poll() is not None, 60, f"a start; it said {self.log}"
        )
        assert started is not True, self.log
        self.port, self.http = started[0]["port"], started[0]["http"]

    def _read(self):
        for line in self.process.stderr:
            try:
                self.log.append(json.loads(line))
            except ValueError:
                self.log.append({"event": "not JSON", "text": line})

    def events(self, name, **fields):
        return [entry for entry in list(self.log) if entry["event"] == name and fields.items() <= entry.items()]

    def url(self, path="/"):
        return f"http://127.0.0.1:{self.http}{path}"

    def health(self):
        return json.loads(get(self.url("/healthz"))[2])

    def metric(self, line):
        """The value of a line of the counters, 0 where there is none."""
        for text in get(self.url("/metrics"))[2].decode().splitlines():
            if text.startswith(line + " "):
                return float(text.rpartition(" ")[2])
        return 0.0

    def most_memory(self):
        """The most address space, in bytes, that it ever asked for."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(re.search(r"VmPeak:\s*(\d+) kB", status)[1])

    def wait_done(self, count, seconds=120):
        wait_for(lambda: self.health()["queue"]["done"] >= count, seconds, f"{count} films done")

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def stop(self, seconds=40):
        """Ask it to end as a service manager does; return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(seconds)
        self._reader.join(5)
        self.process.stderr.close()
        return status

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
        self.kill()


def page_node(folder, *arguments):
    """A node with a page, whose results go into a folder."""
    options = ("--port", 0, "--http", 0, "--spool", folder / "spool", "--out", folder / "out", "--write", "sr")
    return Node(*options, *arguments)


class Orthanc:
    """A PACS with a database of its own; `url` is its REST API, ``/dicom-web`` below it DICOMweb."""

    def __init__(self, folder, *, aet="PACS"):
        executable = program("Orthanc")
        self.aet, self.port, self.http = aet, free_port(), free_port()
        folder.mkdir(exist_ok=True)
        settings = {
            "Name": "test",
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "DicomAet": aet,
            "DicomPort": self.port,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": True,
            "HttpPort": self.http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "Plugins": [str(PLUGIN)] if PLUGIN.exists() else [],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "OverwriteInstances": False,
            "StableAge": 1,
        }
        self._configuration = folder / "orthanc.json"
        self._configuration.write_text(json.dumps(settings))
        self._command = [executable, str(self._configuration)]
        self._output = folder / "orthanc.log"
        self.process = None
        self.start()

    @property
    def name(self):
        return f"{self.aet}@127.0.0.1:{self.port}"

    def start(self):
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(self._command, stdout=output, stderr=output)
        wait_for(self._answers, 60, "Orthanc's start")

    def _answers(self):
        with contextlib.suppress(OSError):
            return get(f"http://127.0.0.1:{self.http}/system", timeout=2)[0] == 200

    def rest(self, path):
        return json.loads(get(f"http://127.0.0.1:{self.http}{path}", headers={"Accept": "application/json"})[2])

    def instances(self):
        """Modality, study, series and SOP Instance UID of all it holds."""
        found = self.rest("/dicom-web/instances?limit=100000&includefield=00080060")

        def value(entry, tag):
            return entry[tag]["Value"][0]

        return [(value(e, "00080060"), value(e, "0020000D"), value(e, "0020000E"), value(e, "00080018")) for e in found]

    def file(self, sop_instance_uid):
        import pydicom

        found = [
            entry
            for entry in self.rest("/instances?expand")
            if entry["MainDicomTags"]["SOPInstanceUID"] == sop_instance_uid
        ]
        content = get(f"http://127.0.0.1:{self.http}/instances/{found[0]['ID']}/file")[2]
        return pydicom.dcmread(io.BytesIO(content))

    def stop(self):
        self.process.terminate()
        self.process.wait(20)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.stop()


def storescu(port, paths, *, called="PTX", calling="MODALITY", timeout=120):
    """Send files with DCMTK; return its exit status and what it said."""
    run = subprocess.run(
        [program("storescu"), "-aet", calling, "-aec", called, "127.0.0.1", str(port), *map(str, paths)],
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    return run.returncode, run.stdout + run.stderr


@contextlib.contextmanager
def association(port, *, called="PTX", calling="TEST", classes=None, syntaxes=None, **options):
    """An association with the node, made with pynetdicom."""
    from pydicom.uid import ExplicitVRLittleEndian
    from pynetdicom import AE
    from pynetdicom.sop_class import (
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        SecondaryCaptureImageStorage,
        Verification,
    )

    entity = AE(calling)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = entity.connection_timeout = 30
    for uid in classes or (
        ComputedRadiographyImageStorage,
        DigitalXRayImageStorageForPresentation,
        SecondaryCaptureImageStorage,
    ):
        entity.add_requested_context(uid, syntaxes or [ExplicitVRLittleEndian])
    entity.add_requested_context(Verification)
    made = entity.associate("127.0.0.1", port, ae_title=called, **options)
    try:
        yield made
    finally:
        if made.is_established:
            made.release()


def send(port, ds, **options):
    """Store one data set; return the status."""
    with association(port, syntaxes=[ds.file_meta.TransferSyntaxUID], **options) as made:
        assert made.is_established
        return made.send_c_store(ds).Status
