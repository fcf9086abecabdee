"""Opens image files with pillow, and finds those that cannot be decoded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from autocompress.errors import MissingExtraError
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
