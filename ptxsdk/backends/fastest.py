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
from typing import Protocol, TypeVar

from ptxsdk.errors import BackendError, WriterError
from ptxsdk.files import cache_folder, write_file
from ptxsdk.manifest import Arithmetic

_LOGGER = logging.getLogger("ptxsdk")

RUNS = 15
MARGIN = 0.95
"""A less exact arithmetic is taken only if it needs less than this share of the time."""
_MAX_BYTES = 4096


class Runs(Protocol):
    """What can be timed: a loaded network."""

    def infer(self) -> object:
        """Run the network."""
        ...

    def close(self) -> None:
        """Release it."""
        ...


R = TypeVar("R", bound=Runs)


def fastest(candidates: Mapping[Arithmetic, Callable[[], R]], setting: Mapping[str, str]) -> R:
    """Load a network in the arithmetic that runs fastest; what is remembered is not measured again.

    What is remembered is a choice among candidates that are all allowed, so that a file somebody tampered with can
    cost speed and nothing else.

    Parameters
    ----------
    candidates : mapping of str to callable
        By arithmetic, the most exact first: loads the network.
    setting : mapping of str to str
        All that the speed depends on: engine, runtime, processor, threads.
    """
    names = list(candidates)
    if len(names) == 1:
        return candidates[names[0]]()
    key = hashlib.sha256(json.dumps([setting, names], sort_keys=True).encode()).hexdigest()
    folder = cache_folder("precision")
    path = None if folder is None else folder / f"{key[:32]}.json"
    remembered = _read(path, names)
    if remembered is not None:
        with contextlib.suppress(BackendError):
            return candidates[remembered]()
    loaded: dict[Arithmetic, R] = {}
    for name, load in candidates.items():
        try:
            loaded[name] = load()
            loaded[name].infer()
        except BackendError as error:
            if name in loaded:
                loaded.pop(name).close()
            if name == names[0]:
                raise
            _LOGGER.warning("%s is not used here: %s", name, error.message)
    times = _measure(loaded)
    names = list(loaded)
    chosen = names[0]
    for name in names[1:]:
        if times[name] < MARGIN * times[chosen]:
            chosen = name
    for name in names:
        if name != chosen:
            loaded[name].close()
    milliseconds = {name: round(1e3 * times[name], 3) for name in names}
    _LOGGER.info("precision %s of %s ms", chosen, milliseconds)
    if path is not None:
        note = {"chosen": chosen, "milliseconds": milliseconds, **setting}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, json.dumps(note, indent=1).encode())
        except (OSError, WriterError) as error:
            _LOGGER.info("the choice of precision is not remembered: %s", error)
    return loaded[chosen]


def _measure(loaded: Mapping[Arithmetic, Runs]) -> dict[Arithmetic, float]:
    """Return the median time of each, in seconds; runs take turns, so that a busy moment hits all."""
    times: dict[Arithmetic, list[float]] = {name: [] for name in loaded}
    for turn in range(RUNS + 2):
        for name, network in loaded.items():
            started = perf_counter()
            network.infer()
            if turn >= 2:
                times[name].append(perf_counter() - started)
    return {name: median(own) for name, own in times.items()}


def _read(path: Path | None, names: Sequence[Arithmetic]) -> Arithmetic | None:
    """Return what is remembered; None where there is nothing, or nothing that makes sense."""
    if path is None:
        return None
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe must not block
        with os.fdopen(descriptor, "rb") as stream:
            chosen = json.loads(stream.read(_MAX_BYTES) or b"")["chosen"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return next((name for name in names if name == chosen), None)
