"""``import ptxsdk`` is light, silent and complete."""

from __future__ import annotations

import subprocess
import sys

import ptxsdk


def test_import_loads_numpy_and_nothing_heavy(tmp_path):
    code = (
        "import sys; before = set(sys.modules); import ptxsdk;"
        "loaded = {name.split('.')[0] for name in set(sys.modules) - before};"
        "print(sorted(n for n in loaded if n not in sys.stdlib_module_names and not n.startswith('_')))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "['numpy', 'ptxsdk']"
    assert run.stderr == ""


def test_the_public_names_exist_and_have_docstrings():
    for name in ptxsdk.__all__:
        if name not in ("__version__", "CODES"):
            assert getattr(ptxsdk, name).__doc__, name


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert ptxsdk.__version__ == version("ptxsdk")
