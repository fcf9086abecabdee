"""Who is timed by CUDA events; on a CUDA device, that they agree with the machine's clock."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from autocompress.errors import InputError, MissingExtraError
from autocompress.latency import measure_paired
from autocompress.latency.clock import cuda_seconds, time_pair, timer_of, wall_seconds
from autocompress.latency.layer_times import measure_layer_times
from autocompress.latency.on_device import open_session, runtime_version
from autocompress.runtimes import export
from tests.latency.nets import INPUTS, net


def test_only_pytorch_on_a_cuda_device_is_timed_by_events() -> None:
    session: Any = SimpleNamespace(device="cuda")
    assert timer_of(session) is cuda_seconds
    for other in (SimpleNamespace(device="cpu"), SimpleNamespace()):
        assert timer_of(other) is wall_seconds  # type: ignore[arg-type]


def test_a_pair_is_timed_by_the_timer_that_is_given() -> None:
    def run() -> str:
        return "candidate"

    def reference() -> str:
        return "reference"

    timing = time_pair(run, reference, 3, lambda timed: {"candidate": 2e-3, "reference": 8e-3}[str(timed())])
    assert (timing.ratio, timing.candidate_ms, timing.spread) == pytest.approx((0.25, 2.0, 0.0))


def test_a_device_without_the_provider_gets_the_package_to_install(tmp_path: Path) -> None:
    assert runtime_version("onnxruntime-cuda") == runtime_version("onnxruntime")
    with pytest.raises(MissingExtraError, match="must have NoSuchProvider, but has"):
        from autocompress.latency.on_device import _open_onnxruntime

        _open_onnxruntime(tmp_path / "x.onnx", 1, "NoSuchProvider")
    with pytest.raises(InputError, match="onnxruntime-cuda"):
        open_session("tensorflow", tmp_path / "x.onnx", 1)


@pytest.mark.gpu
def test_events_and_profiler_on_a_cuda_device(tmp_path: Path) -> None:
    file = export(net(1)[0], INPUTS, tmp_path, runtime="torch-cuda")
    timing = measure_paired(file, file, INPUTS, runtime="torch-cuda", n_rounds=5)
    assert timing.ratio == pytest.approx(1.0, rel=0.2)
    seconds = cuda_seconds(lambda: torch.cuda._sleep(10_000_000))
    assert 0 < seconds <= wall_seconds(lambda: (torch.cuda._sleep(10_000_000), torch.cuda.synchronize())) * 1.5
    times = measure_layer_times(file, INPUTS, "torch-cuda")
    assert times is not None
    assert sum(node.ms for node in times.nodes) > 0
