"""What takes a film from its pixels to regions: stage by stage on the host, or as one CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ptxsdk import gate
from ptxsdk.backends import Backend
from ptxsdk.device_array import DeviceArray
from ptxsdk.engine import Engine
from ptxsdk.errors import BackendError, InputError
from ptxsdk.geometry import Geometry
from ptxsdk.ops import preprocess_into
from ptxsdk.ops.aggregate import Aggregate, aggregate, regions_of
from ptxsdk.radiograph import Display

Floats = npt.NDArray[np.float32]
Check = Callable[[Floats], None]

_LOGGER = logging.getLogger("ptxsdk")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a film went through, until the next film of the same pipeline.

    Attributes
    ----------
    geometry : Geometry
        Where the film lies in the network's input.
    logits : callable
        Returns patch and mask logits, float32; on a device it may have to fetch them.
    preprocess, gate, network : float
        Seconds.  On a device everything between upload and results is one graph, whose time stands in ``network``, and
        the upload's in ``preprocess``.
    result : ndarray or None
        What the CUDA twin of aggregate wrote; None where aggregation is still to be done.
    """

    geometry: Geometry
    logits: Callable[[], tuple[Floats, Floats]] = field(repr=False)
    preprocess: float
    gate: float
    network: float
    result: npt.NDArray[np.uint8] | None = field(default=None, repr=False)

    def aggregate(self, **options: Any) -> Aggregate:
        """Image logit and regions; options as in `ptxsdk.ops.aggregate`, without the geometry.

        Raises
        ------
        BackendError
            ``backend.not_finite``.
        """
        if self.result is None:
            return aggregate(*self.logits(), geometry=self.geometry, **options)
        return regions_of(self.result, self.logits, geometry=self.geometry, **options)


class Pipeline(Protocol):
    """Takes films one after the other; not thread-safe."""

    def run(self, pixels: Any, display: Display, *, check: Check | None = None) -> Run:
        """Preprocess a film and run the network.

        Parameters
        ----------
        pixels : ndarray or DeviceArray, shape (rows, columns)
            Stored values.
        display : Display
            From stored to display values.
        check : callable, optional
            Gets the picture that `ptxsdk.gate.sample` makes, and raises where the film must not be scored; then nothing
            of the film comes out.

        Raises
        ------
        InputError
            ``input.not_finite``, ``input.unsupported``; ``input.device`` and others for device arrays.
        BackendError
            ``backend.*``.
        """
        ...

    def close(self) -> None:
        """Release what the pipeline owns, not the network; idempotent."""
        ...


class HostPipeline:
    """preprocess on the CPU, the network wherever its backend runs it, aggregate on the CPU.

    Parameters
    ----------
    backend : Backend
        The network.
    engine : Engine
        Its engine.
    threads : int
        For preprocessing, as in `ptxsdk.ops.preprocess`.
    """

    def __init__(self, backend: Backend, engine: Engine, *, threads: int) -> None:
        self._backend = backend
        self._contract = engine.manifest.input
        self._threads = threads

    def run(self, pixels: Any, display: Display, *, check: Check | None = None) -> Run:
        """See `Pipeline.run`; a film that `check` refuses never reaches the network."""
        if isinstance(pixels, DeviceArray):
            raise InputError(
                "input.device", f"the array lies on cuda:{pixels.device}, this detector runs on {self._backend.device}"
            )
        started = perf_counter()
        tensor, contract = self._backend.input, self._contract
        geometry = preprocess_into(
            tensor, pixels, display=display, mean=contract.mean, std=contract.std, threads=self._threads
        )
        preprocessed = perf_counter()
        if check is not None:
            check(gate.sample(tensor, geometry, contract.mean, contract.std))
        checked = perf_counter()
        logits = self._backend.infer()
        return Run(
            geometry=geometry,
            logits=lambda: logits,
            preprocess=preprocessed - started,
            gate=checked - preprocessed,
            network=perf_counter() - checked,
        )

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


def pipeline_around(backend: Backend, engine: Engine, *, threads: int, locate: bool) -> Pipeline:
    """Return the fastest pipeline around a loaded network: one CUDA graph where its backend offers that.

    Parameters
    ----------
    backend : Backend
        The network.
    engine : Engine
        Its engine.
    threads : int
        For preprocessing on the CPU.
    locate : bool
        Whether maps and outlines are wanted.
    """
    film_graph = getattr(backend, "film_graph", None)
    if film_graph is not None:
        try:
            made: Pipeline = film_graph(locate=locate)
        except BackendError as error:
            _LOGGER.warning("preprocessing and aggregation stay on the CPU: %s", error.message)
        else:
            return made
    return HostPipeline(backend, engine, threads=threads)
