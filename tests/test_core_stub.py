"""The shipped stub ptxsdk/_core.pyi says what the extension module really has."""

from __future__ import annotations

import ast
import importlib.resources
import re

import pytest

from ptxsdk import _core


def stub():
    return ast.parse((importlib.resources.files("ptxsdk") / "_core.pyi").read_text())


def public(names):
    return {name for name in names if not name.startswith("_")}


def test_py_typed_ships():
    assert (importlib.resources.files("ptxsdk") / "py.typed").is_file()


def test_stub_and_module_have_the_same_names():
    declared = {node.name for node in stub().body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert declared == public(dir(_core))


@pytest.mark.parametrize("node", [n for n in stub().body if isinstance(n, ast.ClassDef)], ids=lambda node: node.name)
def test_classes_have_the_same_members(node):
    declared = {member.name for member in node.body if isinstance(member, ast.FunctionDef)}
    inherited = set(dir(ArithmeticError)) if node.name == "NotFiniteError" else set()
    assert declared == public(set(dir(getattr(_core, node.name))) - inherited)


@pytest.mark.parametrize("node", [n for n in stub().body if isinstance(n, ast.FunctionDef)], ids=lambda node: node.name)
def test_functions_have_the_same_parameters_in_the_same_order(node):
    signature = getattr(_core, node.name).__doc__.splitlines()[0]
    inside = signature[signature.index("(") + 1 : signature.rindex(") ->")]
    found = re.findall(r"(?:^|, )(\*|\w+)(?=: |, |$)", inside)
    keyword_only = ["*"] if node.args.kwonlyargs else []
    arguments = [*(a.arg for a in node.args.args), *keyword_only, *(a.arg for a in node.args.kwonlyargs)]
    assert found == arguments
    defaults = {
        argument.arg: ast.literal_eval(default)
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
        if default is not None
    }
    for name, default in defaults.items():
        shown = re.search(rf"\b{name}: [^=]*= ([^,)]+)", inside)
        assert shown is not None
        assert ast.literal_eval(shown.group(1)) == default
