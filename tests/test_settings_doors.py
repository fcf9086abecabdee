"""Every setting reaches a search through all four doors: Python, the command line, a settings file, and `resume`."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
import yaml

from autocompress import api
from autocompress.cli import main
from autocompress.cli.commands import given_settings
from autocompress.cli.settings_table import settings_table
from autocompress.config import CHANGEABLE, ChangeableDict, SearchSettings, SettingsDict
from autocompress.settings_schema import Declared, declared_in, types_of

OTHER: dict[str, Any] = {
    "": {
        "space": "digits", "runtime": "openvino", "n_threads": 3, "latency_budget": "0.5x", "size_budget_mib": 1.5,
        "memory_budget_mib": 2.5, "min_accuracy": 0.25, "n_trials": 7, "minutes": 2.5, "n_workers": 3,
        "cpus_per_trial": 0.5, "gpus_per_trial": 0.25,
        "device": "cuda:1", "trial_minutes": 1.5, "trial_retries": 5, "patience": 4,
        "polish_share": 0.25,
        "polish_points": 3,
        "polish_steps": 70,
        "sampler": "tpe", "sensitivity": "fisher", "early_stopping": False, "importance": "l1",
        "latency_model": "device.json", "force_latency_model": True, "reconstruct": False,
        "inherit_weights": False, "activation_aware": False,
        "seed": 9, "ray_address": "auto", "latency_resource": "pi", "dashboard": True, "loggers": ["mlflow", "wandb"],
        "fine_tune_margin": 0.25,
    },
    "distill": {
        "rungs": [0, 3, 9],
        "optimizer": "adamw",
        "teacher_loss": "cosine", "learning_rate": 0.5, "weight_decay": 0.25, "temperature": 2.0, "alpha": 0.5,
        "feature_weight": 0.5, "feature_layers": ["a", "b"], "learn_scales": True, "compile": True, "l1_weight": 0.5,
        "round_from": 0.25,
        "group_lasso_weight": 0.5,
    },
    "quantize": {"ranges": "mse", "weights": "mse", "correct_bias": True},
}  # fmt: skip
"""A valid value of each setting that is not its default; a new setting needs one here."""

NEEDS = {"latency_resource": {"ray_address": "auto"}, "feature_weight": {"feature_layers": ["a"]}}
DECLARED = list(declared_in(SearchSettings))
each_setting = pytest.mark.parametrize("declared", DECLARED, ids=lambda declared: declared.flags[0])


def other(declared: Declared) -> Any:
    value = OTHER[declared.part][declared.name]
    assert value != declared.default and list(value if isinstance(value, list) else [value]) != [declared.default]
    return value


def with_needs(declared: Declared) -> dict[str, Any]:
    values = {declared.name: other(declared), **NEEDS.get(declared.name, {})}
    return {declared.part: values} if declared.part else values


def found(declared: Declared, settings: SearchSettings) -> Any:
    value = getattr(getattr(settings, declared.part) if declared.part else settings, declared.name)
    return list(value) if isinstance(value, tuple) else value


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[SearchSettings]:
    """The settings with which searches were started."""
    seen: list[SearchSettings] = []

    def start(task: Any, space: Any, settings: SearchSettings, *others: Any) -> None:
        seen.append(settings)

    monkeypatch.setattr("autocompress.execution.search_loop.start", start)
    monkeypatch.setattr("autocompress.cli.searching.show", lambda run_dir: None)
    return seen


@each_setting
def test_python(declared: Declared, started: list[SearchSettings], tmp_path: Path) -> None:
    api.search("digits", run_dir=tmp_path / "run", **with_needs(declared))
    assert found(declared, started[0]) == other(declared)


@each_setting
def test_command_line(declared: Declared, started: list[SearchSettings], tmp_path: Path) -> None:
    argv = ["search", "digits", "--run-dir", str(tmp_path / "run")]
    for name, value in (with_needs(declared).get(declared.part) or with_needs(declared)).items():
        flag = next(d.flags[0] for d in DECLARED if (d.part, d.name) == (declared.part, name))
        if isinstance(value, bool):
            argv.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            argv += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    assert main(argv) == 0
    assert found(declared, started[0]) == other(declared)


@each_setting
def test_settings_file(declared: Declared, started: list[SearchSettings], tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(yaml.safe_dump(with_needs(declared)), encoding="utf-8")
    assert main(["search", "digits", "--run-dir", str(tmp_path / "run"), "--config", str(file)]) == 0
    assert found(declared, started[0]) == other(declared)


@each_setting
def test_resume_takes_what_is_changeable_and_nothing_else(
    declared: Declared, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(
        "autocompress.execution.search_loop.resume",
        lambda run, task, console, changes, rebuild: seen.append(dict(changes)),
    )
    monkeypatch.setattr("autocompress.cli.searching.show", lambda run_dir: None)
    for place in ("api", "results.provenance"):
        monkeypatch.setattr(f"autocompress.{place}.require_trust", lambda *_, **__: None)
    value = other(declared)
    flag = [declared.flags[0]] if value is True else [declared.flags[0], str(value)]
    if declared.setting.changeable:
        api.resume(tmp_path, **{declared.name: value})  # type: ignore[arg-type]  # any of them
        assert main(["resume", str(tmp_path), *flag]) == 0
        assert seen == [{declared.name: value}] * 2
    else:
        with pytest.raises(ValueError, match=f"no key '{declared.name}'"):
            api.resume(tmp_path, **{declared.name: value})  # type: ignore[arg-type]  # this is the mistake
        with pytest.raises(SystemExit):
            main(["resume", str(tmp_path), *flag])
        assert "unrecognized arguments" in capsys.readouterr().err


def test_the_typed_signatures_are_those_of_the_settings() -> None:
    """`SettingsDict` is what type checkers and editors see of `search(**settings)`; `space` is its own argument."""
    types = types_of(SearchSettings)
    hints = typing.get_type_hints(SettingsDict)
    plain = {name: kind for name, kind in types.items() if name not in ("space", "distill", "quantize")}
    assert {name: hint for name, hint in hints.items() if name in plain} == plain
    assert set(hints) == set(types) - {"space"}
    assert set(typing.get_type_hints(ChangeableDict)) == set(CHANGEABLE)


def test_the_page_of_settings_is_up_to_date() -> None:
    page = Path(__file__).parents[1] / "docs" / "settings.md"
    assert page.read_text(encoding="utf-8") == settings_table(), "run `make settings-page`"


def test_flags_win_over_the_file_and_leave_its_other_keys() -> None:
    file = {"n_trials": 3, "distill": {"alpha": 0.5, "learning_rate": 0.5}}
    flags = {"n_trials": 4, "seed": None, "distill.alpha": None, "distill.learning_rate": 0.1}
    assert given_settings(flags, file) == {"n_trials": 4, "distill": {"alpha": 0.5, "learning_rate": 0.1}}
