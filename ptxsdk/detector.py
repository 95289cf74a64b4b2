"""Detector: one film in, one detection out.  The pipeline, nothing else."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from types import TracebackType
from typing import Any, Literal, TypeVar, cast, overload

import numpy as np
import numpy.typing as npt

from ptxsdk import audit as audit_log
from ptxsdk import backends, gate, readers
from ptxsdk import rollback as rollback_state
from ptxsdk.deadline import NO_DEADLINE, Deadline, within
from ptxsdk.detection import Check, Detection, OperatingPoint, Profile, Quality, Timings
from ptxsdk.device_array import DeviceArray, finished, is_device_array
from ptxsdk.engine import Engine, GoldenVector
from ptxsdk.errors import AuditError, BackendError, DetectorError, EngineError, InputError, PtxsdkError
from ptxsdk.gate import GatePolicy
from ptxsdk.pipeline import Pipeline, Run, pipeline_around
from ptxsdk.radiograph import Display, Radiograph, Window, check_pixels
from ptxsdk.readers.limits import Limits
from ptxsdk.readers.reading import Decode, Reading

_LOGGER = logging.getLogger("ptxsdk")
_CLOSE_SECONDS = 5.0
_PRODUCER_SECONDS = 60.0
_ORIENTATION_ASSUMED = "orientation.assumed: no patient orientation, the usual display is assumed"


M = TypeVar("M", bound=Callable[..., Any])


def _refusals_recorded(init: M) -> M:
    """Have the audit log know of a detector that did not start."""

    @functools.wraps(init)
    def recorded(self: Detector, *arguments: Any, **options: Any) -> None:
        options["audit"] = chain = audit_log.chain_of(options.get("audit"))
        try:
            init(self, *arguments, **options)
        except AuditError:
            raise
        except PtxsdkError as error:
            if chain is not None:
                audit_log.record_refusal(chain, error)
            raise

    return cast("M", recorded)


class Detector:
    """Detects and localizes pneumothorax on frontal chest radiographs.

    Loading, warm-up and the self-test happen in the constructor: the first film waits for none of them.
    One detector may be called from many threads: calls wait for each other.  For parallel use, give every thread
    a `clone`, which shares the engine and the compiled network: films are then read, preprocessed and aggregated
    side by side, while the network, compiled for the latency of one film, gives all cores to one film at a time.
    A detector does not survive ``os.fork``.

    Parameters
    ----------
    engine : path, bytes or Engine, optional
        A ``.ptxengine``; default: the engine that ships in the wheel.
    device : str
        "auto", "cpu" or "cuda[:N]".  A device asked for by name that is not usable, or is lost later, raises; under
        "auto" (with ``backend="auto"``) the detector then goes on on the CPU and its Detections say so.
    backend : str
        "auto", "openvino", "tensorrt" or "onnxruntime".
    precision : {"auto", "fp32", "fp16", "int8"}
        "auto" takes what runs fastest on this device, measured once, among what passed the engine's accuracy gate and
        reproduces its golden film here.
    operating_point : str, optional
        Name of one of the engine's operating points; default: the engine's own default.
    profile : {"cade", "triage"}
        What results may show.  "triage": flag and probability, never a location.
    gate_policy : GatePolicy, optional
        What the input gate lets through; ``GatePolicy(enforce=False)``, for research, marks films it would refuse.
    threads : int
        CPU threads for network and preprocessing; 0: one per core.
    trusted_keys : sequence of bytes, optional
        Ed25519 public keys, 32 raw bytes or PEM.  If given, the engine must be signed by one of them; an empty
        sequence trusts no engine.
    require_signature : bool
        Refuse every engine where `trusted_keys` is None, so that a forgotten key list cannot switch the check off.
    rollback : path or RollbackCounter, optional
        Where this device keeps the highest security version it has accepted: a `RollbackFile` by its path, or a
        counter of the host's.  Needs `trusted_keys`.  Older engines are refused; the number is raised once a newer one
        has passed its self-test.
    audit : AuditChain or callable, optional
        Gets a record of every start and every film, scored or not: an `AuditFile`, or a sink as in `AuditChain`.  A
        sink that fails means that no result is returned.
    limits : Limits, optional
        What the reading of one film may take of size, time and memory.
    decode : {"helper", "in_process"}
        Where the codecs of compressed films run: in a helper process, which is started with the first such film and
        takes nobody with it when it hangs or crashes; or in this process, for films that are trusted.

    Raises
    ------
    EngineError
        The engine file cannot be trusted or used, or fails its self-test on this device.
    BackendError
        Device or backend cannot be used.
    DetectorError
        ``detector.option``: an option has a value that does not exist.
    AuditError
        The audit log cannot be kept.
    """

    @_refusals_recorded
    def __init__(
        self,
        engine: str | os.PathLike[str] | bytes | Engine | None = None,
        *,
        device: str = "auto",
        backend: str = "auto",
        precision: str = "auto",
        operating_point: str | None = None,
        profile: Profile = "cade",
        gate_policy: GatePolicy | None = None,
        threads: int = 0,
        trusted_keys: Sequence[bytes] | None = None,
        require_signature: bool = False,
        rollback: str | os.PathLike[str] | rollback_state.RollbackCounter | None = None,
        audit: audit_log.AuditChain | audit_log.Sink | None = None,
        limits: Limits | None = None,
        decode: Decode = "helper",
    ) -> None:
        if profile not in ("cade", "triage"):
            raise DetectorError("detector.option", f"profile {profile!r} is not cade or triage")
        if engine is None:
            engine = Engine.default_path()
        if gate_policy is not None and not isinstance(gate_policy, GatePolicy):
            raise DetectorError("detector.option", "gate_policy is not a GatePolicy")
        if trusted_keys is not None and not isinstance(trusted_keys, Iterable):
            raise DetectorError("detector.option", "trusted_keys are not several keys")
        signed = require_signature or trusted_keys is not None
        counter = rollback_state.counter_of(rollback, signed=signed)
        if limits is not None and not isinstance(limits, Limits):
            raise DetectorError("detector.option", "limits are not Limits")
        if decode not in ("helper", "in_process"):
            raise DetectorError("detector.option", f"decode {decode!r} is not helper or in_process")
        if not isinstance(engine, Engine):
            engine = Engine.open(engine, trusted_keys=trusted_keys or (), require_signature=signed)
        elif signed:
            engine = engine.verified(trusted_keys or ())
        if counter is not None:
            rollback_state.check(counter, engine)
        self._engine = engine
        self._profile = profile
        self._policy = gate_policy or GatePolicy()
        self._reading = Reading(limits or Limits(), decode)
        self._threads = threads
        self._operating_point = _choose_operating_point(engine, operating_point)
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._closed = False
        self._crew: tuple[Detector, ...] = ()
        self._may_fall_back = device == "auto" and backend == "auto"
        self._fallen: tuple[str, ...] = ()
        self._reserve: tuple[backends.Backend, Pipeline] | None = None
        self._use(backends.load(engine, backend=backend, device=device, precision=precision, threads=threads))
        readers.load()
        gate.load()
        try:
            self.self_test(vectors=1)
        except (EngineError, BackendError) as error:
            exact = engine.precisions[0]
            if precision != "auto" or self._backend.precision == exact:
                raise
            _LOGGER.warning("%s: going on in %s", error.message, exact)
            _let_go(self._pipeline, self._backend)
            self._use(backends.load(engine, backend=backend, device=device, precision=exact, threads=threads))
            self.self_test(vectors=1)
        if counter is not None:
            rollback_state.accept(counter, engine)
        self._auditor: audit_log.Auditor | None = None
        if audit is not None:
            self._auditor = audit_log.Auditor.of(
                cast("audit_log.AuditChain", audit),
                engine,
                self._policy,
                point=self._operating_point,
                profile=profile,
                precision=self.precision,
                backend=self.backend,
                device=self._backend.device,
            )
            self._auditor.started()

    def _use(self, backend: backends.Backend) -> None:
        """Run the network on `backend` from here on."""
        self._backend, self._pipeline = backend, self._pipeline_around(backend)

    def _pipeline_around(self, backend: backends.Backend) -> Pipeline:
        return pipeline_around(backend, self._engine, threads=self._threads, locate=self._profile == "cade")

    @property
    def engine(self) -> Engine:
        """The engine in use."""
        return self._engine

    @property
    def backend(self) -> str:
        """Name of the backend that runs the network."""
        return self._backend.name

    @property
    def precision(self) -> str:
        """Precision that the network runs in."""
        return self._backend.precision

    def predict(self, image: object, *, timeout: float | None = None) -> Detection:
        """Score one film.

        Parameters
        ----------
        image : path, bytes, pydicom Dataset, ndarray, device array or Radiograph
            DICOM (CR, DX), PNG, JPEG or TIFF by path or content; arrays as in `Radiograph.from_array`.  An array on a
            CUDA device needs a detector on that device.
        timeout : float, optional
            Seconds after which the call returns, whatever the film, the disk or the device does (an audit sink is
            waited for).  Work then given up
            is stopped at its next stage, a codec at once; a network that is running cannot be stopped, its result is
            thrown away, and the next call waits for its end within its own time.  Memory of the caller's is copied
            first, but for arrays on a device, which must live on until the detector is called again or closed.

        Returns
        -------
        Detection
            Regions in source pixels: origin at the outer corner of the first pixel, x right, y down.

        Raises
        ------
        InputError
            The input is not a film that can be read.
        OutOfScope
            The input gate refuses the film; it is never scored.  It names every check that failed: those of the header
            before any pixel is touched, else those of the picture.
        BackendError
            The network failed or produced numbers that are not finite.
        EngineError
            ``engine.self_test``: a GPU was lost, and the CPU, which was to go on, does not reproduce the golden films.
        DetectorError
            ``detector.closed`` or ``detector.forked``; ``detector.timeout``; ``detector.busy``: another film held the
            detector for all of that time; ``detector.option``: the timeout is no number of seconds;
            ``detector.internal``: a defect of ours.
        AuditError
            The film's record could not be kept; its score is not returned.
        """
        return self.read_and_predict(image, timeout=timeout)[1]

    def read_and_predict(self, image: object, *, timeout: float | None = None) -> tuple[Radiograph, Detection]:
        """Score one film as `predict` does, and return it as well, for what needs both: DICOM results, overlays.

        Parameters
        ----------
        image, timeout
            As `predict`.

        Returns
        -------
        Radiograph
            The film as it was read.
        Detection
            As `predict`.

        Raises
        ------
        PtxsdkError
            As `predict`.
        """
        self._check_usable()
        try:
            _check_timeout(timeout)
            if timeout is None:
                film, detection = self._read_and_score(image, NO_DEADLINE)
            else:
                deadline = Deadline(timeout)
                owned = _own(image, self._reading.limits, timeout)
                film, detection = within(deadline, lambda deadline: self._read_and_score(owned, deadline))
        except MemoryError:
            failure = _no_memory()
            self.record_failure(failure)
            raise failure from None
        except Exception as error:
            self.record_failure(error)
            raise
        if self._auditor is not None:
            self._auditor.scored(detection)
        return film, detection

    def _read_and_score(self, image: object, deadline: Deadline) -> tuple[Radiograph, Detection]:
        started = perf_counter()
        if isinstance(image, PtxsdkError):  # of `_own`
            raise image
        film = readers.read_as(image, replace(self._reading, deadline=deadline))
        header_started = perf_counter()
        checks = gate.check_header(film, self._policy)
        self._enforce(checks)
        header_ended = perf_counter()
        with deadline.holding(self._lock):
            self._check_usable()
            return film, self._score(
                film, checks, started, deadline, read=header_started - started, header=header_ended - header_started
            )

    @overload
    def predict_batch(
        self, images: Iterable[object], *, errors: Literal["raise"] = ..., timeout: float | None = ...
    ) -> list[Detection]: ...
    @overload
    def predict_batch(
        self, images: Iterable[object], *, errors: Literal["return"], timeout: float | None = ...
    ) -> list[Detection | PtxsdkError]: ...
    def predict_batch(
        self,
        images: Iterable[object],
        *,
        errors: Literal["raise", "return"] = "raise",
        timeout: float | None = None,
    ) -> list[Detection] | list[Detection | PtxsdkError]:
        """Score many films side by side; results are those of `predict`, on CPUs bit for bit (docs/determinism.md).

        The first batch of two films or more compiles the network again, for throughput: streams that each take a film
        through the whole pipeline.  `predict` and its latency stay as they are.

        Parameters
        ----------
        images : iterable
            Each as in `predict`; taken as they are needed.
        errors : {"raise", "return"}
            "raise": the first failure, in the order of `images`, ends the batch.  "return": its error stands in the
            failing film's place.
        timeout : float, optional
            Seconds for each film, from when its turn comes; as in `predict`.

        Returns
        -------
        list of Detection (and PtxsdkError)
            In the order of `images`.

        Raises
        ------
        PtxsdkError
            As `predict`, with ``errors="raise"``.  Always for an option that is none, for a detector that is closed,
            forked or busy, and where the clones that share the work cannot be made.
        """
        if errors not in ("raise", "return"):
            raise DetectorError("detector.option", f"errors {errors!r} is not raise or return")
        if not _are_several(images):
            raise DetectorError("detector.option", "predict_batch takes several films; give a list")
        _check_timeout(timeout)
        self._check_usable()
        limits = self._reading.limits
        # A batch reads ahead, and producers use buffers again.
        films = (_own(image, limits, timeout) for image in images)
        first = list(itertools.islice(films, 2))
        if len(first) < 2:
            return [self._predict_or_return(self, image, errors, timeout) for image in first]
        return self._predict_side_by_side(itertools.chain(first, films), errors, timeout)

    def _predict_side_by_side(
        self, films: Iterator[object], errors: Literal["raise", "return"], timeout: float | None
    ) -> list[Detection | PtxsdkError]:
        crew = self._hire(timeout)
        free: queue.SimpleQueue[Detector] = queue.SimpleQueue()
        for member in crew:
            free.put(member)

        def work(image: object) -> Detection | PtxsdkError:
            member = free.get()
            try:
                self._check_usable()
                return self._predict_or_return(member, image, errors, timeout)
            finally:
                free.put(member)

        results: list[Detection | PtxsdkError] = []
        pool = ThreadPoolExecutor(len(crew), thread_name_prefix="ptxsdk")
        try:
            waiting = deque(pool.submit(work, image) for image in itertools.islice(films, 2 * len(crew)))
            while waiting:
                results.append(waiting.popleft().result())
                waiting.extend(pool.submit(work, image) for image in itertools.islice(films, 1))
        finally:
            pool.shutdown(cancel_futures=True)
        return results

    @staticmethod
    def _predict_or_return(
        detector: Detector, image: object, errors: Literal["raise", "return"], timeout: float | None
    ) -> Detection | PtxsdkError:
        try:
            return detector.predict(image, timeout=timeout)
        except PtxsdkError as error:
            of_the_film = not isinstance(error, DetectorError) or error.code in ("detector.timeout", "detector.busy")
            if errors == "return" and of_the_film:
                return error
            raise

    def _hire(self, timeout: float | None) -> tuple[Detector, ...]:
        """Return the detectors that score a batch: each takes a film through the pipeline on one thread."""
        with Deadline(timeout).holding(self._lock):
            self._check_usable()
            if not self._crew:
                fallen = self._fallen
                try:
                    hired = self._backend.crew()
                except BackendError as error:
                    if error.code == "backend.out_of_memory":  # batches go to the CPU, `predict` stays where it is
                        fallen = (self._fallback(error),)
                        hired = self._reserve_for(error)[0].crew()
                    else:
                        self._fall_back(error)
                        fallen, hired = self._fallen, self._backend.crew()
                crew = tuple(self._twin(backend, threads=1) for backend in hired)
                for member in crew:
                    member._fallen = fallen  # noqa: SLF001 - of this class
                try:
                    crew[0].self_test(vectors=1)
                except PtxsdkError:
                    for member in crew:
                        member.close()
                    raise
                self._crew = crew
            return self._crew

    def self_test(self, *, vectors: int | None = None) -> int:
        """Run the engine's golden films through preprocessing and network and compare with what they must give.

        Parameters
        ----------
        vectors : int, optional
            How many of them; default all.

        Returns
        -------
        int
            The number of films compared.

        Raises
        ------
        EngineError
            ``engine.self_test``, with film, deviation and tolerance.
        """
        golden = self._engine.golden()[:vectors]
        self._check_usable()
        with self._lock:
            self._check_usable()
            self._compare(golden, self._pipeline, self._backend)
        return len(golden)

    def _compare(self, golden: Sequence[GoldenVector], pipeline: Pipeline, backend: backends.Backend) -> None:
        """Hold what golden films give here against what they must give."""
        for film in golden:
            run = pipeline.run(film.pixels, Display(voi=Window.from_range(*film.window)))
            patch, mask = run.logits()
            probability = self._engine.manifest.calibration.probability(
                run.aggregate(**self._engine.manifest.scoring, want_outlines=False).logit
            )
            tolerance = film.tolerance[backend.precision]
            deviations = (
                ("patch logits", float(np.abs(patch - film.patch_logits).max()), tolerance.logits),
                ("mask logits", float(np.abs(mask - film.mask_logits).max()), tolerance.logits),
                ("probability", abs(probability - film.probability), tolerance.probability),
            )
            for name, deviation, allowed in deviations:
                if not deviation <= allowed:
                    raise EngineError(
                        "engine.self_test",
                        f"golden film {film.name!r} on {backend.name} {backend.precision}: {name} "
                        f"off by {deviation:.3g}, tolerance {allowed:.3g}",
                    )

    def clone(self) -> Detector:
        """Return a detector for another thread; engine and compiled network are shared, buffers are not.

        Raises
        ------
        DetectorError
            ``detector.closed`` or ``detector.forked``.
        BackendError
            There is no memory for the buffers, or the device was lost.
        """
        self._check_usable()
        with self._lock:
            self._check_usable()
            return self._twin(self._backend.clone(), threads=self._threads)

    def _twin(self, backend: backends.Backend, *, threads: int) -> Detector:
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin._lock = threading.Lock()
        twin._threads = threads
        twin._closed = False
        twin._crew = ()
        twin._reserve = None
        twin._use(backend)
        return twin

    def close(self) -> None:
        """Release the network; later calls raise ``detector.closed``.  Idempotent; clones live on.

        Films that are being scored are waited for, up to 5 s; a network that runs longer is released when it returns.
        """
        already, self._closed = self._closed, True
        if already or os.getpid() != self._pid:  # the lock may be held for ever by a thread the fork did not copy
            return
        releasing = threading.Thread(target=self._release, name="ptxsdk-close", daemon=True)
        try:
            releasing.start()
        except RuntimeError:  # no thread to be had, or the interpreter ends: what is in use the system releases
            if not self._lock.locked():
                self._release()
        else:
            releasing.join(_CLOSE_SECONDS)

    def _release(self) -> None:
        """Give the network free once no film holds it."""
        with self._lock:
            _let_go(self._pipeline, self._backend)
            for member in self._crew:
                member.close()
            self._crew = ()
            if self._reserve is not None:
                backend, pipeline = self._reserve
                _let_go(pipeline, backend)
                self._reserve = None

    def __enter__(self) -> Detector:
        self._check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def record_failure(self, error: Exception) -> None:
        """Have the audit log know of a film that the caller could not read; `predict` does so itself.

        Raises
        ------
        AuditError
            The record could not be kept.
        """
        if self._auditor is not None:
            self._auditor.failed(error)

    def _check_usable(self) -> None:
        if self._closed:
            raise DetectorError("detector.closed", "this detector was closed")
        if os.getpid() != self._pid:
            raise DetectorError("detector.forked", "make the detector after the fork, in the process that uses it")

    def _score(
        self,
        film: Radiograph,
        checks: tuple[Check, ...],
        started: float,
        deadline: Deadline,
        *,
        read: float,
        header: float,
    ) -> Detection:
        passed = checks

        def check(shown: npt.NDArray[np.float32]) -> None:
            nonlocal passed
            deadline.check()
            passed = (*checks, *gate.check_content(shown, self._policy))
            self._enforce(passed)

        run, backend, fallen = self._run(film, check)
        aggregate_started = perf_counter()
        locate = self._profile == "cade"
        found = run.aggregate(
            **self._engine.manifest.scoring,
            columns_toward=film.columns_toward,
            pixel_spacing=film.pixel_spacing,
            want_outlines=locate,
        )
        probability = self._engine.manifest.calibration.probability(found.logit)
        flagged = probability >= self._operating_point.threshold
        assumed = () if film.patient_orientation else (_ORIENTATION_ASSUMED,)
        ended = perf_counter()
        return Detection(
            probability=probability,
            flagged=flagged,
            operating_point=self._operating_point,
            regions=found.regions if flagged and locate else (),
            quality=Quality(passed, film.warnings + assumed + fallen),
            backend=backend.name,
            device=backend.device,
            precision=backend.precision,
            engine=self._engine.id,
            profile=self._profile,
            timings=Timings(
                read=1e3 * read,
                gate=1e3 * (header + run.gate),
                preprocess=1e3 * run.preprocess,
                network=1e3 * run.network,
                aggregate=1e3 * (ended - aggregate_started),
                total=1e3 * (ended - started),
            ),
            geometry=run.geometry,
            mask_logits=_frozen_copy(run.logits()[1]) if locate else None,
            region_threshold=self._engine.manifest.regions.low if locate else None,
        )

    def _enforce(self, checks: tuple[Check, ...]) -> None:
        if self._policy.enforce:
            gate.enforce(checks)

    def _run(
        self, film: Radiograph, check: Callable[[npt.NDArray[np.float32]], None]
    ) -> tuple[Run, backends.Backend, tuple[str, ...]]:
        """Run the pipeline; return also what ran the network, and warnings.

        Under ``device="auto"`` a GPU that fails is left for the CPU: for this film where its memory was full, which
        other programs may give back, else for good.
        """
        on_device = isinstance(film.pixels, DeviceArray)  # which the CPU cannot read
        try:
            return self._pipeline.run(film.pixels, film.display, check=check), self._backend, self._fallen
        except BackendError as error:
            if error.code == "backend.out_of_memory":
                if on_device:
                    raise
                backend, pipeline = self._reserve_for(error)
                return pipeline.run(film.pixels, film.display, check=check), backend, (self._fallback(error),)
            self._fall_back(error)
            if on_device:
                raise
            return self._pipeline.run(film.pixels, film.display, check=check), self._backend, self._fallen

    def _fall_back(self, error: BackendError) -> None:
        """Go on on the CPU after a failure of the GPU; errors as `_reserve_for`."""
        reserve, self._fallen = self._reserve_for(error), (self._fallback(error),)
        if error.code == "backend.lost":  # releasing what hangs may hang too, and with it all of Python
            _LOST.append((self._pipeline, self._backend))
        else:
            threading.Thread(target=_let_go, args=(self._pipeline, self._backend), daemon=True).start()
        (self._backend, self._pipeline), self._reserve = reserve, None

    def _reserve_for(self, error: BackendError) -> tuple[backends.Backend, Pipeline]:
        """Return the network on the CPU, in the engine's exact precision, to take over from a GPU that failed.

        Raises
        ------
        BackendError
            `error`, where no other device is asked for; or why the CPU cannot be used either.
        EngineError
            ``engine.self_test``.
        """
        if not self._may_fall_back or self._backend.device == "cpu" or error.code == "backend.not_finite":
            raise error
        _LOGGER.warning("%s failed, going on on the CPU: %s", self._backend.device, error.message)
        if self._reserve is None:
            exact, threads = self._engine.precisions[0], self._threads
            backend = backends.load(self._engine, backend="auto", device="cpu", precision=exact, threads=threads)
            pipeline = self._pipeline_around(backend)
            self._compare(self._engine.golden()[:1], pipeline, backend)
            self._reserve = backend, pipeline
        return self._reserve

    def _fallback(self, error: BackendError) -> str:
        return f"device.fallback: {self._backend.device} failed [{error.code}], scored on the cpu"


_LOST: list[tuple[Pipeline, backends.Backend]] = []
"""What ran on devices that do not answer: the operating system releases it."""


def _let_go(pipeline: Pipeline, backend: backends.Backend) -> None:
    pipeline.close()
    backend.close()


def _are_several(images: object) -> bool:
    """Say whether this is not one film, nor something that holds none."""
    if isinstance(images, np.ndarray):
        return images.ndim > 2 or (images.ndim == 1 and images.dtype.kind in "OUS")
    if isinstance(images, (str, bytes, bytearray, memoryview, os.PathLike)) or readers.is_dataset(images):
        return False
    try:
        iter(cast("Iterable[object]", images))
    except TypeError:
        return False
    return True


def _own(image: object, limits: Limits, timeout: float | None) -> object:
    """Return a film that another thread can take over, or the error to raise for it.

    It stays as it is when the caller changes or frees its memory; what is beyond the limits, or no film, is not copied.
    An array on a device is not copied either: what its producer has begun on this thread is waited for.
    """
    try:
        if isinstance(image, (bytearray, memoryview)):
            limits.check_file(memoryview(image).nbytes)
            return bytes(image)
        if isinstance(image, np.ndarray):
            limits.check_extent(*check_pixels(image).shape)
            return image.copy()
        if isinstance(image, Radiograph) and isinstance(image.pixels, np.ndarray):
            limits.check_extent(*image.shape)
            return replace(image, pixels=image.pixels.copy())
        seconds = _PRODUCER_SECONDS if timeout is None else timeout
        if isinstance(image, Radiograph) and isinstance(image.pixels, DeviceArray):
            return replace(image, pixels=finished(image.pixels, seconds=seconds))
        if is_device_array(image):
            return finished(image, seconds=seconds)
    except PtxsdkError as error:
        return Deadline(timeout).error() if timeout is not None and error.code == "backend.lost" else error
    except MemoryError:
        return _no_memory()
    except Exception as error:  # noqa: BLE001 - a memoryview that was released, an array of a type of the caller's
        return InputError("input.type", f"the film's memory cannot be read ({type(error).__name__})")
    return image


def _no_memory() -> InputError:
    return InputError("input.too_large", "there is not enough memory for this film")


def _check_timeout(value: object) -> None:
    seconds = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= threading.TIMEOUT_MAX
    if value is not None and not seconds:
        raise DetectorError("detector.option", f"timeout {value!r} is not a positive number of seconds")


def _frozen_copy(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Copy out of the backend's buffer, which the next call overwrites."""
    frozen: npt.NDArray[np.float32] = np.frombuffer(logits.tobytes(), np.float32).reshape(logits.shape)
    return frozen


def _choose_operating_point(engine: Engine, name: str | None) -> OperatingPoint:
    points = {point.name: point for point in engine.manifest.operating_points}
    name = engine.manifest.default_operating_point if name is None else name
    if not isinstance(name, str) or name not in points:
        raise DetectorError(
            "detector.option", f"operating point {name!r} is not one of the engine's: {', '.join(points)}"
        )
    point = points[name]
    return OperatingPoint(name, point.threshold, point.sensitivity.value, point.specificity.value)
