"""Made for the tests of building: a folder of films with a table, and an engine whose network has convolutions."""

from __future__ import annotations

import csv
from dataclasses import replace

import cv2
import numpy as np
from made import GRID, SIZE, make_chest, tiny_manifest

SHAPE = (320, 280)


def make_convolutional_network(seed=0):
    """ONNX: stem, depthwise and pointwise convolutions; both heads answer to what is bright."""
    import onnx
    from onnx import helper

    generator = np.random.default_rng(seed)
    channels = 8
    stem = generator.normal(0, 0.15, (channels, 1, 3, 3)).astype(np.float32)
    stem[0] = 1 / 9
    depthwise = generator.normal(0, 0.15, (channels, 1, 3, 3)).astype(np.float32)
    depthwise[0] = 1 / 9
    pointwise = generator.normal(0, 0.1, (channels, channels, 1, 1)).astype(np.float32)
    pointwise[0] = np.eye(channels)[0].reshape(channels, 1, 1)
    head = generator.normal(0, 0.3, (2, 1, channels, 1, 1)).astype(np.float32)
    head[:, 0, 0] = 12.0
    arrays = {
        "stem.weight": stem,
        "stem.bias": np.full(channels, 1.0, np.float32),
        "low": np.float32(0),
        "high": np.float32(6),
        "depthwise.weight": depthwise,
        "depthwise.bias": np.zeros(channels, np.float32),
        "pointwise.weight": pointwise,
        "pointwise.bias": np.zeros(channels, np.float32),
        "patch.weight": head[0],
        "patch.bias": np.array([-20], np.float32),
        "mask.weight": head[1],
        "mask.bias": np.array([-20], np.float32),
        "sizes": np.array([1, 1, SIZE, SIZE], np.int64),
        "channel": np.array([1], np.int64),
    }
    node = helper.make_node
    step = SIZE // 2 // GRID
    nodes = [
        node("Conv", ["image", "stem.weight", "stem.bias"], ["a"], "stem", strides=[2, 2], pads=[1, 1, 1, 1]),
        node("Clip", ["a", "low", "high"], ["b"], "clip"),
        node(
            "Conv", ["b", "depthwise.weight", "depthwise.bias"], ["c"], "depthwise", pads=[1, 1, 1, 1], group=channels
        ),
        node("Relu", ["c"], ["d"], "relu"),
        node("Conv", ["d", "pointwise.weight", "pointwise.bias"], ["e"], "pointwise"),
        node("Add", ["e", "d"], ["f"], "sum"),
        node("MaxPool", ["f"], ["g"], "pool", kernel_shape=[step, step], strides=[step, step]),
        node("Conv", ["g", "patch.weight", "patch.bias"], ["h"], "patch"),
        node("Squeeze", ["h", "channel"], ["patch_logits"], "patch_squeeze"),
        node("Conv", ["f", "mask.weight", "mask.bias"], ["i"], "mask"),
        node(
            "Resize",
            ["i", "", "", "sizes"],
            ["j"],
            "enlarge",
            mode="linear",
            coordinate_transformation_mode="half_pixel",
        ),
        node("Squeeze", ["j", "channel"], ["mask_logits"], "mask_squeeze"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [value("image", onnx.TensorProto.FLOAT, [1, 1, SIZE, SIZE])],
        [
            value("patch_logits", onnx.TensorProto.FLOAT, [1, GRID, GRID]),
            value("mask_logits", onnx.TensorProto.FLOAT, [1, SIZE, SIZE]),
        ],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def make_convolutional_engine(model=None):
    """A small engine with that network in fp32, as bytes; its golden film is what the network makes of it."""
    import onnxruntime

    from ptxsdk.engine import engine_bytes, npy_bytes
    from ptxsdk.ops import preprocess
    from ptxsdk.radiograph import Display, Window

    network = (model or make_convolutional_network()).SerializeToString()
    film = make_chest(SHAPE, blob=(120, 80, 40))
    tensor, _ = preprocess(film, display=Display(voi=Window.from_range(0, 255)), size=(SIZE, SIZE), mean=0.5, std=0.5)
    session = onnxruntime.InferenceSession(network, providers=["CPUExecutionProvider"])
    patch, mask = (part[0] for part in session.run(None, {"image": tensor[None, None]}))
    manifest = tiny_manifest()
    probability = float(1 / (1 + np.exp(-(patch.max() + 0.5))))
    golden = replace(manifest.golden[0], probability=probability)
    entries = {
        "network/fp32.onnx": network,
        golden.pixels: npy_bytes(film),
        golden.patch_logits: npy_bytes(patch),
        golden.mask_logits: npy_bytes(mask.astype(np.float16)),
    }
    return engine_bytes(replace(manifest, golden=(golden,)), entries)


def write_films(folder, count=120, *, seed=0, labels=True):
    """Write films, masks and ``films.csv``; half the films hold a white blob, which is the finding."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for index in range(count):
        positive = index % 2 == 0
        blob = (*generator.integers(60, 200, 2), int(generator.integers(16, 44))) if positive else None
        film = make_chest(SHAPE, blob=blob).astype(int)
        film += generator.integers(-6, 7, SHAPE)
        name = f"film{index:03}.png"
        cv2.imwrite(str(folder / name), np.clip(film, 0, 255).astype(np.uint8))
        mask = ""
        if positive:
            y, x = np.ogrid[: SHAPE[0], : SHAPE[1]]
            inside = (y - blob[0]) ** 2 + (x - blob[1]) ** 2 <= blob[2] ** 2
            mask = f"mask{index:03}.bmp"
            cv2.imwrite(str(folder / mask), np.where(inside, np.uint8(255), np.uint8(0)))
        rows.append({"image": name, "label": int(positive), "mask": mask, "patient": f"p{index // 2}"})
    if labels:
        with (folder / "films.csv").open("w", newline="") as stream:
            writer = csv.DictWriter(stream, ["image", "label", "mask", "patient"])
            writer.writeheader()
            writer.writerows(rows)
    return folder
