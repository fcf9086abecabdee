"""The page of a running search: read only, on this machine only, and it notices that the run has changed."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from autocompress.errors import InputError
from autocompress.report.live import LiveServer
from autocompress.results.records import append_record, write_records
from autocompress.results.run_folder import RunFolder
from tests.report.conftest import MakeRun
from tests.report.searches import failed


@contextmanager
def serving(folder: RunFolder) -> Iterator[LiveServer]:
    with LiveServer(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(server: LiveServer, path: str, method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def on_disk(make_run: MakeRun) -> RunFolder:
    run = make_run()
    run.folder.write_info(run.info)
    write_records(run.folder.records, run.records)
    return run.folder


def test_the_page_watches_and_the_stamp_follows_the_run(make_run: MakeRun) -> None:
    folder = on_disk(make_run)
    with serving(folder) as server:
        status, page = ask(server, "/")
        assert status == 200 and "connect-src 'self'" in page and 'fetch("stamp"' in page
        before = ask(server, "/stamp")[1]
        assert ask(server, "/stamp")[1] == before
        append_record(folder.records, failed(99, "E: new"))
        assert ask(server, "/stamp")[1] != before
        assert '"number":99' in ask(server, "/")[1]


def test_a_damaged_run_is_an_error_page_until_it_is_whole_again(make_run: MakeRun) -> None:
    folder = on_disk(make_run)
    whole = folder.records.read_text()
    with serving(folder) as server:
        folder.records.write_text("{<b>\n" + whole)
        status, page = ask(server, "/")
        assert status == 500 and "The run cannot be read" in page and "line 1 is not JSON" in page
        folder.records.unlink()
        assert ask(server, "/")[0] == 500
        folder.records.write_text(whole)
        assert ask(server, "/")[0] == 200


def test_a_line_that_is_being_written_is_left_out(make_run: MakeRun) -> None:
    folder = on_disk(make_run)
    with folder.records.open("a") as file:
        file.write('{"number": 1')
    with serving(folder) as server, pytest.warns(UserWarning, match="cut off"):
        assert ask(server, "/")[0] == 200


def test_it_answers_this_machine_only_and_changes_nothing(make_run: MakeRun) -> None:
    folder = on_disk(make_run)
    files = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    with serving(folder) as server:
        assert server.server_address[0] == "127.0.0.1"
        assert ask(server, "/", Host="evil.example")[0] == 403, "a site that was pointed at this address"
        assert ask(server, "/run.json")[0] == ask(server, "/../run.json")[0] == 404
        for method in ("POST", "PUT", "DELETE"):
            assert ask(server, "/", method)[0] == 501
    assert files == {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a run folder holds run\.json"):
        LiveServer(RunFolder(tmp_path))
