"""OpenVINO as a target."""

from __future__ import annotations

import builtins
import sys
from typing import Any

import pytest

from autocompress.errors import MissingExtraError
from autocompress.runtimes import runtime_named
from tests.runtimes.contract import RuntimeContract


class TestOpenVino(RuntimeContract):
    name = "openvino"
    refusal = "OpenVINO .* refuses"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def installed(cls) -> None:
        pytest.importorskip("openvino", reason="the extra 'openvino' is not installed")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def hidden(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "openvino":
            raise ModuleNotFoundError("No module named 'openvino'", name="openvino")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "autocompress.runtimes.openvino_backend", raising=False)
    monkeypatch.setattr(builtins, "__import__", hidden)
    with pytest.raises(MissingExtraError, match=r"'openvino', which is not installed; `pip install .*\[openvino\]"):
        runtime_named("openvino")
