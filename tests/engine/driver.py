"""The CUDA driver's C interface without a GPU: a library in C with the driver's signatures."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

# Signatures and numbers: https://docs.nvidia.com/cuda/cuda-driver-api
DRIVER = r"""
#include <stddef.h>
#include <string.h>
static unsigned char memory[65536];
static int used, retained;
int cuInit(unsigned int flags) { return flags == 0 ? 0 : 1; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal + 7; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) {
    *context = memory; retained++;
    return device == 7 ? 0 : 101;
}
int cuCtxSetCurrent(void *context) { return context == memory ? 0 : 201; }
int cuDevicePrimaryCtxRelease_v2(int device) { retained--; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "NVIDIA T4", length); return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? 7 : attribute == 76 ? 5 : -1;
    return 0;
}
int cuMemAlloc_v2(unsigned long long *address, size_t size) {
    if (size > sizeof memory) return 2;
    *address = (unsigned long long)memory; used++; return 0;
}
int cuMemcpyHtoD_v2(unsigned long long address, const void *data, size_t size) {
    memcpy((void *)address, data, size); return 0;
}
int cuMemFree_v2(unsigned long long address) { used--; return address == (unsigned long long)memory ? 0 : 1; }
int cuGetErrorString(int code, const char **text) { *text = code == 2 ? "out of memory" : NULL; return 0; }
int left(void) { return used * 100 + retained; }
unsigned char at(int i) { return memory[i]; }
"""


def make(folder: Path) -> Path:
    """libcuda.so.1 in a folder; skips the test where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler to stand in for the CUDA driver")
    (folder / "cuda.c").write_text(DRIVER)
    library = folder / "libcuda.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, folder / "cuda.c"], check=True)
    return library
