"""Metrics: counters since the start, written out in the text format of Prometheus."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable

Labels = tuple[tuple[str, str], ...]

_HELP = {
    "ptxsdk_received_total": ("counter", "Objects by what became of the C-STORE or the dropped file."),
    "ptxsdk_received_bytes_total": ("counter", "Bytes taken into the queue."),
    "ptxsdk_associations_total": ("counter", "Associations by outcome."),
    "ptxsdk_films_total": ("counter", "Films by outcome and error code."),
    "ptxsdk_scoring_seconds_total": ("counter", "Time spent on films: reading, scoring, writing results."),
    "ptxsdk_deliveries_total": ("counter", "Attempts to deliver a film's results, by destination and outcome."),
    "ptxsdk_queue_films": ("gauge", "Films in the spool by state."),
    "ptxsdk_queue_oldest_seconds": ("gauge", "Age of the oldest film that waits for its score or its delivery."),
    "ptxsdk_associations_open": ("gauge", "Associations open now."),
    "ptxsdk_disk_free_bytes": ("gauge", "Room on the spool's disk."),
    "ptxsdk_resident_bytes": ("gauge", "Resident memory of the node."),
    "ptxsdk_up": ("gauge", "1 where every part of the node is at work."),
}


class Metrics:
    """Counters, safe to call from every thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))

    def add(self, name: str, value: float = 1, /, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counters[name][tuple(sorted(labels.items()))] += value

    def render(self, gauges: Iterable[tuple[str, dict[str, str], float]] = ()) -> str:
        """Return counters and `gauges` (name, labels, value) as text."""
        with self._lock:
            found = {name: dict(entries) for name, entries in self._counters.items()}
        for name, labels, value in gauges:
            found.setdefault(name, {})[tuple(sorted(labels.items()))] = value
        lines: list[str] = []
        for name, (kind, text) in _HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [f"{name}{_labels(labels)} {value:.10g}" for labels, value in sorted(found.get(name, {}).items())]
        return "\n".join(lines) + "\n"


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = ((name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels)
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"
