"""The model card of a point: a README.md that says what was done, what was measured on what, and what it is not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from autocompress.errors import InputError
from autocompress.files import write_atomically
from autocompress.publishing.artifact import read_manifest
from autocompress.publishing.runner import EXAMPLES, RUNNABLE
from autocompress.report.interval import interval_of
from autocompress.report.point_files import example_answers
from autocompress.report.wording import NOTHING, candidate_text, is_number, metric_text
from autocompress.results.records import FileNumbers
from autocompress.space.candidate import Candidate

CARD = "README.md"
UNKNOWN_LICENSE = "unknown"
_MARKUP = str.maketrans({letter: f"\\{letter}" for letter in "\\`*_{}[]<>#|&"})
_IN_CODE = str.maketrans({"`": "'", "<": "‹", ">": "›", "[": "(", "]": ")"})
_NAME = re.compile(r"[\w-]+")
Row = tuple[str, ...]


def write_card(folder: Path, uncompressed: FileNumbers | None) -> None:
    """Writes `README.md` into a point's folder, from its manifest.

    Args:
        folder: of the point.
        uncompressed: numbers of the uncompressed model's file, or None where it was not measured.

    Raises:
        InputError: the manifest is damaged.
    """
    manifest = read_manifest(folder)
    try:
        text = "\n".join(_lines(manifest, uncompressed)) + "\n"
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # parts that only the card reads
        raise InputError(f"the manifest in {folder} is damaged: {error!r}") from error
    write_atomically(folder / CARD, text)


def _lines(manifest: Mapping[str, Any], uncompressed: FileNumbers | None) -> Iterator[str]:
    license_name = manifest.get("license", UNKNOWN_LICENSE)
    runtime = str(manifest["runtime"])
    candidate = Candidate.from_dict(manifest["candidate"])
    metric = _plain(manifest["metric"])
    yield from (
        "---",
        f"license: {json.dumps(license_name)}",
        f"library_name: {runtime if _NAME.fullmatch(runtime) else json.dumps(runtime)}",
    )
    yield from ("tags: [autocompress, compressed]", "---", "")
    yield from (f"# {_plain(manifest['task'])}, trial {manifest['trial']}", "")
    yield from ("## Run it", "", *_how_to_run(manifest, runtime), "")
    yield from ("## What was done", "")
    n_params = manifest["uncompressed"]["n_params"]
    yield f"To the uncompressed model ({n_params:,} parameters): {candidate_text(candidate)}."
    yield from ("", *_what_was_done(manifest["recipe"]), "")
    yield from ("## Numbers", "")
    numbers = FileNumbers.from_dict(manifest["numbers"])
    yield from _table(("", "this model", "uncompressed"), _numbers(numbers, uncompressed, str(manifest["metric"])))
    machine, versions = manifest["machine"], manifest["versions"]
    yield from (
        "",
        f"Measured from {_code(manifest['runtime_file'])} by {_plain(runtime)} {_plain(versions.get(runtime, ''))} "
        f"with {manifest['n_threads']} thread(s) on {_plain(machine.get('cpu', 'an unknown CPU'))}. The latency ratio "
        "is paired with the uncompressed model, run by run; ± is half the distance between the quartiles.",
        "",
        "## Data",
        "",
        f"The task {_code(manifest['task'])} names the data. The search compared candidates on the selection split "
        "only; the test split was looked at once, for this table.",
        f"`{EXAMPLES}` holds {len(example_answers(manifest))} samples of the calibration data: remove "
        "them before you pass the folder on, if the data may not be passed on.",
        "",
        "## Limits",
        "",
        "- The figures hold for this machine, runtime version and number of threads; elsewhere time it with "
        "`python run.py --time`.",
        "- The file takes inputs of the shapes that it was exported with.",
        f"- Only {metric} was kept in view. Compression can cost more on rare classes or groups than on "
        "average; check those that matter to you.",
        "",
        "## Licence",
        "",
        f"{_plain(license_name)}. A compressed model stays under the licence of the model and data that it comes from"
        + ("; the task names none." if license_name == UNKNOWN_LICENSE else "."),
    )


def _how_to_run(manifest: Mapping[str, Any], runtime: str) -> Iterator[str]:
    if runtime in RUNNABLE:
        yield from ("```", f"pip install {runtime} numpy", "python run.py", "```", "")
        yield "`python run.py --help` tells how to give it your own inputs, and how to time it."
    else:
        yield f"{_code(manifest['runtime_file'])} is a file for {_plain(runtime)}."


def _what_was_done(recipe: Mapping[str, Any]) -> Iterator[str]:
    """A line for each operation, with the integers that were applied."""
    if recipe["dropped"]:
        yield f"- removed whole: {', '.join(map(_plain, recipe['dropped']))}"
    if recipe["removed"]:
        parts = (f"{_plain(name)} {len(indices)}" for name, indices in recipe["removed"].items())
        yield f"- channels removed: {', '.join(parts)}"
    if recipe["ranks"]:
        yield f"- split into factors: {', '.join(_split(name, split) for name, split in recipe['ranks'].items())}"
    if recipe.get("sparsity"):
        parts = (f"{_plain(name)} {level}" for name, level in recipe["sparsity"].items())
        yield f"- weights set to zero: {', '.join(parts)}"
    if recipe["bits"]:
        yield f"- bits: {', '.join(f'{_plain(name)} {bits}' for name, bits in recipe['bits'].items())}"


def _split(name: str, split: Mapping[str, Any]) -> str:
    residual = f" + {_plain(split['residual'])}" if split["residual"] else ""
    return f"{_plain(name)} {_plain(split['scheme'])} of rank {', '.join(map(str, split['ranks']))}{residual}"


def _numbers(numbers: FileNumbers, uncompressed: FileNumbers | None, metric: str) -> Iterator[Row]:
    both = (numbers, uncompressed)
    for split in numbers.metrics:
        n_samples = numbers.n_samples.get(split, 0)
        yield (
            f"{_plain(metric)}, {_plain(split)}, {n_samples:,} samples",
            *(_share(file, split, metric) for file in both),
        )
    yield ("latency", *("" if f is None else f"{f.latency.ratio:.3f}× ± {f.latency.spread:.3f}" for f in both))
    yield ("latency, ms", *("" if f is None else f"{f.latency.ms:.3g}" for f in both))
    yield ("file, MiB", *("" if f is None else f"{f.size_mib:.3g}" for f in both))
    yield ("memory, MiB", *(_figure(None if f is None else f.memory_mib) for f in both))


def _share(file: FileNumbers | None, split: str, metric: str) -> str:
    if file is None:
        return ""
    value, interval = file.metrics.get(split, {}).get(metric), interval_of(file, split, metric)
    text = metric_text(value, metric)
    if interval is None:
        return text
    return f"{text} (95 %: {metric_text(interval[0], metric)} to {metric_text(interval[1], metric)})"


def _figure(value: float | None) -> str:
    return f"{value:.3g}" if value is not None and is_number(value) else NOTHING


def _table(head: Row, rows: Iterator[Row]) -> Iterator[str]:
    for row in (head, ("---",) * len(head), *rows):
        yield f"| {' | '.join(row)} |"


def _code(text: object) -> str:
    """Text as code on one line, without what would end it or be read as HTML."""
    return f"`{' '.join(str(text).split()).translate(_IN_CODE)}`"


def _plain(text: object) -> str:
    """Text from a model or a task that Markdown must not read as markup, on one line."""
    return " ".join(str(text).split()).translate(_MARKUP)
