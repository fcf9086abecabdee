"""The page as a browser's parser sees it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import time
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autocompress.report.data import page_data
from autocompress.report.page import embed, page
from autocompress.results.records import TrialRecord
from autocompress.space.candidate import Candidate
from tests.report.conftest import MakeRun
from tests.report.searches import HOSTILE, bad_searches, complete, hostile_records, records_of_a_search


class Page(HTMLParser):
    """Collects what the tests ask about."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.content: dict[str, str] = {}
        self.ids: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        self.ids += [value for name, value in attrs if name == "id" and value is not None]
        if tag in ("script", "style", "title"):
            self._open.append("data" if values.get("type") == "application/json" else tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style", "title"):
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if self._open:
            self.content[self._open[-1]] = self.content.get(self._open[-1], "") + data

    @property
    def data(self) -> Any:
        return json.loads(self.content["data"])


def test_the_data_round_trips(make_run: MakeRun) -> None:
    run = make_run()
    assert Page(page(run)).data == json.loads(json.dumps(page_data(run)))


def test_hostile_names_stay_text(make_run: MakeRun) -> None:
    run = make_run(hostile_records(), HOSTILE, task=HOSTILE[0])
    plain, hostile = Page(page(make_run())), Page(page(run))
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert [layer["path"] for layer in hostile.data["layers"]] == list(HOSTILE)
    assert hostile.data["trials"][2]["error"] == "\n".join(HOSTILE)
    assert hostile.content["title"].startswith(HOSTILE[0])
    assert hostile.content["script"] == plain.content["script"]


@settings(max_examples=200)
@given(
    st.recursive(
        st.text() | st.integers() | st.none(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    )
)
def test_embedded_json_is_inert_and_exact(data: Any) -> None:
    text = embed(data)
    assert json.loads(text) == data
    assert text.isascii()
    assert not set("<>&") & set(text)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        embed({"a": math.nan})


def test_nothing_is_fetched(make_run: MakeRun) -> None:
    parsed = Page(page(make_run()))
    assert not [tag for tag, _ in parsed.tags if tag in ("link", "img", "iframe", "object", "embed", "base", "form")]
    assert not [values for _, values in parsed.tags if {"src", "href"} & values.keys()]
    assert not re.search(r"url\(|@import", parsed.content["style"])
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|WebSocket", parsed.content["script"])


def test_the_policy_allows_this_script_and_style_only(make_run: MakeRun) -> None:
    parsed = Page(page(make_run()))
    policy = next(values["content"] for tag, values in parsed.tags if tag == "meta" and values.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; ")
    for name in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(parsed.content[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}';" in policy


def test_the_script_never_makes_markup_of_data(make_run: MakeRun) -> None:
    script = Page(page(make_run())).content["script"]
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|createContextualFragment", script
    )


def test_the_script_finds_what_it_asks_for(make_run: MakeRun) -> None:
    parsed = Page(page(make_run()))
    asked = set(re.findall(r'byId\("([\w-]+)"\)', parsed.content["script"]))
    assert asked and asked <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert not re.search(r"\$(title|policy|style|data|script)\b", page(make_run()))


@pytest.mark.parametrize("records", bad_searches().values(), ids=bad_searches())
def test_it_is_made_of_any_run(make_run: MakeRun, records: list[TrialRecord]) -> None:
    assert len(Page(page(make_run(records))).data["trials"]) == len(records)


def test_the_page_without_data_is_small(make_run: MakeRun) -> None:
    assert len(page(make_run([])).encode()) < 100_000


def test_a_large_run_is_written_quickly(make_run: MakeRun) -> None:
    layers = [f"stage.{i}.conv" for i in range(60)]
    every = Candidate(dict.fromkeys(layers, 0.25), frozenset(), dict.fromkeys(layers, 0.5), dict.fromkeys(layers, 8))
    records = [
        complete(number, every if number else Candidate(), 0.3 + number / 4000, 0.5 + number / 5000)
        for number in range(2000)
    ]
    run = make_run([*records[:-1], records_of_a_search()[-1]], layers)
    start = time.process_time()
    text = page(run)
    assert time.process_time() - start < 5, "seconds of computing, which a busy machine does not stretch"
    assert len(text.encode()) < 6_000_000
