"""Soak: a thousand films at full speed through the shipped engine into a PACS; none lost, memory flat."""

from __future__ import annotations

import json
import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from time import monotonic, sleep

import cv2
import pytest
from node_process import ROOT, Node, Orthanc, association, dx, wait_for

FILMS = int(os.environ.get("PTXSDK_SOAK_FILMS", "1000"))
SENDERS = 4


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_films_none_lost_memory_flat(tmp_path):
    pictures = [
        cv2.resize(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), (512, 512), interpolation=cv2.INTER_AREA)
        for path in sorted((ROOT / "examples").glob("*.jpg"))
    ]

    def send(first):
        with association(node.port) as made:
            for number in range(first, FILMS, SENDERS):
                assert made.send_c_store(dx(pictures[number % len(pictures)], number)).Status == 0

    memory = []
    with (
        Orthanc(tmp_path / "pacs") as pacs,
        Node("--spool", tmp_path / "spool", "--port", 0, "--http", 0, "--forward", pacs.name) as node,
    ):
        started = monotonic()
        with ThreadPoolExecutor(SENDERS) as pool:
            jobs = [pool.submit(send, first) for first in range(SENDERS)]
            received = None
            while (done := node.health()["queue"]["done"]) < FILMS:
                memory.append((done, node.metric("ptxsdk_resident_bytes")))
                assert monotonic() - started < 3000
                if received is None and all(job.done() for job in jobs):
                    received = monotonic() - started
                sleep(1)
            for job in jobs:
                job.result()
        took = monotonic() - started
        kinds = Counter()
        for modality, study, _, _ in pacs.instances():
            kinds[study, modality] += 1
        files = sum(path.is_file() for path in (tmp_path / "spool" / "films").iterdir())
        wait_for(lambda: len(list((tmp_path / "spool" / "films").iterdir())) <= 20, 30, "tidying")
        assert node.stop() == 0
    flagged = len(node.events("scored", outcome="flagged"))
    late = [size for done, size in memory if done > FILMS / 2]
    early = [size for done, size in memory if FILMS / 10 < done <= FILMS / 2]
    report = {
        "films": FILMS,
        "seconds": round(took, 1),
        "received_after_seconds": received and round(received, 1),
        "films_per_second": round(FILMS / took, 2),
        "flagged": flagged,
        "resident_MiB": {"early": round(max(early) / 2**20), "late": round(max(late) / 2**20)},
        "films_in_spool_before_tidying": files,
    }
    print(json.dumps(report))  # noqa: T201 - the figures are for whoever runs it
    studies = {study for study, _ in kinds}
    assert len(studies) == FILMS
    assert all(kinds[study, "OT"] == 1 and kinds[study, "SR"] == 1 for study in studies)
    assert sum(modality == "SEG" for _, modality in kinds) == flagged
    assert max(kinds.values()) == 1
    assert max(late) < 1.15 * max(early)
