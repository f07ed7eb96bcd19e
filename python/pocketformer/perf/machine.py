"""What this machine offers, and what is made of it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from .._core import default_threads, isas, missing_features, read_cpus

_STRENGTHS = {
    "capacity": "capacity as the kernel gives it",
    "frequency": "highest frequency",
    "none": "unknown, so all count alike",
}


def describe_machine(root: str = "") -> dict[str, Any]:
    """CPU, instruction sets, cores, caches and threads, each choice with its reason; ready for JSON.

    ``isas`` are the usable ones, best first; ``missing`` says of every other what it lacks here. ``clusters`` are the
    CPUs of like strength, strongest first, and ``cores`` those that get a thread. ``root`` goes before /proc and /sys.
    """
    forced = os.environ.get("POCKETFORMER_ISA")
    usable = isas()
    found = read_cpus(root)
    cpus, quota = found["cpus"], found["quota"]
    chosen = [cpu["id"] for cpu in cpus if cpu["chosen"]]
    return {
        "cpu": _cpu(root),
        "architecture": platform.machine(),
        "isas": usable,
        "isa": forced or usable[0],
        "isa_reason": "POCKETFORMER_ISA asks for it" if forced else "the best that this CPU supports",
        "missing": {isa: lacks for isa, lacks in missing_features().items() if lacks},
        "cpus": os.cpu_count(),
        "affinity_cpus": len(cpus),
        "quota_cpus": quota or None,
        "physical_cores": len({cpu["core"] for cpu in cpus}),
        "strength": _STRENGTHS[found["measure"]],
        "clusters": _clusters(cpus),
        "cores": chosen,
        "caches": _caches(root, min(chosen, default=0)),
        "threads": default_threads(),
        "threads_reason": _threads_reason(cpus, len(chosen), quota),
    }


def _threads_reason(cpus: list[dict[str, Any]], chosen: int, quota: int) -> str:
    if os.environ.get("POCKETFORMER_THREADS"):
        return "POCKETFORMER_THREADS asks for it"
    if 0 < quota < chosen:
        return f"control groups allow {quota} CPUs"
    cores = len({cpu["core"] for cpu in cpus})
    if chosen < cores:
        return f"the strong ones of {cores} cores; an even share on a weak one would hold the others up"
    if cores < len(cpus):
        return f"one for each core; {len(cpus)} CPUs share {cores} cores"
    return f"the affinity mask holds {len(cpus)} CPUs"


def _clusters(cpus: list[dict[str, Any]]) -> list[dict[str, Any]]:
    strongest = max((cpu["strength"] for cpu in cpus), default=1)
    groups: dict[float, list[int]] = {}
    for cpu in cpus:
        groups.setdefault(round(cpu["strength"] / strongest, 2), []).append(cpu["id"])
    return [{"strength": strength, "cpus": groups[strength]} for strength in sorted(groups, reverse=True)]


def _caches(root: str, cpu: int) -> list[dict[str, Any]]:
    """Data caches of one CPU, nearest first: level, bytes and the CPUs that share it."""
    caches = []
    for folder in sorted(Path(f"{root}/sys/devices/system/cpu/cpu{cpu}/cache").glob("index[0-9]*")):
        kind, level, size = (_read(folder / name) for name in ("type", "level", "size"))
        if kind != "Instruction" and level.isdecimal() and size[:-1].isdecimal() and size[-1] in "KM":
            bytes_ = int(size[:-1]) << {"K": 10, "M": 20}[size[-1]]
            caches.append({"level": int(level), "bytes": bytes_, "shared_by": _read(folder / "shared_cpu_list")})
    return caches


def _cpu(root: str) -> str:
    lines = _read(Path(f"{root}/proc/cpuinfo")).splitlines()
    fields = dict(reversed([(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]))
    board = _read(Path(f"{root}/proc/device-tree/model")).rstrip("\0")
    return fields.get("model name") or fields.get("Model") or board or platform.machine()


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
