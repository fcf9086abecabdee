"""Makes and measures the 8-bit file of the runtime's own tool, to compare the front with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import islice

from autocompress.batches import n_samples, part_of
from autocompress.evaluation import evaluate_session
from autocompress.latency.target_device import LocalDevice
from autocompress.publishing.export_point import SPLITS
from autocompress.results.peer import Peer, read_peer
from autocompress.results.records import Latency
from autocompress.results.run_folder import RunFolder, RunInfo
from autocompress.runtimes.engine_int8 import ENGINE_TOOLS, quantize_with_engine
from autocompress.search_context import SearchContext
from autocompress.task import Inputs, Task
from autocompress.task_access import calibration_of, examples_of

_N_SAMPLES = 128
_N_ROUNDS = 15
_BYTES_PER_MIB = 2**20


def measure_engine_peer(context: SearchContext, folder: RunFolder, info: RunInfo) -> Peer | None:
    """The engine's own 8-bit file in the run's `peer` folder, timed and judged as a point of the front is.

    What an earlier start of the run measured is taken over.

    Returns:
        None where the runtime has no such tool, or the model is for another machine than this.

    Raises:
        Exception: whatever the tool raises where it cannot take the model.
    """
    runtime = info.settings.runtime
    tool = ENGINE_TOOLS.get(runtime)
    if tool is None or info.settings.latency_resource is not None:
        return None
    known = read_peer(folder.peer)
    if known is not None:
        return known
    partial = folder.peer.with_name(".peer")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    plain = partial / "plain.onnx"
    plain.write_bytes(folder.reference.read_bytes())
    file = partial / tool.file_name
    samples = list(islice(single_samples(context.task), _N_SAMPLES))
    quantize_with_engine(runtime, plain, file, samples, info.half_range_weights)
    plain.unlink()
    device = LocalDevice(runtime, info.settings.n_threads)
    session, reference = device.load(file), device.load(folder.reference)
    inputs = examples_of(context.task)
    timing = device.time(session, reference, inputs, _N_ROUNDS, idle_ms=info.objectives.reference_ms)
    ms = timing.ratio * info.objectives.reference_ms
    peer = Peer(
        tool.title,
        file.name,
        {split: evaluate_session(session, context.task, split)[0] for split in SPLITS},
        Latency(timing.ratio, timing.spread, ms, timing.n_rounds),
        sum(path.stat().st_size for path in partial.iterdir()) / _BYTES_PER_MIB,
    )
    peer.write(partial)
    partial.rename(folder.peer)
    return read_peer(folder.peer)


def single_samples(task: Task) -> Iterator[Inputs]:
    """Calibration samples in batches of the size of the example inputs, as a file takes them."""
    size = n_samples(examples_of(task))
    for inputs in calibration_of(task):
        n_given = n_samples(inputs)
        for start in range(0, n_given - size + 1, size):
            yield part_of(inputs, start, start + size, n_given)
