"""A file that differs from its student is refused, as a front point and as the reference of a search."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import autocompress as ac
from autocompress.errors import ExportError
from autocompress.runtimes.onnxruntime_backend import OnnxRuntime
from autocompress.space.candidate import Candidate
from autocompress.task import Inputs
from tests.shared.points import tiny_point
from tests.shared.tasks import tiny_space, tiny_task

pytestmark = pytest.mark.usefixtures("brief_clock")


class Wrong(OnnxRuntime):
    """Writes another model than it was given."""

    def export(self, student: nn.Module, example_inputs: Inputs, folder: Path) -> Path:
        broken = copy.deepcopy(student)
        for name, module in broken.named_modules():
            if name == "conv2":
                with torch.no_grad():
                    module.weight.neg_()  # type: ignore[union-attr,operator]
        return super().export(broken, example_inputs, folder)


WRONG = f"{__name__}:Wrong"


def test_a_finalist_whose_file_differs_is_refused_at_its_layer(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="they part at layer 'conv2'"):
        tiny_point(tmp_path / "trial_0007", Candidate(weight_bits={"conv1": 8, "fc": 8}), WRONG)


def test_a_search_on_a_runtime_that_miswrites_the_model_does_not_begin(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="they part at layer 'conv2'"):
        ac.search(tiny_task(), space=tiny_space(), runtime=WRONG, run_dir=tmp_path / "run", show_progress=False)
    assert not (tmp_path / "run").exists()
