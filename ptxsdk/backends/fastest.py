"""Which arithmetic runs a network fastest on this device: measured once, remembered for the next start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter

from ptxsdk.errors import WriterError
from ptxsdk.files import write_file
from ptxsdk.manifest import Arithmetic

_LOGGER = logging.getLogger("ptxsdk")

ENVIRONMENT = "PTXSDK_CACHE"
RUNS = 15
MARGIN = 0.95
"""A less exact arithmetic is taken only if it needs less than this share of the time."""
_MAX_BYTES = 4096


def cache_folder() -> Path | None:
    """Return where measurements are kept: ``$PTXSDK_CACHE``, else ``ptxsdk`` in the user's cache folder.

    None where the variable is set and empty, or there is no such folder: nothing is kept then.
    """
    if (stated := os.environ.get(ENVIRONMENT)) is not None:
        return Path(stated) if stated else None
    with contextlib.suppress(RuntimeError):  # no home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ptxsdk"
    return None


def fastest(candidates: Mapping[Arithmetic, Callable[[], object]], setting: Mapping[str, str]) -> Arithmetic:
    """Return the arithmetic that runs fastest; remembered ones are not measured again.

    What is remembered is a choice among candidates that are all allowed, so that a file somebody tampered with can
    cost speed and nothing else.

    Parameters
    ----------
    candidates : mapping of str to callable
        By arithmetic, the most exact first: a run of the network.
    setting : mapping of str to str
        All that the speed depends on: engine, runtime, processor, threads.
    """
    names = list(candidates)
    if len(names) == 1:
        return names[0]
    key = hashlib.sha256(json.dumps([setting, names], sort_keys=True).encode()).hexdigest()
    folder = cache_folder()
    path = None if folder is None else folder / f"precision-{key[:32]}.json"
    remembered = _read(path, names)
    if remembered is not None:
        return remembered
    times = _measure(candidates)
    chosen = names[0]
    for name in names[1:]:
        if times[name] < MARGIN * times[chosen]:
            chosen = name
    _LOGGER.info("precision %s: %s", chosen, ", ".join(f"{name} {1e3 * times[name]:.2f} ms" for name in names))
    if path is not None:
        note = {"chosen": chosen, "milliseconds": {name: round(1e3 * times[name], 3) for name in names}, **setting}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(note, indent=1).encode())
        except (OSError, WriterError) as error:
            _LOGGER.info("the choice of precision is not remembered: %s", error)
    return chosen


def _measure(candidates: Mapping[Arithmetic, Callable[[], object]]) -> dict[Arithmetic, float]:
    """Return the median time of each, in seconds; runs take turns, so that a busy moment hits all."""
    times: dict[Arithmetic, list[float]] = {name: [] for name in candidates}
    for turn in range(RUNS + 2):
        for name, run in candidates.items():
            started = perf_counter()
            run()
            if turn >= 2:
                times[name].append(perf_counter() - started)
    return {name: median(own) for name, own in times.items()}


def _read(path: Path | None, names: Sequence[Arithmetic]) -> Arithmetic | None:
    """Return what is remembered; None where there is nothing, or nothing that makes sense."""
    if path is None:
        return None
    try:
        with path.open("rb") as stream:
            chosen = json.loads(stream.read(_MAX_BYTES))["chosen"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return next((name for name in names if name == chosen), None)
