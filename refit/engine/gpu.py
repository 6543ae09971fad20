"""The GPU that builds an engine.

Refit's own image asks the CUDA driver (libcuda.so.1 is in every container that has a GPU): the driver API is a stable
ABI, so nothing needs to be installed. In NVIDIA's TAO images, where Refit's packages are not, `recording` puts
nvidia-smi in front of a command, and `from_csv` reads what it wrote.
https://docs.nvidia.com/cuda/cuda-driver-api
"""

from __future__ import annotations

import csv
import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from refit.engine.record import Gpu

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR
_SCRIPT = 'out=$1; shift; nvidia-smi --query-gpu=name,compute_cap --format=csv,noheader > "$out" || exit 1; exec "$@"'


class GpuError(RuntimeError):
    """There is no usable GPU here, or the driver refuses something."""


class Device:
    """The first GPU that this process may see, with its primary context (the one that TensorRT uses) made current.

    Use it as a context manager: memory that was taken and the context are given back at its end.

    Raises:
        GpuError: no driver, no GPU, or the driver says no.
    """

    def __init__(self, library: str = "libcuda.so.1") -> None:
        try:
            self._cuda = ctypes.CDLL(library)
        except OSError:
            raise GpuError(
                f"{library} is not here: no GPU, or the pod's runtime class does not bring the driver"
            ) from None
        self._device = ctypes.c_int()
        self._pointers: list[ctypes.c_uint64] = []
        self._context = ctypes.c_void_p()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(self._device), ctypes.c_int(0))

    def __enter__(self) -> Device:
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._device)
        self._call("cuCtxSetCurrent", self._context)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        while self._pointers:
            self._call("cuMemFree_v2", self._pointers.pop())
        self._call("cuDevicePrimaryCtxRelease_v2", self._device)

    def facts(self) -> Gpu:
        """Its name and compute capability."""
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, ctypes.c_int(len(name)), self._device)
        numbers = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), self._device)
            numbers.append(value.value)
        return Gpu(name=name.value.decode(), compute_capability=f"{numbers[0]}.{numbers[1]}", source="driver")

    def allocate(self, size: int) -> int:
        """The address of so many bytes of its memory, kept until the device is closed."""
        pointer = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
        self._pointers.append(pointer)
        return pointer.value

    def upload(self, address: int, data: bytes) -> None:
        """Copy bytes to an address of its memory."""
        self._call("cuMemcpyHtoD_v2", ctypes.c_uint64(address), ctypes.c_char_p(data), ctypes.c_size_t(len(data)))

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._cuda.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text))
            raise GpuError(f"{name}: {(text.value or b'unknown error').decode()} (CUDA error {code})")


def recording(argv: Sequence[str], file: str) -> list[str]:
    """A command line that writes the GPU's facts to a file first, then becomes the command.

    For images that are not ours: it needs a shell and nvidia-smi, which a container with a GPU has.
    """
    return ["/bin/sh", "-c", _SCRIPT, "sh", file, *argv]


def from_csv(path: Path) -> Gpu:
    """What `recording` wrote.

    Raises:
        GpuError: no such file, another form, or GPUs of several kinds.
    """
    try:
        with open(path, newline="", encoding="utf-8") as f:
            rows = {tuple(cell.strip() for cell in row) for row in csv.reader(f) if row}
    except OSError as exc:
        raise GpuError(f"{path}: cannot be read ({exc.strerror}); run the stage that builds the engine again") from None
    if len(rows) != 1:
        raise GpuError(f"{path}: {len(rows)} kinds of GPU; the one that built the engine cannot be told: use one GPU")
    row = rows.pop()
    if len(row) != 2:
        raise GpuError(f"{path}: {', '.join(row)!r} is not 'name, compute capability' as nvidia-smi writes it")
    return Gpu(name=row[0], compute_capability=row[1], source="nvidia-smi")
