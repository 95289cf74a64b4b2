"""Every requirement has a test, every mark a requirement, and docs/trace.md says so."""

from __future__ import annotations

import pytest
import requirements_trace
from requirements_trace import marks, requirements, trace


def test_the_trace_is_up_to_date():
    assert requirements_trace.TRACE.read_text("utf-8") == requirements_trace.page(), "make trace"


def test_marks_are_found_on_tests_and_modules():
    source = """
import pytest
pytestmark = [pytest.mark.slow, pytest.mark.requirement("R-A-1")]

@pytest.mark.requirement("R-A-2", "R-A-3")
@pytest.mark.parametrize("x", [1])
def test_one(x): ...

def test_two(): ...

def helper(): ...
"""
    assert sorted(marks(source)) == [
        ("test_one", "R-A-1"),
        ("test_one", "R-A-2"),
        ("test_one", "R-A-3"),
        ("test_two", "R-A-1"),
    ]


def test_a_requirement_without_a_test_and_an_unknown_id_are_errors():
    texts = requirements("| id | shall |\n|---|---|\n| R-A-1 | do one thing |\n| R-B-2 | do another |\n")
    assert texts == {"R-A-1": "do one thing", "R-B-2": "do another"}
    page = trace(texts, {"R-A-1": ["tests/test_a.py::test_x"], "R-B-2": ["tests/test_b.py::test_y"]})
    assert "shall do one thing.\n\n- `tests/test_a.py::test_x`" in page
    with pytest.raises(ValueError, match=r"no test for: \['R-B-2'\]"):
        trace(texts, {"R-A-1": ["x"]})
    with pytest.raises(ValueError, match=r"no such requirement: \['R-C-1'\]"):
        trace(texts, {"R-A-1": ["x"], "R-B-2": ["y"], "R-C-1": ["z"]})
    with pytest.raises(ValueError, match="twice"):
        requirements("| R-A-1 | a |\n| R-A-1 | b |\n")
