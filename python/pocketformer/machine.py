"""What this machine offers, and what is made of it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from ._core import cgroup_cpus, default_threads, isas


def describe_machine() -> dict[str, Any]:
    """CPU, instruction sets and threads, each choice with its reason; ready for JSON."""
    forced = os.environ.get("POCKETFORMER_ISA")
    supported = isas()
    allowed, quota = len(os.sched_getaffinity(0)), cgroup_cpus()
    return {
        "cpu": _cpu(),
        "isas": supported,
        "isa": forced or supported[0],
        "isa_reason": "POCKETFORMER_ISA asks for it" if forced else "the best that this CPU supports",
        "cpus": os.cpu_count(),
        "affinity_cpus": allowed,
        "quota_cpus": quota or None,
        "threads": default_threads(),
        "threads_reason": (
            f"control groups allow {quota} CPUs" if 0 < quota < allowed else f"the affinity mask holds {allowed} CPUs"
        ),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    fields = dict(reversed([(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]))
    return fields.get("model name") or fields.get("Model") or platform.machine()
