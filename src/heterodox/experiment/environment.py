"""Where a result was made: versions, processor, commit."""

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import numpy
import torch

import heterodox


@functools.cache
def environment(device: str) -> dict[str, str]:
    """Versions, processor, system, device and commit, as strings.

    Example:
        >>> environment("cpu")["device"]
        'cpu'
    """
    return {
        "heterodox": heterodox.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "scipy": importlib.metadata.version("scipy"),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "system": f"{platform.system()} {platform.machine()}",
        "device": _device_name(device),
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        return f"{device} ({torch.cuda.get_device_name(device)})"
    return device


def _commit() -> str:
    """The commit of the source, with "-dirty" if it has been edited; "" outside a checkout."""
    here = Path(__file__).parent
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip() if found.returncode == 0 else ""
