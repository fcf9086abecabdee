"""Settings: unknown keys, ranges, YAML files."""

from __future__ import annotations

from pathlib import Path

import pytest

from autocompress.config import DistillSettings, SearchSettings, read_settings
from autocompress.errors import InputError


def test_round_trip() -> None:
    settings = SearchSettings(n_trials=7, distill=DistillSettings(rungs=(0, 5)))
    assert SearchSettings.from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"n_trails": 5}, "did you mean n_trials"),
        ({"distill": {"temprature": 2}}, "did you mean temperature"),
        ({"n_trials": 0}, "`n_trials >= 1` must hold, but got 0"),
        ({"minutes": -1}, "minutes"),
        ({"distill": {"rungs": [20, 60]}}, "rungs rise from 0"),
        ({"distill": {"alpha": 1.5}}, "alpha"),
        ({"distill": {"feature_weight": 1.0}}, "feature_layers"),
        ({"distill": [1]}, "mapping"),
    ],
)
def test_bad_settings_name_the_rule_and_the_value(data: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SearchSettings.from_dict(data)


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("n_trials: 3\ndistill: {alpha: 0.5}\n")
    assert SearchSettings.from_dict(read_settings(file)).distill.alpha == 0.5
    file.write_text("!!python/object/apply:os.system ['true']")
    with pytest.raises(InputError, match="must be YAML"):
        read_settings(file)
    file.write_text("- 1")
    with pytest.raises(InputError, match="holds list"):
        read_settings(file)
    with pytest.raises(InputError, match="does not"):
        read_settings(tmp_path / "none.yaml")
