"""Python in the documentation compiles, uses names and arguments that exist, and small examples run."""

from __future__ import annotations

import ast
import importlib
import inspect
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from autocompress.space.candidate import check_fine_tune
from autocompress.space.search_space import _check_rule
from autocompress.task import _missing_methods
from autocompress.task_check import check_task
from tests.docs.markdown import PAGES, ROOT, Block, blocks, name_of

RUN = ("own_task", "speech", "recommender", "extend")
"""Guides whose examples are complete, and are run."""


def python_blocks(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


class Snippets:
    """Follows the names of a page's snippets, as far as the package's annotations say what they are."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.types: dict[str, type] = {}
        self.wrong: list[str] = []

    def check(self, block: Block) -> None:
        """Compiles a snippet, and notes names and arguments that the package does not have."""
        tree = ast.parse(block.text)
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._imported(node, block)
        for statement in tree.body:
            for node in ast.walk(statement):
                if isinstance(node, ast.Call):
                    self._called(node, block)
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                made, name = self._type_of(statement.value), statement.targets[0].id
                self.types.pop(name, None)
                if made is not None:
                    self.types[name] = made

    def _imported(self, node: ast.Import | ast.ImportFrom, block: Block) -> None:
        for item in node.names:
            if isinstance(node, ast.Import):
                self.names[item.asname or item.name.split(".")[0]] = importlib.import_module(item.name)
            elif hasattr(importlib.import_module(node.module or ""), item.name):
                self.names[item.asname or item.name] = getattr(importlib.import_module(node.module or ""), item.name)
            else:
                self.wrong.append(f"{block}: {node.module} has no {item.name}")

    def _called(self, node: ast.Call, block: Block) -> None:
        try:
            function, n_bound = self._found(node.func)
        except AttributeError as error:
            self.wrong.append(f"{block}: {error}")
            return
        if not callable(function) or not str(getattr(function, "__module__", "")).startswith("autocompress"):
            return
        problem = misfit(function, node, n_bound)
        if problem:
            self.wrong.append(f"{block}: {ast.unparse(node.func)}: {problem}")

    def _found(self, node: ast.expr) -> tuple[Any, int]:
        """What an expression names, and how many arguments are bound already; (None, 0) where that is not known."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id), 0
        if not isinstance(node, ast.Attribute):
            return None, 0
        owner = self._type_of(node.value)
        if owner is not None and owner.__module__.startswith("autocompress"):
            static = inspect.getattr_static(owner, node.attr, None)
            if static is None and node.attr not in hints(owner):
                raise AttributeError(f"{owner.__name__} has no {node.attr}")
            return getattr(owner, node.attr, None), int(inspect.isfunction(static))
        of, _ = self._found(node.value)
        return (None, 0) if of is None else (getattr(of, node.attr), 0)

    def _type_of(self, node: ast.expr) -> type | None:
        """The class of what an expression gives, where an annotation says it."""
        if isinstance(node, ast.Name):
            return self.types.get(node.id)
        if not isinstance(node, ast.Call):
            return None
        try:
            function, _ = self._found(node.func)
        except AttributeError:
            return None
        if isinstance(function, type):
            return function
        gives = hints(function).get("return") if inspect.isroutine(function) else None
        return gives if isinstance(gives, type) else None


def hints(annotated: Any) -> dict[str, Any]:
    """The annotations; none where one names what only type checkers import."""
    try:
        return typing.get_type_hints(annotated)
    except NameError:
        return dict.fromkeys(getattr(annotated, "__annotations__", {}))


def misfit(function: Any, call: ast.Call, n_bound: int) -> str:
    """Why a call's arguments do not fit a function; empty where they do."""
    if any(isinstance(a, ast.Starred) for a in call.args) or any(k.arg is None for k in call.keywords):
        return ""
    signature = inspect.signature(function)
    given = {str(keyword.arg): None for keyword in call.keywords}
    try:
        signature.bind(*[None] * (len(call.args) + n_bound), **given)
    except TypeError as error:
        return str(error)
    takes_any = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    if takes_any and not isinstance(function, type):
        settings = typing.get_args(hints(function).get(takes_any[0]))
        unknown = set(given) - set(signature.parameters) - set(hints(settings[0]) if settings else given)
        return f"no argument {sorted(unknown)}" if unknown else ""
    return ""


@pytest.mark.parametrize("page", [page for page in PAGES if python_blocks(page)], ids=name_of)
def test_names_and_arguments_exist(page: Path) -> None:
    snippets = Snippets()
    for block in python_blocks(page):
        snippets.check(block)
    assert snippets.wrong == []


def test_wrong_names_and_arguments_are_found() -> None:
    snippets = Snippets()
    wrong = (
        "import autocompress as ac\n"
        "from autocompress import Nothing\n"
        "ac.serach('digits')\n"
        "front = ac.search('digits', run_dir='x', n_trails=3)\n"
        "front.pick(budget='0.5x')\n"
        "front.picked()\n"
        "front.to_frame().to_json(orient='records')\n"
        "ac.export(student, inputs)\n"
    )
    snippets.check(Block("page", 1, "python", wrong))
    assert len(snippets.wrong) == 6


@pytest.mark.parametrize("name", RUN)
def test_complete_examples_run(name: str) -> None:
    names: dict[str, Any] = {}
    for block in python_blocks(ROOT / "docs" / "guides" / f"{name}.md"):
        exec(compile(block.text, str(block), "exec"), names)  # noqa: S102 - the page's own code
    made = [value() if isinstance(value, type) else value for value in names.values() if is_task(value)]
    for task in made:
        check_task(task)
    assert bool(made) == (name != "extend")
    if name == "extend":
        assert type(names["make"](0)).__name__ == "NSGAIISampler"
        assert [item.precision for item in names["MyRuntime"]().capabilities()] == [32]


def is_task(value: object) -> bool:
    from autocompress import SupervisedTask

    return value is not SupervisedTask and not isinstance(value, nn.Module) and not _missing_methods(value)


def test_the_start_page_has_the_readmes_example() -> None:
    readme, start = (
        [block.text for block in python_blocks(page) if block.text.startswith("# my_model.py")]
        for page in (ROOT / "README.md", ROOT / "docs" / "start.md")
    )
    assert len(readme) == 1 and readme == start


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_spaces_and_settings_are_valid(page: Path) -> None:
    for block in blocks(page):
        if block.language != "yaml":
            continue
        space = yaml.safe_load(block.text)
        assert set(space) <= {"description", "channel_grid", "rank_grid", "rules", "fine_tune"}, str(block)
        for rule in space["rules"]:
            _check_rule(rule)
        for name, choices in space.get("fine_tune", {}).items():
            assert None in choices, str(block)
            for choice in choices:
                check_fine_tune(name, choice)
