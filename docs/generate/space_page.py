"""Prints the reference of search spaces, which is `docs/search_space.md`: `make docs-pages`."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

from autocompress.space.candidate import FINE_TUNE_RULES, PRECISIONS
from autocompress.space.rank_choice import RANK_GRID, SCHEMES
from autocompress.space.search_space import _RANGES, AS_IT_IS, BY_RUNTIME, DEFAULT_GRID, KINDS_OF_KNOB

SPACES = Path(__file__).resolve().parents[2] / "search_spaces"

_HEAD = f"""\
# Search spaces

A search space is a YAML file with a list of rules. `--space NAME` takes a file that comes with the package,
`--space my_space.yaml` your own. [Write a search space](guides/search_space.md) explains the choices one by one. This
page is made from the code by `make docs-pages`.

## Keys of the file

| key | default | meaning |
| --- | --- | --- |
| `description` | | a text for readers |
| `channel_grid` | `{DEFAULT_GRID}` | kept channel counts are multiples of it; choices that come out equal are merged |
| `rank_grid` | `{RANK_GRID}` | ranks are multiples of it; ranks that save no multiplications are left out |
| `rules` | | the list of rules; the first one that matches a name counts |
| `fine_tune` | | choices for settings of the fine-tune, see below |

An unknown key, a value outside its range and a rule that matches no name of the model are errors.

## Keys of a rule

`match` is a layer's exact path, or `re:` and a pattern that must match the whole path. Each other key is a list of
choices, which must hold the one that changes nothing. A key that a rule leaves out is not searched there. A channel
group takes the rule of its root layer, a residual branch that of its module.

| key | changes nothing | rule | offered for |
| --- | --- | --- | --- |
"""

_OF = {"prune_ratio": "channel groups", "drop": "residual branches"}

_BITS = f"""
`weight_bits` knows the precisions {", ".join(f"`{json.dumps(bits)}`" for bits in PRECISIONS)}.
`weight_bits: {BY_RUNTIME}` in place of a list offers those of 32, 16 and 8 that the target runtime executes on its
machine.

`rank_ratio` knows the schemes {", ".join(f"`{scheme}`" for scheme in SCHEMES)};
`{SCHEMES[0]}` is meant where none is named.

## Settings of the fine-tune

Under the file's key `fine_tune`, each with a list of numbers that holds `null` (the search's own value).

| setting | rule |
| --- | --- |
"""

_FILES = """
## Spaces that come with the package
"""


def space_page() -> str:
    """Markdown: keys, rules, and the files in `search_spaces/`."""
    rows = "".join(map(_row, _RANGES))
    fine_tune = "".join(f"| `{name}` | {rule} |\n" for name, (rule, _) in FINE_TUNE_RULES.items())
    return _HEAD + rows + _BITS + fine_tune + _FILES + "".join(map(_file, sorted(SPACES.glob("*.yaml"))))


def _row(kind: str) -> str:
    of = _OF.get(kind) or "layers: " + ", ".join(sorted(KINDS_OF_KNOB[kind]))
    return f"| `{kind}` | `{json.dumps(AS_IT_IS[kind])}` | {_cell(_RANGES[kind])} | {of} |\n"


def _cell(text: str) -> str:
    """Text in a table, where no bracket begins a link."""
    return re.sub(r"[][()|]", r"\\\g<0>", text.removesuffix(","))


def _file(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    description = " ".join(str(yaml.safe_load(text)["description"]).split())
    rules = text[text.index("channel_grid") :]
    return f"\n### `{path.stem}`\n\n{description}\n\n```yaml\n{rules}```\n"


if __name__ == "__main__":
    print(space_page(), end="")
