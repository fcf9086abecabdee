"""Reads YAML files that people write: mappings without repeated keys, of a size that can be read and shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from autocompress.errors import InputError
from autocompress.settings_schema import shown

_MAX_BYTES = 2**18
_MERGE = "tag:yaml.org,2002:merge"
_MAX_VALUES = 100_000  # with every alias counted as often as it is used


class _Loader(yaml.SafeLoader):  # the one in C is faster, but crashes on deep nesting
    """YAML 1.1 as PyYAML reads it, with 1e-2 as a number; a key that is there twice is an error."""


def _unique(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen = set()
    for key_node, _ in node.value:
        if key_node.tag == _MERGE:
            continue
        key = loader.construct_object(key_node, deep=True)
        if isinstance(key, list | dict | set):
            raise yaml.constructor.ConstructorError(None, None, "a key must be plain", key_node.start_mark)
        if key in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is there twice", key_node.start_mark)
        seen.add(key)
    loader.flatten_mapping(node)
    return yaml.constructor.BaseConstructor.construct_mapping(loader, node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_yaml_mapping(path: Path, what: str) -> dict[str, Any]:
    """Reads a YAML file that must hold a mapping.

    Args:
        path: of the file.
        what: the kind of file, for the message.

    Raises:
        InputError: the file is missing, too large, is not YAML, has a key twice, or is not a mapping.
    """
    if not path.is_file():
        raise InputError(f"{what} must be a file, but {path} {'is none' if path.exists() else 'does not exist'}")
    if path.stat().st_size > _MAX_BYTES:
        raise InputError(f"{what} may have {_MAX_BYTES:,} bytes, but {path} has {path.stat().st_size:,}")
    try:
        data = _loaded(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{what} must be YAML, but {path} is not: {' '.join(str(error).split())}") from error
    except (ValueError, TypeError, RecursionError) as error:  # dates that are none, endless numbers, deep nesting
        raise InputError(f"{what} must be YAML with plain values, but {path} is not: {str(error)[:120]}") from error
    except OSError as error:
        raise InputError(f"{what} must be readable, but {path}: {error}") from error
    if not isinstance(data, dict):
        raise InputError(f"{what} must hold a mapping, but {path} holds {type(data).__name__}")
    odd = [key for key in data if not isinstance(key, str)]
    if odd:
        raise InputError(f"{what} must have names as keys, but {path} has {shown(odd[0])}")
    return data


def _loaded(text: str) -> Any:
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, set())
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int], open_nodes: set[int]) -> int:
    """Values below a node, shared ones as often as they are used.

    Raises:
        ValueError: there are too many, or a node is inside itself.
    """
    if id(node) in known:
        return known[id(node)]
    if id(node) in open_nodes:
        raise ValueError("a value must not contain itself")
    open_nodes.add(id(node))
    n_values = 1
    if isinstance(node, yaml.MappingNode):
        n_values += sum(_count(part, known, open_nodes) for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        n_values += sum(_count(part, known, open_nodes) for part in node.value)
    if n_values > _MAX_VALUES:
        raise ValueError(f"there may be {_MAX_VALUES:,} values, with those that aliases repeat")
    open_nodes.discard(id(node))
    known[id(node)] = n_values
    return n_values
