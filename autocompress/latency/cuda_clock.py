"""Times runs on a CUDA device by the device's own events, which see neither Python nor the queue before them."""

from __future__ import annotations

from autocompress.latency.clock import Run, Timer, wall_seconds
from autocompress.runtimes import Session


def timer_of(session: Session) -> Timer:
    """Events for sessions whose work is in PyTorch's current CUDA stream; the machine's clock for all others.

    ONNX Runtime has a stream of its own and returns when the outputs are there: its runs are timed from outside.
    """
    return cuda_seconds if getattr(session, "device", None) == "cuda" else wall_seconds


def cuda_seconds(run: Run) -> float:
    """Between an event before and one after the run, on the device."""
    import torch

    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3
