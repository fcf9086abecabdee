"""The report as one HTML page: the assets inlined, the data embedded so that nothing in it can run."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib import resources
from string import Template
from typing import Any

from autocompress.report.data import page_data
from autocompress.results.run_folder import Run

SCRIPTS = ("draw.js", "plot.js", "details.js", "layers.js", "search.js", "page.js")


def page(run: Run, live: bool = False) -> str:
    """The whole page as text.

    Names, tracebacks and metrics travel as JSON inside a script element of a type that no browser runs, and the
    page's own script puts them in place as text. A content security policy allows that one script, by its digest,
    and no connection at all; a page that watches a running search may ask the server that it came from.
    """
    scripts = (*SCRIPTS, "live.js") if live else SCRIPTS
    style, script = _asset("page.css"), "".join(_asset(name) for name in scripts)
    return Template(_asset("page.html")).substitute(
        title=html.escape(f"{run.info.task}: Pareto front"),
        policy=_policy(style, script, live),
        style=style,
        data=embed(page_data(run)),
        script=script,
    )


def embed(data: Any) -> str:
    """JSON that may stand inside a script element: no `<`, `>`, `&` and nothing outside ASCII, all as escapes.

    Raises:
        ValueError: a NaN or an infinity is left in the data.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _asset(name: str) -> str:
    return resources.files("autocompress.report").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(style: str, script: str, live: bool) -> str:
    own = f"style-src '{_digest(style)}'; script-src '{_digest(script)}'"
    connect = "connect-src 'self'; " if live else ""
    return f"default-src 'none'; {own}; {connect}base-uri 'none'; form-action 'none'"


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
