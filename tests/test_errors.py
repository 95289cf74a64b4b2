"""The error tree: codes are stable, documented, and survive a process boundary."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest

from ptxsdk import CODES, InputError, OutOfScope, PtxsdkError

ROOT = Path(__file__).parents[1]
CLASSES = [*PtxsdkError.__subclasses__()]


def test_every_code_belongs_to_one_class():
    for code in CODES:
        assert sum(code.startswith(cls.family) for cls in CLASSES) == 1, code


@pytest.mark.parametrize("error", [InputError("input.empty", "no bytes"), OutOfScope((("gate.view", "view LL"),))])
def test_errors_can_be_pickled(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (copy.code, copy.message, str(copy)) == (error.code, error.message, str(error))


@pytest.mark.parametrize("code", ["input.unheard_of", "engine.corrupt", ""])
def test_a_code_of_another_family_is_refused(code):
    with pytest.raises(ValueError, match="not an error code"):
        InputError(code, "text")


@pytest.mark.requirement("R-ERROR-1")
def test_every_code_is_documented():
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([a-z_.]+)` \|", page, re.MULTILINE)) == set(CODES)


@pytest.mark.requirement("R-ERROR-1")
def test_every_code_in_the_source_exists_and_every_code_is_used():
    families = "|".join(cls.family[:-1] for cls in CLASSES)
    used = set()
    for path in (ROOT / "ptxsdk").rglob("*.py"):
        if path.name != "errors.py":
            used |= set(re.findall(rf'"((?:{families})\.[a-z_]+)"', path.read_text(encoding="utf-8")))
    assert used == set(CODES)
