"""What keeps a search from running, and what does not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from autocompress.doctor.examination import CORE, Examination
from autocompress.doctor.packages import Package
from autocompress.doctor.probe import LIBRARIES
from autocompress.doctor.probing import Probe, Probes
from autocompress.doctor.surroundings import Data, Folder, Load


def examined(**changes: Any) -> Examination:
    """One in which all is well; `states` are those of probes by name."""
    states = changes.pop("states", {})
    probes = tuple(
        Probe(name, library, states.get(name, "ok"), "as it is", {"8": {"linear": "int8"}})
        for library, names in LIBRARIES.items()
        for name in names
    )
    found = Examination(
        packages=(Package("torch", ">=2.13", "2.13.0"), Package("timm", "", None, ("timm",))),
        probes=Probes(probes, ""),
        machine={"cpu": "a CPU", "cores": "2", "memory": "8 GB", "governor": "performance", "system": "Linux"},
        features=frozenset({"avx2"}),
        load=Load(0.1, 2),
        data=Data("/data", True, "found: /data"),
        folders=[Folder("runs", "/", 50.0)],
        nvidia_driver=False,
    )
    return replace(found, **changes)


def test_all_is_well() -> None:
    assert examined().faults == []


@pytest.mark.parametrize("name", CORE)
@pytest.mark.parametrize("state", ["failed", "missing"])
def test_the_core_is_what_no_search_can_do_without(name: str, state: str) -> None:
    assert examined(states={name: state}).faults == [f"{name}: as it is"]


def test_other_runtimes_and_no_answer_are_no_faults() -> None:
    others = {name: "failed" for names in LIBRARIES.values() for name in names if name not in CORE}
    assert examined(states=others).faults == []
    assert examined(states=dict.fromkeys(CORE, "unknown")).faults == []


def test_a_needed_package_that_is_missing_is_a_fault_unless_another_build_works() -> None:
    assert examined(packages=(Package("scipy", ">=1", None),)).faults == ["scipy is not installed"]
    assert examined(packages=(Package("onnxruntime", ">=1", None),)).faults == [], "such as onnxruntime-gpu"
    assert examined(packages=(Package("timm", "", None, ("timm",)),)).faults == []


@pytest.mark.parametrize(
    ("accelerators", "driver", "text"),
    [
        ("cuda:0 (H100)", True, "cuda:0 (H100)"),
        ("", True, "PyTorch sees no GPU"),
        ("", False, "trained on the CPU"),
        (None, False, "gave no answer"),
    ],
)
def test_the_gpu(accelerators: str | None, driver: bool, text: str) -> None:
    found = examined(probes=Probes((), accelerators), nvidia_driver=driver)
    assert text in found.gpu_text()


def test_it_is_plain_json() -> None:
    data = json.loads(json.dumps(examined(load=None).to_dict()))
    assert data["core_works"] is True and data["load"] is None and data["gpu"] is None
    assert data["packages"][1] == {
        "name": "timm", "wanted": "", "version": None, "extras": ["timm"], "fault": "timm is not installed",
    }  # fmt: skip
    assert data["runtimes"][0]["executes"] == {"8": {"linear": "int8"}}
