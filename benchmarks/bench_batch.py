"""Does predict_batch bring more films a second than predict, film after film, on the same cores?

64 films: DICOM files with JPEG pixels, read from disk as a worklist is; and 3000 x 2500 uint16 arrays in memory, where
preprocessing and network already use all cores for each film.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from measure import HIGH, LOW, Measurement, golden_film, interleaved, write_json

from ptxsdk import Detector, Engine, Radiograph

EXAMPLE = Path(__file__).parents[1] / "examples" / "00008841_025.dcm"


def main() -> None:
    """Run, print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--films", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    engine = Engine.open(Engine.default_path())
    memory = Radiograph.from_array(golden_film(engine), window=(LOW, HIGH))
    report: dict[str, Measurement] = {}
    ratios = {}
    for precision in [each for each in engine.precisions if each != "fp16"]:
        detector = Detector(engine, precision=precision)
        for what, image in (("DICOM files", EXAMPLE), ("arrays in memory", memory)):
            images = [image] * options.films
            candidates: dict[str, Callable[[], object]] = {
                "one by one": lambda images=images, detector=detector: [detector.predict(each) for each in images],
                "batch": lambda images=images, detector=detector: detector.predict_batch(images),
            }
            measured = interleaved(candidates, options.repeats)
            single, batch = measured.values()
            name = f"{precision}, {what}"
            ratios[name] = round(single.median / batch.median, 3)
            rates = [1e3 * options.films / each.median for each in (single, batch)]
            print(f"{name:26}{rates[0]:8.1f} films/s one by one{rates[1]:8.1f} in a batch{ratios[name]:7.2f} x")
            report |= {f"{name}, {how}": own for how, own in measured.items()}
    if options.json:
        facts = {"films": options.films, "cores": os.cpu_count(), "engine": engine.id.sha256}
        write_json(options.json, report, **facts, times_the_films_per_second=ratios)


if __name__ == "__main__":
    main()
