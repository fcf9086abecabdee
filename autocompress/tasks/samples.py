"""Reads a user's files as samples: tables, text files, and folders of images or sounds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from autocompress.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    import pandas as pd

Content: TypeAlias = "str | tuple[str, ...] | Path"
"""One sample: a text, texts that the model reads together, or the file of an image or a sound."""

TABLES = (".csv", ".tsv", ".parquet", ".jsonl", ".json")
IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")
TEXTS = (".txt",)
MOST_UNREADABLE = 0.01
"""Largest share of samples that may be unreadable; they are skipped and counted."""

_TEXT_NAMES = ("text", "sentence", "content", "review", "document", "body", "question", "title")
_LABEL_NAMES = ("label", "labels", "target", "class", "category", "intent", "y")
_HIDDEN = -1
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "selection": ("selection", "validation", "valid", "val", "dev", "eval"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in _SPLIT_NAMES.items() for name in names}


@dataclass(frozen=True)
class Samples:
    """Samples in the order of their source.

    Attributes:
        contents: one for each sample.
        labels: as they stand in the source; None where there are none.
        splits: "train", "selection" or "test" where the source says so, else None.
        skipped: unreadable samples, as a user finds them.
    """

    contents: tuple[Content, ...]
    labels: tuple[Any, ...] | None
    splits: tuple[str | None, ...]
    skipped: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.contents)

    def without(self, places: Mapping[int, str]) -> Samples:
        """Leaves out samples by their places, each with the text that says which one and why.

        Raises:
            InputError: more than 1 % of all, or none is left.
        """
        if len(places) > MOST_UNREADABLE * len(self) or len(places) == len(self):
            raise InputError(
                f"at most {MOST_UNREADABLE:.0%} of the samples may be unreadable, but {len(places)} of {len(self)} "
                f"are: "
                f"{few(places.values())}; repair or remove them"
            )
        kept = [i for i in range(len(self)) if i not in places]
        return Samples(
            tuple(self.contents[i] for i in kept),
            None if self.labels is None else tuple(self.labels[i] for i in kept),
            tuple(self.splits[i] for i in kept),
            (*self.skipped, *places.values()),
        )


def few(items: Iterable[object], n_shown: int = 5) -> str:
    """The first items with commas, and how many more there are."""
    texts = [str(item) for item in items]
    more = f", and {len(texts) - n_shown} more" if len(texts) > n_shown else ""
    return ", ".join(texts[:n_shown]) + more


def read_texts(source: str, text_column: str | None, label_column: str | None, labelled: bool) -> Samples:
    """Texts of a table, a text file (one a line) or a folder of text files (one each; subfolders are classes).

    Args:
        source: a file, a folder, or the name of a data set of the `datasets` library.
        text_column: columns with commas; by default found by their names.
        label_column: by default found by its name.
        labelled: whether labels are read.

    Raises:
        InputError: nothing is there, a column does not fit, or rows have no label.
    """
    path = Path(source)
    if path.suffix in TEXTS and path.is_file():
        _refuse_labels(source, labelled)
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return _samples([(line, None, None) for line in lines if line], source)
    if path.is_dir() and not _table_files(path) and not _is_saved_data_set(path):
        found = _class_files(path, TEXTS, labelled)
        return _samples([(file.read_text(encoding="utf-8"), label, split) for file, label, split in found], source)
    return _table_samples(_read_tables(source), source, text_column, label_column, labelled)


def read_files(source: str, suffixes: Sequence[str], labelled: bool) -> Samples:
    """Files of a folder; the subfolder that a file is in is its label, folders named train, val, test are splits.

    Raises:
        InputError: no folder, no such file in it, or no classes where labels are needed.
    """
    path = Path(source)
    if not path.is_dir():
        raise InputError(f"a folder of {suffixes[0]} files (or {few(suffixes[1:])}) is needed, but there is no {path}")
    return _samples(_class_files(path, suffixes, labelled), source)


def _samples(found: Sequence[tuple[Content, Any, str | None]], source: str) -> Samples:
    if not found:
        raise InputError(f"{source} must hold at least one sample, but it holds none")
    contents, labels, splits = zip(*found, strict=True)
    return Samples(contents, None if all(label is None for label in labels) else labels, splits)


def _class_files(path: Path, suffixes: Sequence[str], labelled: bool) -> list[tuple[Path, str | None, str | None]]:
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in suffixes and file.is_file())
    if not files:
        raise InputError(f"{path} must hold files ending in {few(suffixes, 10)}, but it holds none")
    found = []
    for file in files:
        folders = list(file.relative_to(path).parts[:-1])
        split = _SPLIT_OF.get(folders[0].lower()) if folders else None
        if split is not None:
            folders = folders[1:]
        found.append((file, folders[0] if labelled and folders else None, split))
    loose = [file for file, label, _ in found if label is None]
    if labelled and loose:
        raise InputError(
            f"labelled files must lie in a subfolder of their class, as in {path}/cat/1{suffixes[0]}, "
            f"but {len(loose)} of {len(files)} do not: {few(file.name for file in loose)}; "
            "give files without labels as inputs (--inputs)"
        )
    return found


def _table_samples(
    tables: Mapping[str | None, pd.DataFrame],
    source: str,
    text_column: str | None,
    label_column: str | None,
    labels: bool,
) -> Samples:
    found: list[tuple[Content, Any, str | None]] = []
    blank: dict[int, str] = {}
    for split, table in tables.items():
        texts = _text_columns(table, text_column, label_column, source)
        label = _label_column(table, label_column, texts, source) if labels else None
        columns = [table[name].tolist() for name in texts]
        given = table[label].tolist() if label is not None else [None] * len(table)
        if label is not None and all(value == _HIDDEN for value in given):
            continue  # a published test set whose labels are kept back
        _refuse_unlabelled(given, label, source)
        marked = table["split"].tolist() if "split" in table.columns and "split" not in texts else [split] * len(table)
        for row, (parts, value, mark) in enumerate(zip(zip(*columns, strict=True), given, marked, strict=True)):
            if any(not isinstance(part, str) or not part.strip() for part in parts):
                blank[len(found)] = f"row {row + 1} of {Path(source).name} has no text"
            content = parts[0] if len(parts) == 1 else tuple(parts)
            found.append((content, value, _SPLIT_OF.get(str(mark).lower())))
    samples = _samples(found, source)
    return samples.without(blank) if blank else samples


def _text_columns(table: pd.DataFrame, given: str | None, label: str | None, source: str) -> list[str]:
    columns = [str(name) for name in table.columns]
    if given is not None:
        names = [name.strip() for name in given.split(",")]
        missing = [name for name in names if name not in columns]
        if missing:
            raise InputError(f"the text column must be one of {columns} of {source}, but got {missing[0]!r}")
        return names
    others = [name for name in columns if name not in (label, "split") and name.lower() not in _LABEL_NAMES]
    texts = [name for name in others if table[name].map(lambda value: isinstance(value, str)).mean() > 0.5]
    named = [name for known in _TEXT_NAMES for name in texts if name.lower() == known]
    if len(texts) == 1 or named:
        return [(named or texts)[0]]
    raise InputError(
        f"{source} must have one column of texts, but has {texts or 'none'} among {columns}; "
        "name it with --text-column (with commas where the model reads pairs)"
    )


def _label_column(table: pd.DataFrame, given: str | None, texts: Sequence[str], source: str) -> str:
    columns = [str(name) for name in table.columns]
    if given is not None:
        if given not in columns:
            raise InputError(f"the label column must be one of {columns} of {source}, but got {given!r}")
        return given
    rest = [name for name in columns if name not in (*texts, "split")]
    named = [name for known in _LABEL_NAMES for name in rest if name.lower() == known]
    if len(rest) == 1 or named:
        return (named or rest)[0]
    raise InputError(
        f"{source} must have one column of labels, but has {rest or 'none'} besides {list(texts)}; "
        "name it with --label-column, or give texts without labels as inputs (--inputs)"
    )


def _refuse_unlabelled(labels: Sequence[Any], column: str | None, source: str) -> None:
    bare = [row + 1 for row, label in enumerate(labels) if label is None or label != label] if column else []
    if bare:
        raise InputError(
            f"each row of {source} must have a label in {column!r}, but {len(bare)} of {len(labels)} have none: "
            f"rows {few(bare)}; remove them, or give them without labels as inputs (--inputs)"
        )


def _refuse_labels(source: str, labelled: bool) -> None:
    if labelled:
        raise InputError(
            f"data must have labels, but {source} is a plain text file; give it as inputs (--inputs), "
            "and the uncompressed model labels it"
        )


def _read_tables(source: str) -> dict[str | None, pd.DataFrame]:
    """The tables of a source by split; a single table without one has the key None."""
    path = Path(source)
    if path.is_file():
        return {None: _read_table(path)}
    if path.is_dir() and not _is_saved_data_set(path):
        import pandas as pd

        parts: dict[str | None, list[pd.DataFrame]] = {}
        for file in _table_files(path):
            parts.setdefault(_split_of_file(file), []).append(_read_table(file))
        return {split: pd.concat(tables, ignore_index=True) for split, tables in parts.items()}
    return _read_data_set(source)


def _table_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix in TABLES and file.is_file())


def _split_of_file(file: Path) -> str | None:
    """As in the folders of the Hugging Face hub: `train.csv`, `data/test-00000-of-00002.parquet`."""
    return _SPLIT_OF.get(file.stem.replace("_", "-").split("-")[0].lower())


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        if path.suffix in (".jsonl", ".json"):
            return pd.read_json(path, lines=path.suffix == ".jsonl", dtype=False)
        # only an empty field is missing: "NA", "null" and "None" are texts and labels
        options: dict[str, Any] = {"keep_default_na": False, "na_values": [""]}
        if path.suffix in (".csv", ".tsv"):
            table: pd.DataFrame = pd.read_csv(path, sep="\t" if path.suffix == ".tsv" else ",", **options)
            return table
    except (ValueError, OSError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path} must be a readable {path.suffix} file, but: {error}") from error
    raise InputError(f"a table must end in one of {', '.join(TABLES)}, but got {path}")


def _is_saved_data_set(path: Path) -> bool:
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def _read_data_set(source: str) -> dict[str | None, pd.DataFrame]:
    """A folder that `datasets` saved, or a data set by name from its cache or the network."""
    path = Path(source)
    if not path.exists() and (path.is_absolute() or path.suffix in (*TABLES, *TEXTS)):
        raise InputError(f"the data must be there, but there is no {path}")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError(
            f"{source} is read by the library `datasets`; run: pip install 'autocompress[datasets]'"
        ) from error
    try:
        loaded = datasets.load_from_disk(source) if path.is_dir() else datasets.load_dataset(source)
    except Exception as error:
        raise InputError(
            "the data must be a file, a folder, or a data set that is in the cache "
            f"{datasets.config.HF_DATASETS_CACHE} or can be downloaded, but {source!r} gives {type(error).__name__}: "
            f"{str(error).strip()}"
        ) from error
    tables = loaded if isinstance(loaded, dict) else {None: loaded}
    return {None if split is None else str(split): table.to_pandas() for split, table in tables.items()}
