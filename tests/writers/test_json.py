"""The JSON line: the contracted keys, and failures."""

from __future__ import annotations

import json

from made import make_chest

from ptxsdk import InputError
from ptxsdk.writers.json import json_content, to_line


def test_one_line_that_any_parser_reads(detector):
    line = to_line("fïlm.dcm", detector.predict(make_chest(blob=(250, 150, 60))))
    assert "\n" not in line
    body = json.loads(line)
    assert next(iter(body)) == "file"
    assert body["file"] == "fïlm.dcm"
    assert len(body["regions"][0]["box"]) == 4


def test_a_failure(detector):
    assert json.loads(to_line("x", InputError("input.empty", "no bytes"))) == {
        "file": "x",
        "error": {"code": "input.empty", "message": "no bytes"},
    }


def test_the_file_is_the_line(detector):
    detection = detector.predict(make_chest())
    assert json_content("a", detection).decode() == to_line("a", detection) + "\n"
