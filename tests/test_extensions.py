"""Extensions by name or by `package.module:name`, and their errors."""

from __future__ import annotations

import math

import pytest

from autocompress.errors import InputError, MissingExtraError
from autocompress.extensions import find_extension


def test_a_path_gives_the_attribute() -> None:
    assert find_extension("sampler", "mine", "math:isqrt", ["tpe"]) is math.isqrt


@pytest.mark.parametrize("target", ["", "math", "math:", ":isqrt", ".math:isqrt"])
def test_another_form_lists_the_known_names(target: str) -> None:
    with pytest.raises(InputError, match=r"sampler must be one of \['nsga2', 'tpe'\] or package.module:Class, but"):
        find_extension("sampler", target, target, ["tpe", "nsga2"])


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(
        MissingExtraError, match=r"needs the package 'no_such_package'.*pip install \"autocompress\[x\]"
    ):
        find_extension("runtime", "r", "no_such_package.inner:Runtime", [], extra="x")
    with pytest.raises(MissingExtraError, match="which is not installed$"):
        find_extension("runtime", "r", "no_such_package:Runtime", [])


def test_a_missing_attribute_is_an_input_error() -> None:
    with pytest.raises(InputError, match="has no attribute 'no_such_name'"):
        find_extension("task", "t", "math:no_such_name", [])
