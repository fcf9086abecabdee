"""Flags win over a settings file, whose values are checked all the same."""

from __future__ import annotations

from typing import Any

import pytest

from autocompress.cli.commands import given_settings
from autocompress.errors import InputError


def test_flags_win_and_the_rest_of_the_file_stays() -> None:
    file = {"n_trials": 3, "seed": 1, "distill": {"alpha": 0.5, "temperature": 2.0}}
    flags = {"n_trials": 5, "distill.alpha": 0.7, "n_workers": None}
    assert given_settings(flags, file) == {"n_trials": 5, "seed": 1, "distill": {"alpha": 0.7, "temperature": 2.0}}


@pytest.mark.parametrize("value", ["many", 3.5, True, [3]])
def test_a_wrong_value_is_named_although_a_flag_replaces_it(value: Any) -> None:
    with pytest.raises(InputError, match="n_trials"):
        given_settings({"n_trials": 5}, {"n_trials": value})
    with pytest.raises(InputError, match="alpha"):
        given_settings({"distill.alpha": 0.5}, {"distill": {"alpha": value}})
