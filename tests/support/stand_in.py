"""A network in PyTorch where TensorRT's would stand: what the film graph needs of a network, on a real GPU.

Used by the tests marked `gpu` and by benchmarks/bench_kernels.py, so that neither needs TensorRT.
"""

from __future__ import annotations

from types import SimpleNamespace

from made import GRID, SIZE

from ptxsdk.backends.film_graph import FilmGraph


def why_not():
    """Why there is no stand-in here; None where there is."""
    try:
        import torch
    except ImportError as error:
        return f"PyTorch is not installed: {error}"
    return None if torch.cuda.is_available() else "PyTorch sees no GPU"


class Tensor:
    """As the film graph wants it: an address on the device, and page-locked memory."""

    def __init__(self, shape, where):
        import torch

        self.tensor = torch.zeros(shape, device=where)
        self.device = SimpleNamespace(handle=self.tensor.data_ptr())
        self.pinned = torch.zeros(shape, pin_memory=True)
        self.host = self.pinned.numpy()


def small(where):
    """The small network of the tests (`made.network_output`), without memory of its own."""
    import torch

    step = SIZE // GRID

    def compute(image, patch, mask):
        torch.mul(image[0], 30, out=mask)
        mask.sub_(22.2)
        torch.amax(mask.view(1, GRID, step, GRID, step), dim=(2, 4), out=patch)

    return compute


def convolutions(where):
    """Three convolutions, for inputs and outputs of any size."""
    import torch

    nn = torch.nn
    layers = [nn.Conv2d(1, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 1, 3, 1, 1)]
    body = nn.Sequential(*layers).to(where).eval()

    def compute(image, patch, mask):
        made = body(image)
        patch.copy_(nn.functional.adaptive_avg_pool2d(made, patch.shape[1:])[0])
        mask.copy_(nn.functional.interpolate(made, size=mask.shape[1:])[0])

    return compute


class TorchBackend:
    """As the TensorRT backend; `make` gives what computes patch and mask from the image, all on the device."""

    name, precision = "tensorrt", "fp32"

    def __init__(self, gpu, engine, make=small):
        import torch

        self.gpu, self.engine, self.make = gpu, engine, make
        self.device = f"cuda:{gpu.index}"
        self.where = torch.device("cuda", gpu.index)
        outputs = engine.manifest.outputs
        self.image = Tensor((1, 1, *engine.manifest.input.size), self.where)
        self.patch = Tensor((1, *outputs.patch_logits.grid), self.where)
        self.mask = Tensor((1, *outputs.mask_logits.size), self.where)
        self.compute = make(self.where)
        torch.cuda.synchronize(self.where)
        with gpu.current():
            self.stream = gpu.stream()
            for _ in range(3):  # PyTorch takes its memory, and cuDNN makes its choices, outside the capture
                self.launch(int(self.stream.handle))
        torch.cuda.synchronize(self.where)

    def launch(self, stream):
        import torch

        with torch.no_grad(), torch.cuda.stream(torch.cuda.ExternalStream(stream, self.where)):
            self.compute(self.image.tensor, self.patch.tensor, self.mask.tensor)
        return True

    def film_graph(self, *, locate):
        return FilmGraph(
            self.gpu, self.stream, network=self.launch, image=self.image, patch=self.patch, mask=self.mask,
            engine=self.engine, locate=locate,
        )  # fmt: skip

    def clone(self):
        return TorchBackend(self.gpu, self.engine, self.make)

    def crew(self):
        return self.clone(), self.clone()

    def close(self):
        pass
