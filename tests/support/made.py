"""Made for the tests: a film that looks like a chest, and a small engine whose network can be worked out by hand."""

from __future__ import annotations

import numpy as np

SIZE, GRID = 64, 8

# The left half of the mean frontal chest on a 16 x 16 grid, mirrored to be symmetric, in tenths of its standard
# deviation: lungs and outside air dark, mediastinum and abdomen bright.  Averaged over 2,303 frontal films, nearly all
# of ChestX-ray14 (NIH Clinical Center).
MEAN_CHEST_LEFT_HALF = (
    (-23, -23, -22, -21, -18, -11, -2, 4),
    (-19, -15, -14, -13, -11, -8, -2, 3),
    (-10, -5, -4, -4, -5, -6, -4, 1),
    (-3, 1, 2, -1, -6, -8, -5, 1),
    (0, 3, 3, -2, -9, -11, -6, 2),
    (1, 3, 3, -3, -10, -12, -6, 4),
    (-1, 2, 3, -3, -10, -10, -3, 6),
    (-3, 1, 2, -3, -8, -7, 1, 9),
    (-6, 0, 2, -3, -6, -3, 4, 11),
    (-8, -1, 1, -1, -2, 1, 7, 13),
    (-9, -2, 1, 1, 2, 6, 10, 15),
    (-11, -4, 2, 4, 7, 10, 13, 16),
    (-13, -5, 3, 8, 11, 13, 16, 18),
    (-15, -6, 4, 10, 14, 16, 18, 19),
    (-16, -6, 4, 11, 15, 17, 19, 20),
    (-15, -6, 5, 12, 15, 18, 19, 20),
)


def make_chest(shape=(640, 560), blob=None):
    """An 8-bit film that the gate takes for a frontal chest; `blob` = (row, column, radius) is pure white."""
    left = np.array(MEAN_CHEST_LEFT_HALF, float) / 10
    grid = 0.5 + 0.12 * np.hstack([left, left[:, ::-1]])
    rows = np.arange(shape[0]) * 16 // shape[0]
    columns = np.arange(shape[1]) * 16 // shape[1]
    film = np.rint(255 * grid[np.ix_(rows, columns)]).astype(np.uint8)
    if blob is not None:
        y, x = np.ogrid[: shape[0], : shape[1]]
        film[(y - blob[0]) ** 2 + (x - blob[1]) ** 2 <= blob[2] ** 2] = 255
    return film


def network_output(tensor):
    """What the small network makes of its input: logit 0 at a display value of 0.87, patches take their maximum."""
    mask = (30 * tensor - 22.2).astype(np.float32)
    step = SIZE // GRID
    return mask.reshape(GRID, step, GRID, step).max((1, 3)), mask


def make_network():
    """The small network as ONNX."""
    import onnx

    step = SIZE // GRID
    image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 1, SIZE, SIZE])
    outputs = [
        onnx.helper.make_tensor_value_info("patch_logits", onnx.TensorProto.FLOAT, [1, GRID, GRID]),
        onnx.helper.make_tensor_value_info("mask_logits", onnx.TensorProto.FLOAT, [1, SIZE, SIZE]),
    ]
    constants = [
        onnx.numpy_helper.from_array(np.array(30, np.float32), "gain"),
        onnx.numpy_helper.from_array(np.array(-22.2, np.float32), "offset"),
        onnx.numpy_helper.from_array(np.array([1], np.int64), "channel"),
    ]
    nodes = [
        onnx.helper.make_node("Mul", ["image", "gain"], ["scaled"]),
        onnx.helper.make_node("Add", ["scaled", "offset"], ["map"]),
        onnx.helper.make_node("MaxPool", ["map"], ["patches"], kernel_shape=[step, step], strides=[step, step]),
        onnx.helper.make_node("Squeeze", ["patches", "channel"], ["patch_logits"]),
        onnx.helper.make_node("Squeeze", ["map", "channel"], ["mask_logits"]),
    ]
    graph = onnx.helper.make_graph(nodes, "tiny", [image], outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def tiny_manifest(**changes):
    """The small engine's manifest, without its entries."""
    from ptxsdk import manifest as m

    estimate = m.Estimate(value=0.9, low=0.8, high=0.95, n=100)
    values = {
        "name": "tiny",
        "version": "1.0",
        "created": "2026-01-01",
        "intended_use": "tests",
        "input": m.InputSpec(size=(SIZE, SIZE), mean=0.5, std=0.5),
        "outputs": m.OutputSpec(
            patch_logits=m.PatchOutput(grid=(GRID, GRID)), mask_logits=m.MaskOutput(size=(SIZE, SIZE))
        ),
        "aggregation": m.Aggregation(method="max"),
        "regions": m.RegionRules(high=0.6, low=0.4, min_area=2),
        "calibration": m.Calibration(scale=1.0, bias=0.5, data="made", n=10),
        "operating_points": (
            m.MeasuredPoint(name="balanced", threshold=0.5, sensitivity=estimate, specificity=estimate, data="made"),
            m.MeasuredPoint(name="high", threshold=0.001, sensitivity=estimate, specificity=estimate, data="made"),
        ),
        "default_operating_point": "balanced",
        "metrics": (m.Metric(name="auc", value=0.9, low=0.8, high=0.95, n=100, data="made"),),
        "provenance": m.Provenance(
            training_data=(m.DataSource(name="made", n=1, credit="nobody", licence="none"),),
            code_version="0",
            command="none",
            seed=0,
        ),
        "networks": {"fp32": m.Network(entry="network/fp32.onnx")},
        "golden": (
            m.Golden(
                name="blob",
                pixels="golden/blob.pixels.npy",
                patch_logits="golden/blob.patch_logits.npy",
                mask_logits="golden/blob.mask_logits.npy",
                probability=0.0,
                credit="made",
                tolerance={"fp32": m.Tolerance(logits=0.05, probability=0.01)},
            ),
        ),
    }
    return m.Manifest(**(values | changes))


def make_engine(network, **changes):
    """A small engine as bytes; its golden film is a chest with a blob."""
    from dataclasses import replace

    from ptxsdk.engine import engine_bytes, npy_bytes
    from ptxsdk.ops import preprocess
    from ptxsdk.radiograph import Display, Window

    film = make_chest((160, 140), blob=(60, 40, 20))
    tensor, _ = preprocess(film, display=Display(voi=Window.from_range(0, 255)), size=(SIZE, SIZE), mean=0.5, std=0.5)
    patch, mask = network_output(tensor)
    manifest = tiny_manifest(**changes)
    golden = manifest.golden[0]
    if not golden.probability:
        golden = replace(golden, probability=float(1 / (1 + np.exp(-(patch.max() + 0.5)))))
    entries = {
        "network/fp32.onnx": network,
        golden.pixels: npy_bytes(film),
        golden.patch_logits: npy_bytes(patch),
        golden.mask_logits: npy_bytes(mask.astype(np.float16)),
    }
    return engine_bytes(replace(manifest, golden=(golden,)), entries)
