"""The files a reader opens."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from autocompress.errors import InputError
from autocompress.report.files import write_front_table, write_report_page
from tests.report.conftest import MakeRun


def test_front_csv_reads_back_as_the_frame(make_run: MakeRun) -> None:
    run = make_run()
    path = write_front_table(run)
    assert path == run.folder.table
    pd.testing.assert_frame_equal(pd.read_csv(path), run.front.to_frame(), check_dtype=False)
    table = json.loads(run.folder.table_json.read_text(encoding="utf-8"))
    again = pd.DataFrame(table["rows"]).astype(run.front.to_frame().dtypes.to_dict())
    pd.testing.assert_frame_equal(again, run.front.to_frame())
    assert list(table["columns"]) == list(again.columns)
    assert all(column["meaning"] for column in table["columns"].values())
    assert list(pd.read_csv(path)["trial"]) == [point.number for point in run.front.points]


def test_report_html_is_the_page(make_run: MakeRun) -> None:
    run = make_run()
    path = write_report_page(run)
    assert path == run.folder.report
    text = path.read_text(encoding="utf-8")
    assert text.lower().startswith("<!doctype html>") and text.rstrip().endswith("</html>")
    assert all(f"trial_{point.number:04}" in text for point in run.front.points)


def test_writing_again_replaces_and_leaves_nothing_else(make_run: MakeRun) -> None:
    run, empty = make_run(), make_run([])
    assert "trial_0001" in write_report_page(run).read_text(encoding="utf-8")
    write_front_table(run)
    for write in (write_report_page, write_front_table):
        with pytest.raises(InputError, match="has 0 trials, but front.json was made of 32"):
            write(empty)
    run.folder.table_json.unlink()  # now it is asked for
    write_report_page(empty)
    write_front_table(empty)
    assert "trial_0001" not in empty.folder.report.read_text(encoding="utf-8")
    assert pd.read_csv(empty.folder.table).empty
    assert sorted(path.name for path in run.folder.path.iterdir()) == ["front.csv", "front.json", "report.html"]
