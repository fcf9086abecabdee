"""Image classifiers by name or folder as a source of tasks: Hugging Face, timm and torchvision."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from autocompress.errors import InputError, MissingExtraError
from autocompress.tasks.huggingface import HubModel, OneOutput
from autocompress.tasks.identifiers import TaskId
from autocompress.tasks.model_source import KINDS, Kind, ModelSource, model_folder
from autocompress.tasks.samples import Content

if TYPE_CHECKING:
    from PIL.Image import Image

_DRAFT = ("RGB", (32, 32))


def open_image(path: Content) -> Image:
    """The image in RGB.

    Raises:
        MissingExtraError: pillow is not installed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("images are read by pillow; run: pip install 'autocompress[timm]'") from error
    with Image.open(str(path)) as image:
        return image.convert("RGB")


def unreadable_images(contents: Sequence[Content]) -> dict[int, str]:
    """Places of the images that cannot be decoded to their end, each with the reason."""
    paths = [Path(str(content)) for content in contents]
    reasons = ((place, _reason(path, path.stat().st_mtime_ns)) for place, path in enumerate(paths))
    return {place: reason for place, reason in reasons if reason is not None}


@functools.lru_cache(maxsize=100_000)
def _reason(path: Path, changed_ns: int) -> str | None:
    """Why the file, as it was changed last at that time, does not decode; None where it does."""
    try:
        from PIL import Image

        with Image.open(path) as image:
            image.draft(
                *_DRAFT
            )  # JPEGs are decoded at an eighth of their size, which reads the whole file all the same
            image.load()
    except ImportError as error:
        raise MissingExtraError("images are read by pillow; run: pip install 'autocompress[timm]'") from error
    except (OSError, SyntaxError, ValueError) as error:  # what pillow raises for files that are cut off or no images
        return f"{path.parent.name}/{path.name} ({str(error).splitlines()[0] if str(error) else 'no image'})"
    return None


_IMAGES = KINDS["image-classification"]


class HubImageModel(HubModel):
    """See `ModelSource`: image classifiers of a Hugging Face folder, with their own image processor."""

    def __init__(self, folder: Path, kind: Kind, task_id: TaskId) -> None:
        super().__init__(folder, kind, task_id)
        from transformers import AutoImageProcessor

        if not (folder / "preprocessor_config.json").is_file() and not (folder / "processor_config.json").is_file():
            raise InputError(
                f"an image model needs its image processor, but {folder} has no preprocessor_config.json; "
                "write it there: processor.save_pretrained(folder)"
            )
        self.processor: Any = self._load(AutoImageProcessor, "image processor", backend="pil")

    def build(self) -> nn.Module:
        """See `ModelSource.build`."""
        return OneOutput(self.load_model()).eval()

    def fit(self, contents: Sequence[Content]) -> str | None:
        """The processor decides the shape."""
        return None

    def example_inputs(self) -> dict[str, Tensor]:
        """A grey image of the processor's size."""
        from PIL import Image

        return self._processed([Image.new("RGB", (256, 256), (128, 128, 128))])

    def encode(self, contents: Sequence[Content]) -> dict[str, Tensor]:
        """Pixels (n, channels, height, width), float32."""
        return self._processed([open_image(content) for content in contents])

    def unreadable(self, contents: Sequence[Content]) -> dict[int, str]:
        """Images that do not decode."""
        return unreadable_images(contents)

    def _processed(self, images: list[Any]) -> dict[str, Tensor]:
        return {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}


class NamedImageModel:
    """See `ModelSource`: image classifiers that a library builds by name, with the library's own preprocessing.

    Args:
        title: of the model.
        build: makes the trained model.
        transform: an image as the model's input (channels, height, width).
        classes: names of the classes in order, where the weights come with them.
    """

    kind = _IMAGES

    def __init__(
        self,
        title: str,
        build: Callable[[], nn.Module],
        transform: Callable[[Any], Tensor],
        classes: Sequence[str] = (),
    ) -> None:
        self.title = title
        self._build, self._transform = build, transform
        self.classes: Mapping[str, int] = {name: index for index, name in enumerate(classes)}
        self._n_outputs: int | None = None

    @property
    def n_outputs(self) -> int:
        """How many classes an output has, from one run of the model."""
        if self._n_outputs is None:
            with torch.no_grad():
                self._n_outputs = int(self.build()(*self.example_inputs()).shape[-1])
        return self._n_outputs

    def build(self) -> nn.Module:
        """See `ModelSource.build`."""
        return self._build().float().eval()

    def fit(self, contents: Sequence[Content]) -> str | None:
        """The weights' preprocessing decides the shape."""
        return None

    def example_inputs(self) -> tuple[Tensor, ...]:
        """A grey image of the model's size."""
        from PIL import Image

        return (self._transform(Image.new("RGB", (320, 320), (128, 128, 128))).unsqueeze(0),)

    def encode(self, contents: Sequence[Content]) -> tuple[Tensor, ...]:
        """Pixels (n, channels, height, width), float32."""
        return (torch.stack([self._transform(open_image(content)) for content in contents]),)

    def unreadable(self, contents: Sequence[Content]) -> dict[int, str]:
        """Images that do not decode."""
        return unreadable_images(contents)


def open_timm(task_id: TaskId) -> ModelSource:
    """A timm model by name (weights from timm's cache, its hub or a file), or a folder with config.json and weights.

    Raises:
        InputError: no such model, or its weights are not there.
        MissingExtraError: timm is not installed.
    """
    try:
        import timm
        from timm.data import create_transform, resolve_model_data_config
    except ImportError as error:
        raise MissingExtraError("`timm:` ids need timm; run: pip install 'autocompress[timm]'") from error
    folder = Path(task_id.name)
    if folder.is_absolute():
        _check_timm_folder(folder)
    elif task_id.name.split(".")[0] not in timm.list_models():
        near = timm.list_models(f"*{task_id.name.split('.')[0][:6]}*")[:5]
        raise InputError(f"timm:{task_id.name} must be a model of timm {timm.__version__}; near: {', '.join(near)}")

    def build() -> nn.Module:
        if folder.is_absolute():
            return timm.create_model(f"local-dir:{folder}", pretrained=True)  # type: ignore[no-any-return]
        # not by timm itself, which would load pickled weights where there are no others
        file = Path(task_id.weights) if task_id.weights else _timm_hub_folder(timm, task_id.name) / "model.safetensors"
        return _with_state(timm.create_model, task_id.name, read_state(file))

    config = resolve_model_data_config(build())
    return NamedImageModel(f"timm's {folder.name}", build, create_transform(**config, is_training=False))


def open_torchvision(task_id: TaskId) -> ModelSource:
    """A torchvision classifier by name; weights are those of its cache, its site or a file.

    Raises:
        InputError: no such model, or its weights are not there.
        MissingExtraError: torchvision is not installed.
    """
    try:
        from torchvision import models
    except (ImportError, RuntimeError) as error:  # RuntimeError: built for another torch
        raise MissingExtraError(
            f"`torchvision:` ids need torchvision of this torch; run: pip install 'autocompress[vision]' ({error})"
        ) from error
    names = models.list_models(module=models)
    if task_id.name not in names:
        raise InputError(f"torchvision:{task_id.name} must be one of torchvision's classifiers: {', '.join(names)}")
    published = models.get_model_weights(task_id.name).DEFAULT

    def build() -> nn.Module:
        if task_id.weights is not None:
            return _with_state(models.get_model, task_id.name, read_state(Path(task_id.weights)))
        model: nn.Module = models.get_model(task_id.name, weights=None)
        try:
            model.load_state_dict(published.get_state_dict(progress=False, weights_only=True))
        except OSError as error:
            file = Path(torch.hub.get_dir()) / "checkpoints" / Path(published.url).name
            raise _no_weights(task_id, error, str(file)) from error
        return model

    classes = () if task_id.weights is not None else published.meta["categories"]
    return NamedImageModel(f"torchvision's {task_id.name}", build, published.transforms(antialias=True), classes)


def read_state(file: Path) -> dict[str, Tensor]:
    """A state dict of safetensors, or of `torch.save` where it holds nothing but tensors.

    Raises:
        InputError: no such file, or it holds something else.
    """
    if not file.is_file():
        raise InputError(f"the file of the weights must be there, but there is no {file}")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(
            f"{file} must be safetensors or a state dict of tensors; other pickles are refused, since they run code: "
            f"{type(error).__name__}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"{file} must be a state dict of tensors, as torch.save(model.state_dict(), file) writes it")
    return state


def _with_state(create: Callable[..., nn.Module], name: str, state: Mapping[str, Tensor]) -> nn.Module:
    """The model with as many classes as the weights' last linear layer has."""
    plain = create(name)
    last = [path for path, module in plain.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    weight = state.get(f"{last}.weight")
    model = plain if weight is None else create(name, num_classes=weight.shape[0])
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise InputError(f"the weights must be a {name}'s, but: {str(error).splitlines()[-1].strip()}") from error
    return model


def _check_timm_folder(folder: Path) -> None:
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        raise InputError(
            "a folder of a timm model must hold config.json and model.safetensors, as timm.models.save_for_hf writes "
            f"them, but {folder} has no {' and no '.join(missing)}"
        )


def _timm_hub_folder(timm: Any, name: str) -> Path:
    config = timm.get_pretrained_cfg(name)
    if config is None or not config.hf_hub_id:
        raise InputError(f"timm publishes no weights of {name} on the hub; name a file with --weights")
    hub = str(config.hf_hub_id)
    return model_folder(f"{hub}{name}" if hub.endswith("/") else hub, trust_remote_code=False)


def _no_weights(task_id: TaskId, error: Exception, where: str) -> InputError:
    return InputError(
        f"the weights of {task_id.source}:{task_id.name} could not be fetched ({type(error).__name__}); "
        f"looked for them in the cache: {where}; without a network, put them there or name a file with --weights"
    )
