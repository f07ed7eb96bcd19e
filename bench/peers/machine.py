"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path

# The instruction sets that decide the speed of integer and float products, as the kernel names them.
FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "bf16")


def describe() -> dict[str, str]:
    """CPU, its relevant features, cores, kernel, Python and the load average at the time of the call."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    features = (fields.get("flags") or fields.get("Features") or "").split()
    family = f"family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else ""
    return {
        "cpu": " ".join(filter(None, (fields.get("model name", platform.machine()), family))),
        "features": " ".join(flag for flag in FLAGS if flag in features),
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load average": " ".join(f"{value:.2f}" for value in os.getloadavg()),
    }
