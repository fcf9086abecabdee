"""The command line: help, speed of import, and one clear message with exit code 2 for bad input."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from autocompress.cli import main
from autocompress.config import ALL_THAT_FIT, SearchSettings

NAN_TASK = """
import torch
from torch import nn
from autocompress import SupervisedTask
batch = (torch.randn(8, 3), torch.zeros(8, dtype=torch.long))
model = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))
nan = SupervisedTask(model, [batch], [batch], [batch], metric=lambda outputs, targets: float("nan"))
wrong = SupervisedTask(model, [batch], [batch], [batch], example_inputs=torch.randn(1, 5))
good = SupervisedTask(model, [batch], [batch], [batch])
"""


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    file = tmp_path / "tasks.py"
    file.write_text(NAN_TASK)
    return file


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for command in (
        "demo",
        "inspect",
        "search",
        "resume",
        "report",
        "pick",
        "compare",
        "refine",
        "export",
        "doctor",
        "completion",
    ):
        assert re.search(rf"\n    {command}\s", text), "argparse gives the longest one a line of its own"


def test_importing_the_package_imports_neither_torch_nor_ray() -> None:
    code = (
        "import autocompress, autocompress.cli, sys; print([m for m in ('torch', 'ray', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("flags", "expected"), [([], True), (["--no-reconstruct"], False), (["--reconstruct"], True)])
def test_reconstruct_reaches_the_settings(
    flags: list[str], expected: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SearchSettings] = []
    monkeypatch.setattr("autocompress.api.run_new", lambda task, settings, run_dir: asked.append(settings))
    monkeypatch.setattr("autocompress.cli.searching.show", lambda run_dir: None)
    main(["search", "digits", "--run-dir", str(tmp_path / "run"), *flags])
    assert [settings.reconstruct for settings in asked] == [expected]


def test_every_limit_reaches_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[SearchSettings] = []
    monkeypatch.setattr("autocompress.api.run_new", lambda task, settings, run_dir: asked.append(settings))
    monkeypatch.setattr("autocompress.cli.searching.show", lambda run_dir: None)
    flags = (
        "--latency-budget 0.6x,0.3x --size-budget-mib 0.5 --memory-budget-mib 30 --min-accuracy 0.9 --minutes 2.5 "
        "--patience 20"
    )
    main(["search", "digits", "--run-dir", str(tmp_path / "run"), *flags.split()])
    (found,) = asked
    assert (found.latency_budget, found.size_budget_mib, found.memory_budget_mib) == ("0.6x,0.3x", 0.5, 30.0)
    assert (found.min_accuracy, found.minutes, found.patience) == (0.9, 2.5, 20)
    assert found.n_trials == ALL_THAT_FIT, "as many as fit into the minutes"


def test_functions_win_over_modules_of_like_names() -> None:
    code = """
import autocompress.execution.search_loop, autocompress.compression, autocompress.distillation, autocompress.runtimes
import autocompress as ac
print(all(callable(getattr(ac, name)) for name in ac.__all__ if name[0].islower()))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "no_such.py:task"], "must exist"),
        (["search", "digitz"], "a task must be one of"),
        (["search", "{tasks}:nothing"], "has no 'nothing'"),
        (["search", "{tasks}:nan"], "must return finite numbers"),
        (["search", "{tasks}:wrong"], "must run on the inputs of `example_inputs()`"),
        (["search", "{tasks}:good", "--space", "defualt"], "try default"),
        (["search", "{tasks}:good", "--latency-budget", "fast"], "a latency budget is"),
        (["search", "{tasks}:good", "--latency-budget", "0.0001x"], "out of reach"),
        (["search", "{tasks}:good", "--runtime", "tensorflow"], "runtime must be one of"),
        (["search", "{tasks}:good", "--sampler", "magic"], "sampler must be one of"),
        (["search", "{tasks}:good", "--trials", "0"], "n_trials >= 1"),
        (["search", "{tasks}:good", "--config", "{config}"], "did you mean n_trials"),
        (["search", "{tasks}:good", "--run-dir", "{here}"], "exists; name another one"),
        (["resume", "{here}"], "a run folder holds run.json"),
        (["report", "{here}"], "a run folder holds run.json"),
        (["report", "{here}", "--serve"], "a run folder holds run.json"),
        (["report", "{here}", "--figure", "front.svg"], "a run folder holds run.json"),
        (["pick", "{here}", "-o", "{here}"], "new folder"),
        (["compare", "{here}", "1", "2"], "a run folder holds run.json"),
        (["refine", "{here}", "1", "--epochs", "0"], "epochs >= 1"),
        (["export", "{here}", "1", "--runtime", "torch", "-o", "{here}"], "new folder"),
        (["export", "{here}", "1", "--runtime", "torch", "-o", "{here}/new"], "a run folder holds run.json"),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(
    arguments: list[str],
    message: str,
    task_file: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(task_file.parent)
    config = task_file.with_name("settings.yaml")
    config.write_text("n_trails: 3\n")
    values = {"tasks": str(task_file), "config": str(config), "here": str(task_file.parent)}
    before = set(task_file.parent.iterdir())
    assert main([argument.format(**values) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1, "one message, no traceback"
    assert {
        path for path in task_file.parent.iterdir() if path.suffix != ".pyc" and path.name != "__pycache__"
    } == before


def test_missing_data_says_where_to_put_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUTOCOMPRESS_DATA", str(tmp_path / "nowhere"))
    assert main(["inspect", "cifar10:resnet20"]) == 2
    assert "AUTOCOMPRESS_DATA" in capsys.readouterr().err


def test_inspect_shows_groups_and_what_is_frozen(task_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"{task_file}:good", "--space", "default"]) == 0
    text = capsys.readouterr().out
    assert "channel groups" in text and "is an output of the model" in text and "prune_ratio" in text
