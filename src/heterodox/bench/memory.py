"""The peak memory of one call above what its inputs take.

On a CPU each contestant is measured in a fresh process, since an allocator keeps what an earlier
one has freed, and hands it out again unseen.
"""

import contextlib
import ctypes
import gc
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext

import psutil
import torch

from heterodox.bench import BENCHES
from heterodox.bench.contestants import contestant
from heterodox.bench.workload import Case
from heterodox.experiment.memory import peak_memory, reset_peak_memory

# The part of the free memory that a contestant may take before it counts as too large.
SHARE = 0.5


def peak_above_inputs(slot: str, name: str, case: Case, device: str, threads: int) -> int | None:
    """Bytes; None where they cannot be measured, which is anywhere but on Linux and on CUDA.

    Raises:
        MemoryError: the call needs more memory than there is.
    """
    kind = torch.device(device).type
    if kind == "cuda":
        return _peak_on_cuda(BENCHES[slot]().prepare(contestant(slot, name), case, device))
    if kind != "cpu":
        return None
    with ProcessPoolExecutor(max_workers=1, mp_context=_context()) as pool:
        try:
            return pool.submit(_peak_on_cpu, slot, name, case, threads).result()
        except BrokenProcessPool:
            raise MemoryError("its process was killed, most likely for its memory") from None


def _context() -> BaseContext:
    """A forkserver, where there is one, imports torch and the workloads once for all."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    workloads = [BENCHES.where(slot).partition(":")[0] for slot in BENCHES]
    context.set_forkserver_preload([__name__, *workloads])
    return context


def _peak_on_cpu(slot: str, name: str, case: Case, threads: int) -> int | None:
    limit = _limit_memory()
    torch.set_num_threads(threads)
    try:
        call = BENCHES[slot]().prepare(contestant(slot, name), case, "cpu")
        call()  # loads libraries, compiles, makes an optimizer's state
        _trim()
        if not reset_peak_memory():
            return None
        before = peak_memory()
        call()
        return peak_memory() - before
    except RuntimeError as error:
        if "can't allocate memory" in str(error):
            raise MemoryError(f"needs more than {limit / 1e9:.1f} GB") from None
        # Not as it is: the compiler's own errors cannot be pickled.
        raise RuntimeError(f"{type(error).__name__}: {error}") from None


def _peak_on_cuda(call: Callable[[], object]) -> int:
    try:
        call()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.max_memory_allocated() - before
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        raise MemoryError("needs more memory than the GPU has") from error


def _limit_memory() -> int:
    """Makes torch raise, where the system would kill some process, this or another."""
    allowed = int(SHARE * psutil.virtual_memory().available)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # not on Windows

        limit = psutil.Process().memory_info().vms + allowed
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return allowed


def _trim() -> None:
    """Gives what was freed back to the system, so that taking it again is seen."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)
