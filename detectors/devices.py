"""Which device and which precision; and when a device is gone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from monitor.errors import ConfigError, DeviceLost

torch.backends.cudnn.allow_tf32 = False  # else fp32 convolutions on CUDA keep 10 bits of 23, also those that must stay exact

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_device(name: str) -> torch.device:
    """auto, cpu, cuda or cuda:1 -> the device with its index. Raises ConfigError for one that this machine lacks."""
    count = torch.cuda.device_count()
    if name == "auto":
        name = "cuda" if count else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (number or "0").isdigit():
        raise ConfigError(f"device: unknown device {name!r}: expected auto, cpu, cuda or cuda:N")
    index = int(number or 0)
    if index >= count:
        raise ConfigError(f"device: {name!r} is not here: torch {torch.__version__} sees {count} CUDA devices on this machine")
    return torch.device("cuda", index)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere bf16 is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def choose_precision(name: str, device: torch.device) -> str:
    """auto -> the fastest that the device has in hardware. Raises ConfigError for an unknown or unsupported one."""
    if name == "auto":
        if has_bf16(device):
            return "bf16"
        return "fp16" if device.type == "cuda" else "fp32"
    if name not in PRECISIONS:
        raise ConfigError(f"precision: unknown precision {name!r}: expected auto, {', '.join(PRECISIONS)}")
    if name == "fp16" and device.type == "cpu":
        raise ConfigError("precision: fp16 needs a CUDA device: expected auto, fp32 or bf16 on cpu")
    return name


@contextmanager
def watched(device: torch.device) -> Iterator[None]:
    """Turns the errors of a CUDA device that no longer answers into DeviceLost; out of memory stays what it is."""
    try:
        yield
    except RuntimeError as error:
        if device.type == "cuda" and is_loss(error):
            raise DeviceLost(f"{device} no longer answers: {error}") from error
        raise


def is_loss(error: RuntimeError) -> bool:
    """A CUDA error other than out of memory poisons the whole process: nothing runs on the device after it."""
    if isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error):
        return False
    return isinstance(error, torch.AcceleratorError) or "CUDA error" in str(error)
