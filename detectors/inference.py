"""How a trained network is run fast: conv and batch norm fused, channels last, half precision but for the last layers."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from detectors.devices import PRECISIONS
from detectors.images import Pixels


def made_fast(network: nn.Module, *, device: torch.device, precision: str, exact: Iterable[str]) -> None:
    """Changes `network` in place for inference only, on `device`; the modules named in `exact` ("enc1.0") stay fp32.

    They MUST hold the last layer; the first, where a score compares with the input: rounding either shifts every score. Every layer takes
    its input in its own precision, so that exact ones may stand anywhere.
    """
    network.eval().requires_grad_(False)
    fuse(network)
    network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    kept = {id(tensor) for name in exact for tensor in network.get_submodule(name).parameters()}
    for tensor in (*network.parameters(), *network.buffers()):
        if tensor.is_floating_point() and id(tensor) not in kept:
            tensor.data = tensor.data.to(PRECISIONS[precision])
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            module.register_forward_pre_hook(_in_its_precision)


def _in_its_precision(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    weight = module.get_parameter("weight")
    return tuple(one.to(weight.dtype) for one in inputs)


def fuse(network: nn.Module) -> None:
    """Folds every batch norm that follows a convolution, transposed or not, in a Sequential into its weights; done in fp32."""
    for module in list(network.modules()):
        if not isinstance(module, nn.Sequential):
            continue
        for index in range(len(module) - 1):
            conv, norm = module[index], module[index + 1]
            if isinstance(conv, nn.Conv2d | nn.ConvTranspose2d) and isinstance(norm, nn.BatchNorm2d):
                module[index] = fuse_conv_bn_eval(conv, norm, transpose=isinstance(conv, nn.ConvTranspose2d))
                module[index + 1] = nn.Identity()


@dataclass(frozen=True, slots=True)
class Arriving:
    """A batch on its way to the device, e.g. (B, C, S, S), channels last. `here()` makes the current stream wait for it."""

    pixels: Tensor
    copied: torch.cuda.Event | None = None

    def here(self) -> Tensor:
        if self.copied is not None:
            stream = torch.cuda.current_stream(self.pixels.device)
            self.copied.wait(stream)
            self.pixels.record_stream(stream)
        return self.pixels


class Upload:
    """Copies stacked images, planes or waveforms to a device: on CUDA from pinned memory on a stream of its own, beside what is being scored."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def send(self, images: Pixels) -> Arriving:
        """(B, S, S, C) -> (B, C, S, S) of the same type."""
        return self.copy(torch.from_numpy(images).permute(0, 3, 1, 2))  # the same bytes: channels last

    def copy(self, tensor: Tensor) -> Arriving:
        """Of any shape, from the CPU."""
        if self._stream is None:
            return Arriving(tensor)
        with torch.cuda.stream(self._stream):
            there = tensor.pin_memory().to(self._device, non_blocking=True)
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record(self._stream)
        return Arriving(there, copied)
