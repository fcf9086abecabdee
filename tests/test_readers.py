"""No file that is read makes a traceback: whatever is in it, a reader gives a value or one clear error.

FUZZ_EXAMPLES sets how many files each reader gets; the default is for the suite.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from autocompress.config import SearchSettings, read_settings
from autocompress.errors import AutocompressError
from autocompress.execution.sensitivity import ChoiceLoss, Sensitivity
from autocompress.graph import inspect_model
from autocompress.latency import LatencyModel
from autocompress.latency.hardware_description import load_hardware
from autocompress.latency.on_device import PLAN
from autocompress.latency.online_predictor import load_latency_model
from autocompress.latency.profiling import profile_of
from autocompress.latency.roofline import Estimate
from autocompress.publishing.artifact import MANIFEST, read_manifest
from autocompress.publishing.model_card import write_card
from autocompress.publishing.point_folder import require_as_measured
from autocompress.report.page import page
from autocompress.report.status import status_lines
from autocompress.results.pareto import front_of
from autocompress.results.records import read_records, write_records
from autocompress.results.run_folder import RunFolder
from autocompress.space.search_space import SearchSpace
from autocompress.tasks.identifiers import is_task_id, read_task_id
from tests.latency.nets import made_up_table
from tests.results.test_run_folder import INFO, RECORDS
from tests.shared.points import Point
from tests.shared.tasks import RULES, images, trained_model

N_EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "40"))
Read = Callable[[Path], object]

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=10**18)
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(["", "nan", "../x", "os:path", "1e-2", "false", "\u202e", "a\x00b", "re:(", "0.5x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


def changed(document: Any, value: Any, seed: int) -> Any:
    """The document with one to three of its parts replaced, removed, doubled or renamed."""
    rng = random.Random(seed)
    document = copy.deepcopy(document)
    for _ in range(rng.randint(1, 3)):
        holder, key = document, None
        while isinstance(holder, dict | list) and holder:
            key = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
            if not isinstance(holder[key], dict | list) or not holder[key] or rng.random() < 0.3:
                break
            holder = holder[key]
        if key is None or not holder:
            return value
        action = rng.choice(["replace", "replace", "remove", "double", "rename"])
        if action == "remove":
            del holder[key]
        elif action == "double" and isinstance(holder, list):
            holder.append(holder[key])
        elif action == "rename" and isinstance(holder, dict):
            holder[str(value)[:8]] = holder.pop(key)
        else:
            holder[key] = value
    return document


def damaged(content: bytes, noise: bytes, seed: int) -> bytes:
    """The bytes cut off, with noise in them, or with a part twice."""
    rng = random.Random(seed)
    place = rng.randrange(len(content) + 1)
    return rng.choice(
        [
            content[:place],
            content[:place] + noise + content[place:],
            content[:place] + noise + content[place + len(noise) :],
            content[:place] + content[max(0, place - 40) :],
            noise,
        ]
    )


def ends_well(read: Read, file: Path) -> None:
    with warnings.catch_warnings(), contextlib.suppress(AutocompressError):
        warnings.simplefilter("ignore")
        read(file)


def fuzzed(document: Any, write: Callable[[Any], bytes], read: Read, file: Path) -> None:
    """Reads many wrong versions of a document."""
    whole = write(document)
    file.write_bytes(whole)
    read(file)  # the right one is read

    @settings(max_examples=N_EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(value=VALUES, noise=st.binary(max_size=8), seed=st.integers(0, 2**32), as_bytes=st.booleans())
    def wrong(value: Any, noise: bytes, seed: int, as_bytes: bool) -> None:
        try:
            content = damaged(whole, noise, seed) if as_bytes else write(changed(document, value, seed))
        except (UnicodeEncodeError, yaml.YAMLError, ValueError):
            return  # no such file can be written
        file.write_bytes(content)
        ends_well(read, file)

    wrong()


def as_json(document: Any) -> bytes:
    return json.dumps(document).encode()


def as_yaml(document: Any) -> bytes:
    text: str = yaml.safe_dump(document)
    return text.encode()


def as_lines(document: Any) -> bytes:
    lines = document if isinstance(document, list) else [document]
    return "\n".join(map(json.dumps, lines)).encode()


@cache
def _graph() -> Any:
    return inspect_model(trained_model(), (images(1, 0)[0],))


def test_spaces(tmp_path: Path) -> None:
    document = {"channel_grid": 4, "rank_grid": 2, "rules": RULES, "fine_tune": {"alpha": [None, 0.5]}}
    fuzzed(document, as_yaml, lambda file: SearchSpace.load(str(file), _graph()), tmp_path / "space.yaml")


def test_settings(tmp_path: Path) -> None:
    document = json.loads(json.dumps(SearchSettings(distill={"rungs": [0, 5]}).to_dict()))  # type: ignore[arg-type]
    fuzzed(document, as_yaml, lambda file: SearchSettings.from_dict(read_settings(file)).to_dict(), tmp_path / "s.yaml")


def test_hardware(tmp_path: Path) -> None:
    document = load_hardware("raspberry_pi_5").to_dict()
    fuzzed(document, as_yaml, lambda file: load_hardware(str(file)), tmp_path / "device.yaml")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    folder.write_info(INFO)
    write_records(folder.records, RECORDS)
    return folder


def test_run_info(run: RunFolder) -> None:
    fuzzed(json.loads(run.info.read_text()), as_json, lambda file: run.read(), run.info)


def test_records(run: RunFolder) -> None:
    document = [json.loads(line) for line in run.records.read_text().splitlines()]
    objectives = run.read_info().objectives
    fuzzed(document, as_lines, lambda file: front_of(read_records(file), objectives), run.records)


def test_a_page_and_a_status_of_any_records_that_are_read(run: RunFolder) -> None:
    document = [json.loads(line) for line in run.records.read_text().splitlines()]
    fuzzed(document, as_lines, lambda file: (page(run.read()), status_lines(run)), run.records)


def test_events(run: RunFolder) -> None:
    now = "2026-01-01T00:00:00+00:00"
    document = [
        {"time": now, "event": "started", "trial": 1},
        {"time": now, "event": "rung", "trial": 1, "steps": 0, "host": "h", "pid": 3},
        {"time": now, "event": "failed", "trial": 2, "reason": "\x1b[31mred"},
    ]

    def read(file: Path) -> None:
        assert not any("\x1b" in line for line in status_lines(run))

    with run.locked():
        fuzzed(document, as_lines, read, run.events)


def test_manifests(float_point: Point, tmp_path: Path) -> None:
    file = tmp_path / MANIFEST
    for path in float_point[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())

    def read(file: Path) -> None:
        manifest = read_manifest(file.parent)
        require_as_measured(file.parent, manifest)
        write_card(file.parent, None)

    fuzzed(json.loads(file.read_text()), as_json, read, file)


def test_profiles(tmp_path: Path) -> None:
    LatencyModel(made_up_table(14)).save(tmp_path / "whole.json")
    document = json.loads((tmp_path / "whole.json").read_text())
    fuzzed(document, as_json, lambda file: load_latency_model(file), tmp_path / "device.json")


def test_estimates(tmp_path: Path) -> None:
    shape = made_up_table(14).shape
    Estimate(load_hardware("raspberry_pi_5"), shape, {"task": "t", "n_threads": 1, "batch": 1}).save(tmp_path / "w")
    document = json.loads((tmp_path / "w").read_text())
    fuzzed(document, as_json, lambda file: load_latency_model(file), tmp_path / "device.json")


def plan_and_results() -> tuple[dict[str, Any], dict[str, Any]]:
    table = made_up_table(14)
    wholes = {f"candidate_{i}.onnx": asked.to_dict() for i, (asked, _) in enumerate(table.candidates)}
    pieces = {key: f"layer_{i}.onnx" for i, key in enumerate(table.pieces)}
    plan = {
        "digest": "0" * 12,
        "task": "t",
        "runtime": "onnxruntime",
        "n_threads": 1,
        "batch": 1,
        "reference": "reference.onnx",
        "weights": {"file": "weights.bin", "n_bytes": 8},
        "files": [*wholes, *pieces.values()],
        "pieces": pieces,
        "candidates": wholes,
        "shape": table.shape.to_dict(),
    }
    figures = {"ratio": [0.5, 0.6], "spread": [0.01, 0.0], "reference_ms": [2.0, 2.1]}
    results = {
        "schema": 1,
        "plan": plan["digest"],
        "runtime": "onnxruntime",
        "version": "1.0",
        "n_threads": 1,
        "batch": 1,
        "device": {"cpu": "a CPU"},
        "started": "2026-01-01T00:00:00+00:00",
        "reference_ms": [2.0, 2.1],
        "measured": dict.fromkeys(plan["files"], figures),
    }
    return json.loads(json.dumps(plan)), json.loads(json.dumps(results))


def test_plans(tmp_path: Path) -> None:
    plan, results = plan_and_results()
    (tmp_path / "measured.json").write_bytes(as_json(results))
    fuzzed(plan, as_json, lambda file: profile_of(tmp_path, tmp_path / "measured.json"), tmp_path / PLAN)


def test_measurements(tmp_path: Path) -> None:
    plan, results = plan_and_results()
    (tmp_path / PLAN).write_bytes(as_json(plan))
    fuzzed(results, as_json, lambda file: profile_of(tmp_path, file), tmp_path / "measured.json")


def test_sensitivities(tmp_path: Path) -> None:
    choices = tuple(ChoiceLoss("weight_bits", name, 8, loss) for name, loss in (("fc", 0.5), ("conv", float("nan"))))
    Sensitivity(0.3, choices).write(tmp_path / "whole.json")
    document = json.loads((tmp_path / "whole.json").read_text())
    fuzzed(document, as_json, Sensitivity.read, tmp_path / "sensitivity.json")


@settings(max_examples=N_EXAMPLES, deadline=None)
@given(st.from_regex(r"(hf|timm|torchvision):[a-z./?&=%0-9_\-:]{0,40}", fullmatch=True) | st.text(max_size=30))
def test_task_ids(text: str) -> None:
    if is_task_id(text):
        with contextlib.suppress(AutocompressError):
            read_task_id(text)
