"""TensorRT: what the probe tells apart, plans built for real without a GPU, and the backend's own work around them.

Plans are built by TensorRT for RTX, which needs no GPU for it.  What runs on a GPU is marked `gpu`.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import importlib
import logging
import os
import sys
from collections import Counter
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from convolutions import make_convolutions
from made import SIZE, make_engine, network_output
from pretend_gpu import PretendEngine, PretendGpu

from ptxsdk import BackendError, Detector, Engine, EngineError, backends
from ptxsdk.backends import cuda, plans, tensorrt

MODULES = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx", "tensorrt_rtx_bindings")
OURS = ("tensorrt_api", "tensorrt_build")


# --- the probe ---


@pytest.fixture
def install(monkeypatch):
    """Let modules be installed, and none but them, for code that has not imported TensorRT yet."""
    before = {name: sys.modules.pop(f"ptxsdk.backends.{name}", None) for name in OURS}
    for name in OURS:
        vars(backends).pop(name, None)
    for name in MODULES:
        monkeypatch.setitem(sys.modules, name, None)

    def put(name, version=None, **contents):
        module = ModuleType(name)
        if version is not None:
            module.__dict__.update(__version__=version, Builder=object, ILogger=object, **contents)
        monkeypatch.setitem(sys.modules, name, module)

    yield put
    for name, module in before.items():
        sys.modules.pop(f"ptxsdk.backends.{name}", None)
        vars(backends).pop(name, None)
        if module is not None:
            sys.modules[f"ptxsdk.backends.{name}"] = module
            setattr(backends, name, module)


@pytest.fixture
def devices(monkeypatch):
    """Pretend that CUDA has these devices."""

    def put(*gpus):
        monkeypatch.setattr(tensorrt, "count", lambda: len(gpus))
        monkeypatch.setattr(tensorrt, "Gpu", SimpleNamespace(open=lambda index: gpus[index]))

    return put


def gpu(index, name, capability):
    return cuda.Gpu(index=index, name=name, capability=capability, driver="13.0")


def test_no_tensorrt(install):
    usable, reason = backends.probe("tensorrt")
    assert not usable
    assert "there is no TensorRT to use" in reason
    assert "extra 'tensorrt' or 'tensorrt-rtx'" in reason


def test_type_stubs_are_not_tensorrt(install):
    install("tensorrt")
    usable, reason = backends.probe("tensorrt")
    assert not usable
    assert "tensorrt is an empty package" in reason


@pytest.mark.parametrize(("name", "version"), [("tensorrt", "8.6.1"), ("tensorrt", "12.0.0"), ("tensorrt_rtx", "2.0")])
def test_an_unknown_major_version(install, opened, name, version):
    install(name, version)
    usable, reason = backends.probe("tensorrt")
    assert not usable
    assert f"{name} {version} is of an unknown major version" in reason
    for device in ("cuda", "cuda:0"):
        with pytest.raises(BackendError) as raised:
            backends.load(opened, backend="auto", device=device, precision="auto", threads=0)
        assert raised.value.code == "backend.unavailable"
        assert version in raised.value.message


def test_a_known_version_behind_an_unknown_one(install, devices):
    install("tensorrt", "12.0.0")
    install("tensorrt_rtx_bindings", "1.7.1", ComputeCapability=SimpleNamespace(__members__={"SM86": 86}))
    devices(gpu(0, "card", (8, 6)))
    assert backends.probe("tensorrt") == (True, "tensorrt_rtx 1.7.1 on cuda:0 card (compute capability 8.6)")


@pytest.mark.parametrize("version", ["10.3.0", "11.4.0.106"])
def test_a_gpu_that_is_too_old_and_one_that_is_not(install, devices, version):
    install("tensorrt", version)
    devices(gpu(0, "old", (7, 0)))
    usable, reason = backends.probe("tensorrt")
    assert not usable
    assert "old (compute capability 7.0, tensorrt supports 7.5 and later)" in reason
    devices(gpu(0, "old", (7, 0)), gpu(1, "new", (7, 5)))
    usable, reason = backends.probe("tensorrt")
    assert usable
    assert "cuda:1 new (compute capability 7.5)" in reason
    assert tensorrt._chosen("auto").index == 1
    with pytest.raises(BackendError) as raised:
        tensorrt._chosen("cuda:0")
    assert raised.value.code == "backend.unavailable"
    assert "7.0" in raised.value.message


def test_a_gpu_that_rtx_does_not_know(install, devices):
    install(
        "tensorrt_rtx", "1.7.1", ComputeCapability=SimpleNamespace(__members__={"NONE": 0, "SM75": 75, "SM120": 120})
    )
    devices(gpu(0, "data centre", (9, 0)))
    usable, reason = backends.probe("tensorrt")
    assert not usable
    assert "compute capability 9.0, tensorrt_rtx supports 7.5, 12.0" in reason
    devices(gpu(0, "card", (12, 0)))
    assert backends.probe("tensorrt")[0]


@pytest.fixture
def driver(monkeypatch):
    """Pretend that cuda-core is installed, with a driver whose answers can be set."""

    class Status(int):
        name = "CUDA_ERROR_NO_DEVICE"

    made = SimpleNamespace(
        cuInit=lambda flags: (Status(0),),
        cuDeviceGetCount=lambda: (Status(0), 1),
        cuDriverGetVersion=lambda: (Status(0), 13020),
        Status=Status,
    )
    bindings = ModuleType("cuda.bindings")
    bindings.driver = made
    core = ModuleType("cuda.core")
    core.Device = lambda index: SimpleNamespace(
        name="card", compute_capability=(8, 6), properties=SimpleNamespace(integrated=0)
    )
    package = ModuleType("cuda")
    package.core, package.bindings = core, bindings
    for name, module in {"cuda": package, "cuda.core": core, "cuda.bindings": bindings}.items():
        monkeypatch.setitem(sys.modules, name, module)
    return made


def unavailable(index=0):
    with pytest.raises(BackendError) as raised:
        cuda.Gpu.open(index)
    assert raised.value.code == "backend.unavailable"
    return raised.value.message


def test_no_cuda_core(install, monkeypatch):
    install("tensorrt", "10.3.0")
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    usable, reason = backends.probe("tensorrt")
    assert not usable
    assert "tensorrt 10.3.0, but cuda-core is not installed" in reason


def test_no_driver(driver):
    def missing(flags):
        raise RuntimeError("libcuda.so.1 not found")

    driver.cuInit = missing
    assert "no NVIDIA driver: libcuda.so.1" in unavailable()


def test_no_device(driver):
    driver.cuInit = lambda flags: (driver.Status(100),)
    assert "CUDA does not start: CUDA_ERROR_NO_DEVICE" in unavailable()
    driver.cuInit, driver.cuDeviceGetCount = (lambda flags: (driver.Status(0),)), (lambda: (driver.Status(0), 0))
    assert "no NVIDIA GPU" in unavailable()


def test_a_device_number_that_is_not_there(driver):
    assert "no device cuda:1, CUDA has 1" in unavailable(1)


def test_a_device_and_its_driver(driver, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "_MODULE_VERSION", tmp_path / "version")
    assert cuda.Gpu.open(0) == cuda.Gpu(index=0, name="card", capability=(8, 6), driver="13.2")
    (tmp_path / "version").write_text("580.65.06\n")
    assert cuda.Gpu.open(0).driver == "13.2 580.65.06"


@pytest.mark.parametrize("before", ["the host's", None], ids=["some", "none"])
def test_the_host_program_has_its_context_back(driver, before):
    """None is what cuda-bindings give before CUDA is started."""
    log = []
    driver.cuCtxGetCurrent = lambda: (driver.Status(0), before)
    driver.cuCtxSetCurrent = lambda context: log.append(("back", context))
    sys.modules["cuda.core"].Device = lambda index: SimpleNamespace(set_current=lambda: log.append(("ours", index)))
    with contextlib.suppress(KeyError), gpu(1, "card", (8, 6)).current():
        assert log == [("ours", 1)]
        raise KeyError
    assert log[1:] == ([("back", before)] if before else [])


def test_cuda_core_has_what_we_use():
    core = pytest.importorskip("cuda.core", reason="cuda-core is not installed")
    bound = importlib.import_module("cuda.bindings.driver")
    for owner, names in {
        core.Device: "set_current create_stream allocate name compute_capability",
        core.Stream: "handle sync",
        core.Buffer: "handle copy_from copy_to",
        core.LegacyPinnedMemoryResource: "allocate",
        bound: "cuInit cuDeviceGetCount cuDriverGetVersion cuCtxGetCurrent cuCtxSetCurrent cuStreamQuery CUstream",
    }.items():
        assert [name for name in names.split() if not hasattr(owner, name)] == []


# --- which backend runs ---


def test_auto_is_openvino_where_tensorrt_is_not_usable(install, opened):
    loaded = backends.load(opened, backend="auto", device="auto", precision="auto", threads=0)
    assert (loaded.name, loaded.device) == ("openvino", "cpu")


@pytest.fixture
def usable(monkeypatch):
    """Let TensorRT be usable, and record how it is loaded."""
    asked = []

    def load(engine, **options):
        asked.append(options)
        return SimpleNamespace(name="tensorrt")

    monkeypatch.setattr(tensorrt, "probe", lambda: (True, "pretended"))
    monkeypatch.setattr(tensorrt, "load", load)
    return asked


def test_auto_is_tensorrt_where_it_is_usable(usable, opened):
    for backend, device in (("auto", "auto"), ("auto", "cuda:3"), ("tensorrt", "auto"), ("tensorrt", "cuda")):
        assert backends.load(opened, backend=backend, device=device, precision="fp16", threads=2).name == "tensorrt"
        assert usable.pop() == {"precision": "fp16", "threads": 2, "device": device}
    assert backends.load(opened, backend="auto", device="cpu", precision="auto", threads=0).name == "openvino"
    assert backends.load(opened, backend="openvino", device="auto", precision="auto", threads=0).name == "openvino"
    assert not usable


def test_auto_falls_back_where_tensorrt_fails_and_a_name_does_not(usable, opened, monkeypatch, caplog):
    def fail(engine, **options):
        raise BackendError("backend.failed", "no tactic")

    monkeypatch.setattr(tensorrt, "load", fail)
    with caplog.at_level(logging.WARNING, "ptxsdk"):
        loaded = backends.load(opened, backend="auto", device="auto", precision="auto", threads=0)
    assert loaded.name == "openvino"
    assert "no tactic" in caplog.text
    for backend, device in (("auto", "cuda"), ("tensorrt", "auto")):
        with pytest.raises(BackendError):
            backends.load(opened, backend=backend, device=device, precision="auto", threads=0)


# --- plans, built by the real TensorRT for RTX ---


@pytest.fixture(scope="module")
def opened(tiny_engine):
    return Engine.open(tiny_engine)


@pytest.fixture(scope="module")
def rtx():
    """Our builder module, on the real TensorRT for RTX."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="the wheels of TensorRT for RTX are not installed")
    build = importlib.import_module("ptxsdk.backends.tensorrt_build")
    if build.FLAVOUR != "tensorrt_rtx":
        pytest.skip(f"{build.FLAVOUR} is installed beside TensorRT for RTX and goes first")
    return build


SHIPPED = Engine.open(Engine.default_path())


def by_name(layers, name):
    """The dtype of an input or output of the network, as the plan's layers have it."""
    (dtype,) = {tensor.dtype for layer in layers for tensor in (*layer.inputs, *layer.outputs) if tensor.name == name}
    return dtype


def stated(network):
    """How many convolutions of the ONNX graph have weights of which dtype, as TensorRT calls it."""
    import onnx

    graph = onnx.load_from_string(network).graph
    types = {onnx.TensorProto.FLOAT: "Float", onnx.TensorProto.FLOAT16: "Half"}
    weights = {tensor.name: types.get(tensor.data_type) for tensor in graph.initializer}
    weights |= {node.output[0]: "Int8" for node in graph.node if node.op_type == "DequantizeLinear"}
    return Counter(weights[node.input[1]] for node in graph.node if node.op_type == "Conv")


def convolved(layers):
    """The same of a plan: its convolutions are correlations, and their first constant is the weights."""
    found = [layer for layer in layers if layer.kind == "correlation"]
    assert all(layer.inputs[0].dtype == layer.constants[0].dtype for layer in found)
    return Counter(layer.constants[0].dtype for layer in found)


@pytest.mark.parametrize("precision", SHIPPED.precisions)
def test_the_shipped_network(rtx, precision):
    plan = rtx.build_plan(SHIPPED.network(precision), inspect=True)
    assert plan.tensorrt.startswith("tensorrt_rtx 1.")
    assert len(plan.data) > 1_000_000
    for name in ("image", "patch_logits", "mask_logits"):
        assert by_name(plan.layers, name) in ("Float", "Half")
    wanted, found = stated(SHIPPED.network(precision)), convolved(plan.layers)
    assert {"fp32": "Float", "fp16": "Half", "int8": "Int8"}[precision] in wanted
    assert set(found) == set(wanted)
    assert all(wanted[dtype] >= found[dtype] > 0.9 * wanted[dtype] for dtype in wanted)  # some are fused with others


@pytest.mark.parametrize(
    ("precision", "half_tensors", "expected"),
    [
        ("fp32", False, {"Float": 3}),
        ("fp16", False, {"Half": 3}),
        ("fp16", True, {"Half": 3}),
        ("int8", False, {"Int8": 2, "Float": 1}),
    ],
)
def test_every_precision(rtx, precision, half_tensors, expected):
    network = make_convolutions(precision, half_tensors=half_tensors)
    plan = rtx.build_plan(network, inspect=True)
    for name in ("image", "patch_logits", "mask_logits"):
        assert by_name(plan.layers, name) == ("Half" if half_tensors else "Float")
    assert stated(network) == convolved(plan.layers) == expected


def test_networks_are_strongly_typed_and_without_tf32(rtx, tiny_network, monkeypatch):
    """TensorRT for RTX would build the same without; TensorRT 10 would not."""
    real = rtx.trt.Builder
    seen = []

    class Spy:
        def __init__(self, log):
            self.real = real(log)

        def create_network(self, flags):
            seen.append(flags)
            return self.real.create_network(flags)

        def create_builder_config(self):
            return self.real.create_builder_config()

        def build_serialized_network(self, definition, config):
            seen.append(config.get_flag(rtx.trt.BuilderFlag.TF32))
            return self.real.build_serialized_network(definition, config)

    monkeypatch.setattr(rtx.trt, "Builder", Spy)
    rtx.build_plan(tiny_network)
    assert seen == [1 << int(rtx.trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED), False]


def test_layers_are_listed_on_request_only(rtx, tiny_network):
    assert rtx.build_plan(tiny_network).layers == ()


def test_targets(rtx, tiny_network):
    assert (8, 6) in rtx.supported_targets()
    everywhere = rtx.build_plan(tiny_network).data
    turing = rtx.build_plan(tiny_network, targets=[(7, 5)]).data
    two = rtx.build_plan(tiny_network, targets=((8, 6), (12, 0))).data
    assert len({everywhere, turing, two}) == 3


@pytest.mark.parametrize("targets", [[(9, 9)], [], [(8, 6), (1, 0)]])
def test_targets_that_there_are_none_of(rtx, tiny_network, targets):
    with pytest.raises(BackendError) as raised:
        rtx.build_plan(tiny_network, targets=targets)
    assert "has no compute capability" in raised.value.message


def test_the_list_of_layers_as_tensorrt_10_writes_it():
    """From NVIDIA's documentation of the inspector; only the dtype's key differs from TensorRT for RTX."""
    rtx = pytest.importorskip("ptxsdk.backends.tensorrt_build", reason="no TensorRT is installed", exc_type=ImportError)
    (layer,) = rtx.parse_layers(
        "Layers:\nName: conv1, LayerType: CaskConvolution, Inputs: [ { Name: gpu_0/data_0, Location: Device, "
        "Dimensions: [1,3,224,224], Format/Datatype: Half }], Outputs: [ { Name: out, Location: Device, "
        "Dimensions: [1,64,112,112], Format/Datatype: Int8 }], ParameterType: Convolution, Kernel: [7,7], "
        'PaddingMode: kEXPLICIT_ROUND_DOWN, Weights: {"Type": "Half", "Count": 9408}, TacticName: sm80, Metadata: \n'
        "\nBindings:\ngpu_0/data_0\nout\n"
    )
    assert (layer.name, layer.kind) == ("conv1", "CaskConvolution")
    assert layer.inputs == (rtx.Tensor(name="gpu_0/data_0", dtype="Half"),)
    assert layer.outputs == (rtx.Tensor(name="out", dtype="Int8"),)


def one_node(kind, shape, *, domain="", output=None, constants=(), **attributes):
    """A network of one node as ONNX, checked by nobody."""
    from onnx import TensorProto, helper, numpy_helper

    inputs = ["image", *(name for name, _ in constants)]
    node = helper.make_node(kind, inputs, ["out"], name="the node", domain=domain, **attributes)
    tensors = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, size)
        for name, size in (("image", shape), ("out", output if output is not None else shape))
    ]
    graph = helper.make_graph(
        [node], "one", tensors[:1], tensors[1:], [numpy_helper.from_array(value, name) for name, value in constants]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9).SerializeToString()


ODD_KERNEL = (("weight", np.ones((4, 2, 3, 3), np.float32)),)
HALF = (("one", np.ones(1, np.float16)),)


@pytest.mark.parametrize(
    ("network", "text"),
    [
        (lambda: b"", "at least one output"),
        (lambda: b"not an onnx file", "Failed to parse the ONNX model"),
        (lambda: make_convolutions()[:-1000], "Failed to parse the ONNX model"),
        (lambda: one_node("Frobnicate", [1, 1, 8, 8]), "operator Frobnicate: "),
        (lambda: one_node("Frobnicate", [1, 1, 8, 8], domain="acme"), "operator Frobnicate: "),
        (lambda: one_node("Relu", ["n", 1, 8, 8]), "'image' has no fixed shape but (-1, 1, 8, 8)"),
        (lambda: one_node("Relu", None), "'image' has no fixed shape but no rank"),
        (lambda: one_node("NonZero", [1, 1, 8, 8], output=[4, None]), "operator NonZero"),
        (lambda: one_node("Conv", [1, 1, 8, 8], output=[1, 4, 6, 6], constants=ODD_KERNEL), "Kernel weight dimension"),
        (lambda: one_node("Add", [1, 1, 8, 8], constants=HALF), "must have same input types"),
    ],
    ids=(
        *("empty", "junk", "truncated", "unknown_op", "unknown_domain"),
        *("dynamic", "no_rank", "data_dependent", "wrong_weights", "mixed_types"),
    ),
)
def test_a_network_that_cannot_be_built(rtx, network, text):
    with pytest.raises(BackendError) as raised:
        rtx.build_plan(network())
    assert raised.value.code == "backend.failed"
    assert text in raised.value.message


def test_weights_that_are_not_finite_are_built_and_left_to_the_self_test(rtx):
    """TensorRT takes them; no detector runs them, because NaN is never within a golden film's tolerance."""
    weight = (("weight", np.full((4, 1, 3, 3), np.nan, np.float32)),)
    assert rtx.build_plan(one_node("Conv", [1, 1, 8, 8], output=[1, 4, 6, 6], constants=weight)).data


def test_tensorrts_errors_are_in_ours_and_its_warnings_in_the_log(rtx, caplog):
    log = rtx.Log()
    severity = rtx.trt.ILogger.Severity
    with caplog.at_level(logging.INFO, "ptxsdk"):
        for level, text in ((severity.ERROR, " first "), (severity.WARNING, "hm"), (severity.INFO, "talk")):
            log.log(level, text)
        log.log(severity.INTERNAL_ERROR, "second")
        log.log(severity.ERROR, "first")
    assert log.taken() == "first; second"
    assert log.taken() == "TensorRT gave no reason"
    assert [record.getMessage() for record in caplog.records] == ["TensorRT: hm"]


def test_without_a_driver_a_plan_is_refused_with_tensorrts_reason(rtx, tiny_network):
    if backends.probe("tensorrt")[0]:
        pytest.skip("there is a GPU")
    log = rtx.Log()
    assert rtx.deserialized(rtx.build_plan(tiny_network).data, log) is None
    assert "CUDA driver" in log.taken()


# --- the backend's own work, on a pretended GPU, with plans that are real ---


@dataclass
class Pretended:
    """What happened: plans given to TensorRT, plans built, and the engines they became."""

    given: list
    built: list
    engines: list
    gpu: PretendGpu
    refuse: int = 0
    dtype: type = np.float32
    shapes: dict | None = None


@pytest.fixture
def pretended(rtx, monkeypatch):
    seen = Pretended([], [], [], PretendGpu())
    build = rtx.build_plan

    def counted(network, **options):
        assert options["targets"] == (seen.gpu.capability,)
        plan = build(network, **options)
        seen.built.append(plan.data)
        return plan

    def deserialized(plan, log):
        seen.gpu.require_current()
        seen.given.append(plan)
        if seen.refuse:
            seen.refuse -= 1
            log.log(rtx.trt.ILogger.Severity.ERROR, "plan of another device")
            return None
        seen.engines.append(PretendEngine(seen.gpu, rtx.trt, dtype=seen.dtype, shapes=seen.shapes))
        return seen.engines[-1]

    monkeypatch.setattr(rtx, "build_plan", counted)
    monkeypatch.setattr(rtx, "deserialized", deserialized)
    monkeypatch.setattr(tensorrt, "_chosen", lambda device: seen.gpu)
    return seen


@pytest.fixture
def cache(tmp_path):
    return plans.PlanCache(tmp_path / "plans")


def load(engine, cache, precision="auto"):
    return tensorrt.load(engine, precision=precision, threads=0, device="cuda:0", plan_cache=cache)


def compute(loaded, seed=0):
    loaded.input[...] = np.random.default_rng(seed).uniform(-1, 1, (SIZE, SIZE))
    return loaded.infer(), network_output(loaded.input)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float16, 0.05)])
def test_the_network_is_computed_from_the_input_buffer(pretended, opened, cache, dtype, tolerance):
    pretended.dtype = dtype
    loaded = load(opened, cache)
    assert (loaded.name, loaded.device, loaded.precision) == ("tensorrt", "cuda:0", "fp32")
    assert loaded.input.shape == (SIZE, SIZE)
    assert loaded.input.dtype == np.float32
    for seed in range(3):
        found, expected = compute(loaded, seed)
        for got, wanted in zip(found, expected, strict=True):
            assert got.dtype == np.float32
            assert got.shape == wanted.shape
            np.testing.assert_allclose(got, wanted, atol=tolerance)
    loaded.close()
    loaded.close()
    assert pretended.gpu.depth == 0


def test_a_clone_has_buffers_of_its_own_and_outlives_the_first(pretended, opened, cache):
    first = load(opened, cache)
    second = first.clone()
    assert len(pretended.engines) == 1
    assert pretended.engines[0].contexts == 2
    assert len(pretended.gpu.streams) == 2
    assert not np.shares_memory(first.input, second.input)
    first.input[...], second.input[...] = 0.5, -0.5
    (_, high), (_, low) = first.infer(), second.infer()
    first.close()
    np.testing.assert_allclose(high, 30 * 0.5 - 22.2, atol=1e-4)
    np.testing.assert_allclose(low, 30 * -0.5 - 22.2, atol=1e-4)
    found, expected = compute(second)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_arrays_given_out_outlive_the_backend(pretended, opened, cache):
    loaded = load(opened, cache)
    (_, mask), (_, expected) = compute(loaded)
    tensor = loaded.input
    loaded.close()
    del loaded
    gc.collect()
    np.testing.assert_allclose(mask, expected, atol=1e-6)
    tensor[...] = 1


@pytest.mark.parametrize("closed", [True, False])
def test_all_is_freed_while_the_device_is_current_the_plan_with_the_last_clone(pretended, opened, cache, closed):
    """Closed or forgotten, and page-locked memory with the last array that points to it."""
    first = load(opened, cache)
    second = first.clone()
    pretended.engines.clear()
    (patch, _), _ = compute(first)
    if closed:
        first.close()
    del first
    gc.collect()
    assert sorted(pretended.gpu.freed) == [("buffer", True)] * 6 + [("context", True)]
    del patch
    gc.collect()
    assert sorted(pretended.gpu.freed) == [("buffer", True)] * 7 + [("context", True)]
    if closed:
        second.close()
    del second
    gc.collect()
    assert sorted(pretended.gpu.freed) == [("buffer", True)] * 14 + [("context", True)] * 2 + [("engine", True)]


def test_what_was_closed_does_not_run(pretended, opened, cache):
    loaded = load(opened, cache)
    loaded.close()
    for call in (loaded.infer, loaded.clone):
        with pytest.raises(BackendError) as raised:
            call()
        assert raised.value.code == "backend.failed"


def test_a_failing_run(pretended, opened, cache, rtx):
    loaded = load(opened, cache)
    pretended.engines[0].fails = True
    loaded._held[0].compiled.log.log(rtx.trt.ILogger.Severity.ERROR, "misaligned address")
    with pytest.raises(BackendError, match="misaligned address") as raised:
        loaded.infer()
    assert raised.value.code == "backend.failed"
    pretended.engines[0].fails = False
    found, expected = compute(loaded)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.requirement("R-TIME-1")
def test_a_device_that_does_not_answer_is_not_waited_for(pretended, opened, cache):
    loaded = load(opened, cache)
    pretended.gpu.hangs = True
    with pytest.raises(BackendError, match="did not answer") as raised:
        loaded.infer()
    assert raised.value.code == "backend.lost"
    pretended.gpu.hangs = False
    found, expected = compute(loaded)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


@pytest.mark.requirement("R-TIME-1")
def test_a_stream_is_asked_until_it_is_done_or_the_time_is_over(driver):
    gpu, stream = cuda.Gpu.open(0), SimpleNamespace(handle=77, is_closed=False)
    busy = driver.Status(600)
    driver.CUstream, driver.CUresult = int, SimpleNamespace(CUDA_ERROR_NOT_READY=busy)
    answers = [busy, busy, driver.Status(0)]
    driver.cuStreamQuery = lambda handle: (answers.pop(0),)
    assert gpu.done_within(10, stream=stream)
    assert answers == []
    driver.cuStreamQuery = lambda handle: (busy,)
    assert not gpu.done_within(0.01, stream=stream)
    driver.cuStreamQuery = lambda handle: (driver.Status(719),)
    with pytest.raises(BackendError) as raised:
        gpu.done_within(10, stream=stream)
    assert raised.value.code == "backend.failed"


@pytest.mark.parametrize("what", ["current", "stream", "allocate", "pinned"])
def test_cuda_failing_at_the_start(pretended, opened, cache, what, monkeypatch):
    def fail(*arguments, **options):
        raise RuntimeError("CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(pretended.gpu, what, fail)
    with pytest.raises(BackendError, match="CUDA_ERROR_OUT_OF_MEMORY") as raised:
        load(opened, cache)
    assert raised.value.code == "backend.out_of_memory"
    gc.collect()
    assert all(current for _, current in pretended.gpu.freed)


@pytest.mark.parametrize(
    "shapes",
    [
        {"image": (1, 1, SIZE, 2 * SIZE), "patch_logits": (1, 8, 8), "mask_logits": (1, 64, 64)},
        {"image": (1, 1, SIZE, SIZE), "mask_logits": (1, 64, 64)},
        {"image": (1, 1, SIZE, SIZE), "patch_logits": (1, -1, 8), "mask_logits": (1, 64, 64)},
    ],
    ids=["input", "missing", "dynamic"],
)
def test_a_plan_that_does_not_keep_the_contract(pretended, opened, cache, shapes):
    pretended.shapes = shapes
    with pytest.raises(BackendError) as raised:
        load(opened, cache)
    assert raised.value.code == "backend.failed"


def test_a_plan_of_integers(pretended, opened, cache):
    pretended.dtype = np.int32
    with pytest.raises(BackendError, match="image"):
        load(opened, cache)


def test_a_precision_the_engine_has_not(pretended, opened, cache):
    with pytest.raises(EngineError) as raised:
        load(opened, cache, "int8")
    assert raised.value.code == "engine.precision"


# --- plan and cache together ---


def test_the_second_start_takes_the_kept_plan(pretended, opened, cache):
    load(opened, cache)
    load(opened, cache)
    (built,) = pretended.built
    assert pretended.given == [built, built]


def kept_in(cache):
    (path,) = cache.folder.iterdir()
    return path


@pytest.mark.parametrize("damage", ["truncated", "flipped", "exchanged", "writable"])
def test_a_damaged_plan_is_built_again_and_never_loaded(pretended, opened, cache, damage, caplog):
    load(opened, cache)
    path = kept_in(cache)
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif damage == "exchanged":  # the plan, but not what stands before it
        path.write_bytes(content[:-300] + bytes(300))
    else:
        path.chmod(0o666)
    with caplog.at_level(logging.WARNING, "ptxsdk"):
        load(opened, cache)
    assert "is not used, and built again" in caplog.text
    assert pretended.given == pretended.built
    assert len(pretended.built) == 2
    load(opened, cache)
    assert len(pretended.built) == 2


@pytest.mark.parametrize("change", ["gpu", "capability", "driver", "engine", "tensorrt"])
def test_a_foreign_plan_is_built_again_and_never_loaded(
    pretended, opened, tiny_network, cache, change, rtx, monkeypatch
):
    load(opened, cache)
    path = kept_in(cache)
    engine = opened
    if change == "gpu":
        pretended.gpu.name = "Another GPU"
    elif change == "capability":
        pretended.gpu.capability = (8, 9)
    elif change == "driver":
        pretended.gpu.driver = "13.1"
    elif change == "engine":
        engine = Engine.open(make_engine(tiny_network, version="1.1"))
    else:
        monkeypatch.setattr(importlib.import_module("ptxsdk.backends.tensorrt_api"), "VERSION", "1.9.9")
    content = path.read_bytes()
    load(engine, cache)
    assert len(pretended.built) == 2
    assert pretended.given == pretended.built
    for kept in cache.folder.iterdir():  # the old plan under the new plan's name
        kept.write_bytes(content)
    load(engine, cache)
    assert pretended.given == pretended.built
    assert len(pretended.built) == 3


def test_a_plan_that_tensorrt_refuses_is_built_again(pretended, opened, cache, caplog):
    load(opened, cache)
    pretended.refuse = 1
    with caplog.at_level(logging.WARNING, "ptxsdk"):
        load(opened, cache)
    assert "plan of another device" in caplog.text
    assert len(pretended.built) == 2


def test_a_new_plan_that_tensorrt_refuses_is_an_error_and_not_kept(pretended, opened, cache):
    pretended.refuse = 1
    with pytest.raises(BackendError, match="plan of another device") as raised:
        load(opened, cache)
    assert raised.value.code == "backend.failed"
    assert not cache.folder.exists()


def test_a_cache_that_cannot_be_written_stops_nothing(pretended, opened, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING, "ptxsdk"):
        loaded = load(opened, plans.PlanCache(tmp_path / "file" / "plans"))
    assert "is not kept" in caplog.text
    found, expected = compute(loaded)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_a_full_disk_stops_nothing_and_leaves_the_old_plan(pretended, opened, cache, monkeypatch, caplog):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    load(opened, cache)
    before = kept_in(cache).read_bytes()
    pretended.gpu.driver = "13.1"
    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING, "ptxsdk"):
        loaded = load(opened, cache)
    assert "is not kept" in caplog.text
    assert "No space left" in caplog.text
    assert kept_in(cache).read_bytes() == before
    assert pretended.given == pretended.built
    found, expected = compute(loaded)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_a_detector_on_it(pretended, tiny_engine, monkeypatch, tmp_path):
    monkeypatch.setattr(tensorrt, "probe", lambda: (True, "pretended"))
    monkeypatch.setenv("PTXSDK_CACHE", str(tmp_path))
    with Detector(tiny_engine, device="cuda:0") as detector:
        assert (detector.backend, detector.precision) == ("tensorrt", "fp32")
        assert detector.self_test() == 1
    assert len(list((tmp_path / "plans").iterdir())) == 1


# --- on a real GPU ---


@pytest.fixture
def on_gpu():
    usable, reason = backends.probe("tensorrt")
    if not usable:
        pytest.skip(reason)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", SHIPPED.precisions)
def test_the_shipped_network_on_a_gpu(on_gpu, cache, precision):
    """Against ONNX Runtime in fp32, within the tolerance the engine states; from a new plan and from a kept one."""
    reference = backends.load(SHIPPED, backend="onnxruntime", device="cpu", precision="fp32", threads=0)
    allowed = max(film.tolerance[precision].logits for film in SHIPPED.golden())
    for _ in range(2):
        loaded = load(SHIPPED, cache, precision)
        twin = loaded.clone()
        loaded.input[...] = np.random.default_rng(0).normal(0, 1, loaded.input.shape)
        reference.input[...] = twin.input[...] = loaded.input
        expected = reference.infer()
        for backend in (loaded, twin):
            for found, wanted in zip(backend.infer(), expected, strict=True):
                np.testing.assert_allclose(found, wanted, atol=allowed)
        loaded.close()
        twin.close()
    assert len(list(cache.folder.iterdir())) == 1


@pytest.mark.gpu
def test_a_detector_on_a_gpu(on_gpu, monkeypatch, tmp_path):
    monkeypatch.setenv("PTXSDK_CACHE", str(tmp_path))
    with Detector(device="cuda") as detector:
        assert detector.backend == "tensorrt"
        assert detector.self_test() > 0
