"""Which GPUs the server hands out."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import pynvml

from evalrpc.errors import ConfigurationError
from evalrpc.executors.base import Device


def find_gpus(setting: str, environment: Mapping[str, str]) -> tuple[Device, ...]:
    """Return the GPUs of the setting `gpus`, in order, with the ids that CUDA_VISIBLE_DEVICES takes.

    `auto`: those in the server's own CUDA_VISIBLE_DEVICES, or all that the driver knows if it is unset. N: the first N of these
    if there are enough, else 0 to N-1. A list: exactly these. Raises ConfigurationError for a list with duplicates.
    """
    if "," in setting or not (setting == "auto" or setting.isdigit() or not setting):
        return _listed(setting)
    found = _found(environment)
    if setting == "auto":
        return found
    count = int(setting or 0)
    return found[:count] if count <= len(found) else tuple(Device(id=str(index)) for index in range(count))


def _listed(setting: str) -> tuple[Device, ...]:
    ids = [part.strip() for part in setting.split(",")]
    if len(set(ids)) != len(ids):
        raise ConfigurationError(f"setting gpus: {setting} names a GPU twice")
    names = {gpu.id: gpu.name for gpu in _of_driver()}
    return tuple(Device(id=gpu_id, name=names.get(gpu_id, "")) for gpu_id in ids)


def _found(environment: Mapping[str, str]) -> tuple[Device, ...]:
    """Return the GPUs that a program started here would see."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _of_driver()
    ids = [part.strip() for part in visible.split(",") if part.strip() not in ("", "-1")]
    return _listed(",".join(ids)) if ids else ()


def _of_driver() -> tuple[Device, ...]:
    with _driver() as count:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
        return tuple(Device(id=str(index), name=pynvml.nvmlDeviceGetName(handle)) for index, handle in enumerate(handles))


@contextmanager
def _driver() -> Iterator[int]:
    """Yield the number of GPUs that NVIDIA's driver knows; 0 without a driver."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield 0
        return
    try:
        yield pynvml.nvmlDeviceGetCount()
    finally:
        pynvml.nvmlShutdown()
