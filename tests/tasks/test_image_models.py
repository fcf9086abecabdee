"""Image classifiers by id with folders of images: own preprocessing, classes by name or order, broken files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from autocompress.errors import InputError, MissingExtraError
from autocompress.task import Inputs, Task, call_model, load_task
from autocompress.task_check import check_task
from autocompress.tasks.from_id import open_dataset
from autocompress.tasks.identifiers import read_task_id
from autocompress.tasks.image_models import read_state

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def write_images(folder: Path, n_each: int = 40) -> Path:
    for at, (name, colour) in enumerate(COLOURS.items()):
        (folder / name).mkdir(parents=True)
        for i in range(n_each):
            image = Image.new("RGB", (40, 30), colour)
            image.putpixel((i % 40, i // 40 + at), (i, i, i))
            image.save(folder / name / f"{i:03}.png")
    return folder


def write_vit(folder: Path) -> Path:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessorPil

    torch.manual_seed(0)
    names = {"id2label": dict(enumerate(("red", "green", "blue"))), "label2id": {"red": 0, "green": 1, "blue": 2}}
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    ViTForImageClassification(ViTConfig(image_size=32, patch_size=8, num_labels=3, **names, **sizes)).save_pretrained(
        folder
    )
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def figures_of(task: Task, split: str = "test") -> dict[str, float]:
    model = task.build_model()

    def predict(inputs: Inputs) -> Tensor:
        outputs: Tensor = call_model(model, inputs)
        return outputs

    return task.evaluate(predict, split)


def test_a_hugging_face_folder_takes_its_processor_and_its_class_names(tmp_path: Path) -> None:
    task = load_task(f"hf:{write_vit(tmp_path / 'vit')}", data=str(write_images(tmp_path / "images")))
    check_task(task)
    assert list(figures_of(task)) == ["accuracy", "loss"]
    split = open_dataset(read_task_id(task.spec)).splits["train"]  # type: ignore[attr-defined]
    pixels = split.inputs([0])["pixel_values"][0]  # type: ignore[call-overload]
    assert pixels.shape == (3, 32, 32)
    names = ("red", "green", "blue")
    for place in range(10):
        content, label = split.contents[place], int(split.labels[place])
        assert names[label] == Path(str(content)).parent.name, "classes are the model's, not in alphabetical order"
        image = split.inputs([place])["pixel_values"][0]  # type: ignore[call-overload]
        assert int(image.mean((1, 2)).argmax()) == label, "the channels are red, green and blue"


def test_broken_images_are_skipped_and_counted_up_to_one_percent(tmp_path: Path) -> None:
    model, images = write_vit(tmp_path / "vit"), write_images(tmp_path / "images")
    whole = (images / "red" / "000.png").read_bytes()
    (images / "red" / "000.png").write_bytes(whole[: len(whole) // 2])
    task = load_task(f"hf:{model}", data=str(images))
    assert any("1 skipped: red/000.png" in line for line in task.notes())  # type: ignore[attr-defined]
    (images / "red" / "001.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"at most 1% .* but 2 of 120 are: red/000.png .*, red/001.png"):
        load_task(f"hf:{model}", data=str(images), n_train=999).notes()  # type: ignore[attr-defined]


def test_raw_images_are_labelled_by_the_model(tmp_path: Path) -> None:
    model, images = write_vit(tmp_path / "vit"), write_images(tmp_path / "images")
    task = load_task(f"hf:{model}", inputs=str(images))
    check_task(task)
    assert figures_of(task) == {"agreement": 1.0}


def test_pickles_that_are_no_tensors_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "tensors.pth")
    assert list(read_state(tmp_path / "tensors.pth")) == ["a"]
    torch.save(torch.nn.Linear(1, 1), tmp_path / "module.pth")
    with pytest.raises(InputError, match="other pickles are refused"):
        read_state(tmp_path / "module.pth")
    torch.save({"epoch": 3}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="a state dict of tensors, as torch.save"):
        read_state(tmp_path / "other.pth")


def test_timm_by_name_with_weights_and_by_folder(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm", reason="extra timm")
    from safetensors.torch import save_file

    images = str(write_images(tmp_path / "images"))
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    timm.models.save_for_hf(model, tmp_path / "folder", safe_serialization=True)
    named = load_task("timm:resnet10t", data=images, weights=str(tmp_path / "own.safetensors"))
    folder = load_task(f"timm:{tmp_path / 'folder'}", data=images)
    for task in (named, folder):
        check_task(task)
        assert list(figures_of(task)) == ["accuracy", "loss"]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(named.build_model()(x), model(x))
        torch.testing.assert_close(folder.build_model()(x), model(x))
    with pytest.raises(InputError, match="must be a model of timm .*; near: "):
        load_task("timm:resnet99", data=images)


def test_torchvision_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        from torchvision import models
    except (ImportError, RuntimeError):
        with pytest.raises(MissingExtraError, match="autocompress.vision"):
            load_task("torchvision:mobilenet_v3_small")
        return
    images = str(write_images(tmp_path / "images"))
    torch.save(models.mobilenet_v3_small(num_classes=3).state_dict(), tmp_path / "own.pth")
    task = load_task("torchvision:mobilenet_v3_small", data=images, weights=str(tmp_path / "own.pth"))
    check_task(task)
    assert list(figures_of(task)) == ["accuracy", "loss"]
    assert task.example_inputs()[0].shape == (1, 3, 224, 224)  # type: ignore[index]
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(InputError, match=rf"looked for them in the cache: {tmp_path}.*mobilenet_v3_small.*\.pth"):
        load_task("torchvision:mobilenet_v3_small", data=images).build_model()
    with pytest.raises(InputError, match="one of torchvision's classifiers: alexnet"):
        load_task("torchvision:resnet99", data=images)
