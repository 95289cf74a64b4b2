"""Runs a fuzz target: under atheris, or, where it is not installed, on seeded random changes of its seeds.

python tests/fuzz/fuzz_dicom.py -max_total_time=60 build/fuzz/dicom     # atheris: libFuzzer's options
python tests/fuzz/fuzz_dicom.py --runs 10000 --seed 1                   # without it
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
CORPUS = HERE / "corpus"


def corpus(name: str) -> list[bytes]:
    """The inputs that the repository keeps for a target, what was once found among them."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


@contextlib.contextmanager
def bounded(memory: int, seconds: float) -> Iterator[None]:
    """Hold what is done to this growth of the process at its peak, and to this time of the CPU."""
    (Path("/proc/self") / "clear_refs").write_text("5")  # the peak is counted from here on
    before, started = _peak(), time.thread_time()
    try:
        yield
    finally:
        took, grown = time.thread_time() - started, _peak() - before
        assert took < seconds, f"{took:.1f} s"
        assert grown < memory, f"grown by {grown >> 20} MiB"


def _peak() -> int:
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def play(one_input: Callable[[bytes], None], inputs: list[bytes], runs: int, seed: int) -> None:
    """Play the inputs, then `runs` random changes of them."""
    for data in inputs:
        one_input(data)
    choose = random.Random(seed)
    for _ in range(runs):
        data = bytearray(choose.choice(inputs))
        for _ in range(choose.randint(1, 8)):
            kind = choose.randrange(4)
            at = choose.randrange(len(data) + 1)
            if kind == 0 and data:
                data[at % len(data)] = choose.randrange(256)
            elif kind == 1:
                data[at:at] = choose.randbytes(choose.randint(1, 12))
            elif kind == 2:
                del data[at : at + choose.randint(1, 12)]
            else:
                data += choose.randbytes(choose.randint(1, 24))
        one_input(bytes(data))


def main(one_input: Callable[[bytes], None], seeds: Callable[[], list[bytes]], modules: Sequence[ModuleType]) -> None:
    """Run the target as the command line says; `modules` are those whose coverage leads the fuzzer."""
    name = Path(sys.argv[0]).stem.removeprefix("fuzz_")
    if "--runs" in sys.argv:
        parser = argparse.ArgumentParser()
        parser.add_argument("--runs", type=int, required=True)
        parser.add_argument("--seed", type=int, default=0)
        options = parser.parse_args()
        play(one_input, seeds() + corpus(name), options.runs, options.seed)
        return
    import atheris

    for module in modules:
        for value in list(vars(module).values()):
            if getattr(value, "__module__", None) != module.__name__:
                continue
            if isinstance(value, type):
                _instrument_class(atheris, value)
            elif callable(value) and hasattr(value, "__code__"):
                atheris.instrument_func(value)
    with tempfile.TemporaryDirectory() as folder:
        for index, seed in enumerate(seeds()):
            (Path(folder) / f"seed-{index}").write_bytes(seed)
        kept = [str(CORPUS / name)] if (CORPUS / name).is_dir() else []
        folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
        options = [argument for argument in sys.argv[1:] if argument.startswith("-")]
        atheris.Setup([sys.argv[0], *options, *folders, folder, *kept], one_input)
        atheris.Fuzz()


def _instrument_class(atheris: object, cls: type) -> None:
    for value in vars(cls).values():
        function = getattr(value, "__func__", value)
        if callable(function) and hasattr(function, "__code__"):
            atheris.instrument_func(function)
