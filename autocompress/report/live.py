"""Serves the report of a running search on the loopback address, read only; the page reloads when the run changes."""

from __future__ import annotations

import html
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from autocompress.errors import AutocompressError
from autocompress.report.page import page
from autocompress.results.run_folder import RunFolder

HOST = "127.0.0.1"
_ERROR_PAGE = """<!doctype html>
<meta charset="utf-8"><meta http-equiv="refresh" content="5"><title>autocompress: the run cannot be read</title>
<h1>The run cannot be read</h1><p>{error}</p><p>This page tries again every five seconds.</p>
"""


class LiveServer(ThreadingHTTPServer):
    """Serves one run's page on a free port of this machine.

    Args:
        folder: of the run; it is only read.
    """

    daemon_threads = True

    def __init__(self, folder: RunFolder) -> None:
        folder.read_info()  # a folder that is no run is an error before anything listens
        super().__init__((HOST, 0), _Handler)
        self.folder = folder

    @property
    def url(self) -> str:
        """The page's address."""
        return f"http://{HOST}:{self.server_port}/"

    @property
    def hosts(self) -> tuple[str, str]:
        """Host names that a request may have; any other is refused, as another site could point its name here."""
        return f"{HOST}:{self.server_port}", f"localhost:{self.server_port}"

    def stamp(self) -> str:
        """Text that changes when the run changes."""
        files = (self.folder.info, self.folder.records, self.folder.table, self.folder.sensitivity)
        stats = [file.stat() for file in files if file.exists()]
        return "-".join(f"{stat.st_mtime_ns}.{stat.st_size}" for stat in stats)


class _Handler(BaseHTTPRequestHandler):
    """Answers only GET of the page and of its stamp."""

    server: LiveServer

    def do_GET(self) -> None:
        answers: dict[str, tuple[str, Callable[[], str]]] = {
            "/": ("text/html", lambda: page(self.server.folder.read(), live=True)),
            "/stamp": ("text/plain", self.server.stamp),
        }
        if self.headers.get("Host") not in self.server.hosts:
            return self.send_error(HTTPStatus.FORBIDDEN, "only this machine's own browser may ask")
        if self.path not in answers:
            return self.send_error(HTTPStatus.NOT_FOUND)
        kind, answer = answers[self.path]
        status = HTTPStatus.OK
        try:
            text = answer()
        except (AutocompressError, OSError) as error:  # a damaged run: it may be whole again a moment later
            status, text = HTTPStatus.INTERNAL_SERVER_ERROR, _ERROR_PAGE.format(error=html.escape(str(error)))
        content = text.encode(errors="replace")
        self.send_response(status)
        for name, value in (
            ("Content-Type", f"{kind}; charset=utf-8"),
            ("Content-Length", str(len(content))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)
        return None

    def log_message(self, format: str, *args: object) -> None:
        """Keeps requests out of the terminal."""
