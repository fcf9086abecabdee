"""What every runtime must do; the tests of a runtime subclass it and name theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from autocompress.errors import ExportError, InputError
from autocompress.runtimes import PRECISIONS, Runtime, Session, runtime_named
from autocompress.task import Inputs, call_model


class Two(nn.Module):
    """Two inputs of different shapes that do not commute."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3), nn.Linear(5, 4)

    def forward(self, image: Tensor, extra: Tensor) -> Tensor:
        return self.conv(image).mean((2, 3)) - self.fc(extra)


class Branching(nn.Module):
    """Its way depends on the data."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def inputs_of(n: int, named: bool) -> Inputs:
    generator = torch.Generator().manual_seed(n)
    image, extra = torch.randn(n, 2, 6, 6, generator=generator), torch.randn(n, 5, generator=generator)
    return {"image": image, "extra": extra} if named else (image, extra)


class RuntimeContract:
    """Subclass it and set `name`; `refusal` is the start of the message about a file that is none."""

    name: str
    refusal: str

    @pytest.fixture(scope="class")
    @classmethod
    def runtime(cls) -> Runtime:
        return runtime_named(cls.name)

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> nn.Module:
        torch.manual_seed(0)
        return Two().eval()

    @pytest.fixture(scope="class")
    @classmethod
    def files(cls, runtime: Runtime, model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
        """A file by its batch size; the one of batch size 4 was exported from named inputs."""
        found = {}
        for n in (1, 4):
            folder = tmp_path_factory.mktemp(f"{cls.name}{n}")
            found[n] = runtime.export(model, inputs_of(n, named=n == 4), folder)
            assert [path.name for path in folder.iterdir()] == [found[n].name], "one file, and nothing else"
        return found

    @pytest.fixture(scope="class")
    @classmethod
    def sessions(cls, runtime: Runtime, files: dict[int, Path]) -> dict[int, Session]:
        return {n: runtime.load(file) for n, file in files.items()}

    def test_it_is_listed_with_its_name_and_table(self, runtime: Runtime) -> None:
        assert runtime.name == self.name
        table = runtime.capabilities()
        assert table[0].precision == 32
        assert {"conv2d", "linear"} <= set(table[0].kernels)
        assert all(item.precision in PRECISIONS for item in table)
        assert len({item.precision for item in table}) == len(table)

    @pytest.mark.parametrize("batch", [1, 4])
    @pytest.mark.parametrize("n", [1, 3, 4, 5, 9])
    @pytest.mark.parametrize("named", [False, True])
    def test_predictions_equal_pytorch(
        self, model: nn.Module, sessions: dict[int, Session], batch: int, n: int, named: bool
    ) -> None:
        inputs = inputs_of(n, named)
        found = sessions[batch].predict(inputs)
        assert found.shape == (n, 4)
        with torch.no_grad():
            torch.testing.assert_close(found, call_model(model, inputs), atol=1e-5, rtol=1e-5)

    def test_a_run_takes_what_was_prepared_any_number_of_times(self, sessions: dict[int, Session]) -> None:
        inputs, others = inputs_of(4, named=True), inputs_of(5, named=False)
        before = sessions[4].predict(inputs)
        feed = sessions[4].prepare(dict(reversed(list(inputs.items()))))  # type: ignore[union-attr]
        for _ in range(2):
            assert sessions[4].run(feed) is not None
        sessions[4].predict(others)
        assert torch.equal(sessions[4].predict(inputs), before), "a result is not overwritten by a later run"

    def test_two_threads_give_the_same(self, runtime: Runtime, files: dict[int, Path], model: nn.Module) -> None:
        n_before = torch.get_num_threads()
        inputs = inputs_of(4, named=True)
        with torch.no_grad():
            torch.testing.assert_close(
                runtime.load(files[4], n_threads=2).predict(inputs), call_model(model, inputs), atol=1e-5, rtol=1e-5
            )
        assert torch.get_num_threads() == n_before

    @pytest.mark.parametrize(
        "wrong",
        [
            (torch.zeros(1, 2, 7, 7), torch.zeros(1, 5)),
            (torch.zeros(1, 2, 6, 6),),
            (torch.zeros(1, 2, 6, 6), torch.zeros(1, 5), torch.zeros(1)),
            (torch.zeros(1, 5), torch.zeros(1, 2, 6, 6)),
            {"image": torch.zeros(1, 2, 6, 6), "surprise": torch.zeros(1, 5)},
            {"image": torch.zeros(1, 2, 6, 6)},
            {"image": torch.zeros(1, 2, 6, 6), "extra": torch.zeros(1, 5), "surprise": torch.zeros(1)},
        ],
    )
    def test_inputs_of_other_shapes_or_names(self, sessions: dict[int, Session], wrong: Inputs) -> None:
        with pytest.raises(InputError, match=r"the file takes .*'image': \(1, 2, 6, 6\).* export again"):
            sessions[1].prepare(wrong)
        with pytest.raises(InputError, match="export again"):
            sessions[1].predict(wrong)

    def test_inputs_of_another_type(self, sessions: dict[int, Session]) -> None:
        with pytest.raises(InputError, match="float"):
            sessions[1].prepare((torch.zeros(1, 2, 6, 6, dtype=torch.float64), torch.zeros(1, 5)))

    def test_a_broken_file_is_refused(self, runtime: Runtime, files: dict[int, Path], tmp_path: Path) -> None:
        whole = files[1].read_bytes()
        for name, content in (("empty", b""), ("text", b"not a model"), ("cut", whole[: len(whole) // 2])):
            file = tmp_path / f"{name}{files[1].suffix}"
            file.write_bytes(content)
            with pytest.raises(ExportError, match=self.refusal) as error:
                runtime.load(file)
            assert str(file) in str(error.value)
        with pytest.raises(ExportError, match=self.refusal):
            runtime.load(tmp_path / "nothing.onnx")

    def test_a_model_that_cannot_be_traced(self, runtime: Runtime, tmp_path: Path) -> None:
        with pytest.raises(ExportError, match=r"module '1' cannot be .*data-dependent"):
            runtime.export(nn.Sequential(nn.ReLU(), Branching()), (torch.ones(1, 3),), tmp_path)
        assert not list(tmp_path.iterdir()), "nothing half-written is left"

    def test_exporting_keeps_the_model_as_it_was(self, runtime: Runtime, tmp_path: Path) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).train()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
        file = runtime.export(model, (x,), tmp_path)
        assert model.training
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
        torch.testing.assert_close(runtime.load(file).predict((x,)), model.eval()(x), atol=1e-5, rtol=1e-5)
