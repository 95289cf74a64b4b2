"""Write docs/trace.md: which tests prove which requirement, read from the marks in the tests.

A mark is ``@pytest.mark.requirement("R-INPUT-1")`` on a test, or ``pytestmark`` of a module.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "requirements.md"
TRACE = ROOT / "docs" / "trace.md"
TESTS = ROOT / "tests"


def requirements(page: str) -> dict[str, str]:
    """Return text by id, in the page's order.

    Raises
    ------
    ValueError
        An id occurs twice.
    """
    found = re.findall(r"^\| (R-[A-Z]+-\d+) \| (.+) \|$", page, re.MULTILINE)
    if len(dict(found)) < len(found):
        raise ValueError("an id occurs twice")
    return dict(found)


def marks(source: str) -> Iterator[tuple[str, str]]:
    """Yield ``(test, id)`` of every mark in a module."""
    tree = ast.parse(source)
    tests = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    ]
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in node.targets):
            for test in tests:
                yield from ((test.name, each) for each in _ids(node.value))
    for test in tests:
        for decorator in test.decorator_list:
            yield from ((test.name, each) for each in _ids(decorator))


def _ids(expression: ast.expr) -> Iterator[str]:
    for node in ast.walk(expression):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.requirement":
            yield from (ast.literal_eval(argument) for argument in node.args)


def trace(texts: Mapping[str, str], proofs: Mapping[str, Sequence[str]]) -> str:
    """Return the page.

    Raises
    ------
    ValueError
        A requirement without a test, or a mark that names none.
    """
    unknown = sorted(proofs.keys() - texts.keys())
    unproved = [each for each in texts if not proofs.get(each)]
    if unknown or unproved:
        raise ValueError(f"no such requirement: {unknown}; no test for: {unproved}")
    lines = [
        "# Requirements and their tests",
        "",
        "Made by `make trace` from [requirements.md](requirements.md) and the marks in `tests/`; not to be edited.",
    ]
    for each, text in texts.items():
        lines += ["", f"## {each}", "", f"ptxsdk shall {text}.", ""]
        lines += [f"- `{test}`" for test in proofs[each]]
    return "\n".join(lines) + "\n"


def page() -> str:
    """Return the trace as it must be."""
    proofs: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for test, each in marks(path.read_text("utf-8")):
            proofs.setdefault(each, []).append(f"{path.relative_to(ROOT)}::{test}")
    return trace(requirements(PAGE.read_text("utf-8")), proofs)


def main() -> None:
    """Write the page, or with --check say whether it is up to date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 where it is not up to date")
    if parser.parse_args().check:
        if TRACE.read_text("utf-8") != page():
            raise SystemExit("docs/trace.md is not up to date: make trace")
    else:
        TRACE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
