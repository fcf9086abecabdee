"""Our search against what a user would pick instead, at the same worker-minutes, timed in one run by one clock.

    python experiments/009_duels/run.py resnet56-ort --minutes 30 --out runs/duels

Steps: `search`, `peers`, `judge`; each is resumable and skips what is there. Without --step all run in this order.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shlex
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import peers as peers_of
import yaml

import autocompress as ac
from autocompress.latency.measure import time_sessions
from autocompress.machine import describe_machine, describe_versions
from autocompress.results.pareto import front_of, hypervolume
from autocompress.results.run_folder import RunFolder
from autocompress.runtimes import runtime_named
from autocompress.task import as_inputs, load_task

HERE = Path(__file__).parent
RESULTS = HERE / "results.csv"
_N_ROUNDS = 15
_POINTS_BELOW = 0.03  # accuracy from this much below the uncompressed model upwards counts
_TOLERANCE = 0.001  # of accuracy: one of ours at most as slow and at most this much worse answers a peer


@dataclass(frozen=True)
class Row:
    """One file that was timed and judged."""

    duel: str
    who: str
    what: str
    latency_ratio: float
    spread: float
    accuracy: float
    size_mib: float


def search(name: str, row: dict[str, Any], minutes: float, workers: int, seed: int, out: Path) -> None:
    """Runs or resumes our search."""
    run = out / name / "search"
    if RunFolder(run).info.is_file():
        if not (run / "front.csv").exists():
            ac.resume(run, minutes=minutes)
        return
    ac.search(
        row["task"],
        run_dir=run,
        space=row["space"],
        runtime=row["runtime"],
        minutes=minutes,
        n_workers=workers,
        seed=seed,
        **row.get("settings", {}),
    )


def peers(name: str, row: dict[str, Any], minutes: float, workers: int, out: Path) -> dict[str, Path]:
    """Makes the peers' files. Those that are trained share the search's worker-minutes."""
    folder = out / name / "peers"
    folder.mkdir(parents=True, exist_ok=True)
    task = load_task(row["task"])
    files = peers_of.precisions("uncompressed", task.build_model(), task, row["runtime"], folder)
    if row["sibling"]:
        model, own = peers_of.sibling_of(row["sibling"])
        files |= peers_of.precisions(row["sibling"], model, own, row["runtime"], folder)
    ways = row["trained"]
    names = [" ".join(f"{kind} cut by {share:.0%}" for kind, share in way.items()) for way in ways]
    places = [folder / f"{name.replace(' ', '_').replace('%', '')}.pt" for name in names]
    each = minutes * workers / max(1, len(ways))
    with ProcessPoolExecutor(workers) as pool:
        trained = list(pool.map(peers_of.trained_peer, [task] * len(ways), ways, [each] * len(ways), places))
    for name_of, model in zip(names, trained, strict=True):
        files |= peers_of.precisions(f"{name_of}, distilled", model, task, row["runtime"], folder)
    return files


def judge(name: str, row: dict[str, Any], files: dict[str, Path], out: Path) -> list[Row]:
    """Times every file beside the uncompressed one and judges it on the test split, once."""
    run, task, runtime = out / name / "search", load_task(row["task"]), runtime_named(row["runtime"])
    folder = RunFolder(run)
    found = folder.read()
    front = front_of(found.records, found.info.objectives)
    ours = {f"trial {p.number} ({p.origin})": folder.path / "front" / p.name for p in front.points}
    entries = [("ours", what, next(iter(sorted(home.glob("model.*"))))) for what, home in ours.items()]
    entries += [("peer", what, file) for what, file in files.items()]
    inputs = as_inputs(task.example_inputs())
    known = out / name / "judged.json"
    accuracies = json.loads(known.read_text()) if known.exists() else {}
    rows = []
    reference = runtime.load(files["uncompressed, float"], 1)
    for who, what, file in entries:
        key = f"{who}: {what}"
        if key not in accuracies:
            accuracies[key] = ac.evaluate(file, task, "test", runtime=row["runtime"])
            known.write_text(json.dumps(accuracies, indent=1))
        session = runtime.load(file, 1)
        timing = time_sessions(session, reference, inputs, _N_ROUNDS)
        size = file.stat().st_size + sum(f.stat().st_size for f in file.parent.glob(f"{file.stem}.bin"))
        metric = next(iter(accuracies[key].values()))
        rows.append(Row(name, who, what, timing.ratio, timing.spread, metric, size / 2**20))
        print(f"{who:5} {what:55} {rows[-1].latency_ratio:.3f} {rows[-1].accuracy:.4f}", flush=True)
    return rows


def verdict(rows: list[Row]) -> dict[str, Any]:
    """Which peers none of ours answers, and both hypervolumes (accuracy down to 3 points below, latency up to 1)."""
    ours, theirs = ([row for row in rows if row.who == who] for who in ("ours", "peer"))
    top = next(row.accuracy for row in theirs if row.what == "uncompressed, float")
    open_points = [
        peer.what
        for peer in theirs
        if not any(
            one.latency_ratio <= peer.latency_ratio and one.accuracy >= peer.accuracy - _TOLERANCE for one in ours
        )
    ]
    volumes = {}
    for who, points in (("ours", ours), ("peers", theirs)):
        costs = [[-row.accuracy, row.latency_ratio] for row in points]
        volumes[who] = hypervolume(_array(costs), (-(top - _POINTS_BELOW), 1.0))
    return {
        "unanswered": open_points,
        **{f"hypervolume_{who}": value for who, value in volumes.items()},
        "ratio": volumes["ours"] / volumes["peers"] if volumes["peers"] else None,
    }


def _array(costs: list[list[float]]) -> Any:
    import numpy as np

    return np.array(costs, dtype=float).reshape(-1, 2)


def write(name: str, rows: list[Row], about: dict[str, Any]) -> None:
    """Replaces the duel's rows in results.csv and its entry in results.json."""
    kept: list[dict[str, Any]] = []
    if RESULTS.exists():
        with RESULTS.open(newline="", encoding="utf-8") as file:
            kept = [row for row in csv.DictReader(file) if row["duel"] != name]
    with RESULTS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(Row.__dataclass_fields__), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        writer.writerows(asdict(row) for row in rows)
    path = HERE / "results.json"
    entries = json.loads(path.read_text()) if path.exists() else {}
    entries[name] = about
    path.write_text(json.dumps(entries, indent=1) + "\n")


def write_readme(rows: list[Row], about: dict[str, Any]) -> None:
    """Replaces the duel's table in README.md, which lies between two comments; a new duel comes at the end."""
    path, name = HERE / "README.md", rows[0].duel
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    lines = [
        begin,
        f"## {name}",
        "",
        f"{about['minutes']:g} minutes with {about['workers']} workers, seed {about['seed']}, commit "
        f"`{about['commit']}`, {about['machine'].get('cpu', 'a CPU')}. Not answered by a point of ours that is as fast "
        f"and at most 0.1 points worse: {', '.join(about['unanswered']) or 'none'}. Hypervolume ours / peers: "
        f"{_number(about['ratio'])}.",
        "",
        "| | file | latency ratio | accuracy | MiB |",
        "| --- | --- | --- | --- | --- |",
        *map(_table_row, sorted(rows, key=lambda row: -row.latency_ratio)),
        end,
    ]
    text = path.read_text(encoding="utf-8") if path.exists() else "# Duels\n"
    block = "\n".join(lines)
    if begin in text:
        text = text[: text.index(begin)] + block + text[text.index(end) + len(end) :]
    else:
        text = text.rstrip("\n") + "\n\n" + block + "\n"
    path.write_text(text, encoding="utf-8")


def _table_row(row: Row) -> str:
    latency = f"{row.latency_ratio:.3f} ± {row.spread:.3f}"
    return f"| {row.who} | {row.what} | {latency} | {row.accuracy:.2%} | {row.size_mib:.2f} |"


def _number(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("row", choices=yaml.safe_load((HERE / "rows.yaml").read_text()))
    parser.add_argument("--minutes", type=float, default=60.0, help="of the search; the trained peers share the same")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/duels"))
    parser.add_argument("--step", choices=("search", "peers", "judge"), help="only this one")
    args = parser.parse_args()
    row = yaml.safe_load((HERE / "rows.yaml").read_text())[args.row]
    if args.step in (None, "search"):
        search(args.row, row, args.minutes, args.workers, args.seed, args.out)
    if args.step in (None, "peers", "judge"):
        files = peers(args.row, row, args.minutes, args.workers, args.out)
    if args.step in (None, "judge"):
        rows = judge(args.row, row, files, args.out)
        about = {
            "command": shlex.join(["python", *sys.argv]),
            "commit": subprocess.run(
                ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=HERE, check=True
            ).stdout.strip(),
            "minutes": args.minutes,
            "workers": args.workers,
            "seed": args.seed,
            "machine": describe_machine(),
            "versions": describe_versions(),
            **verdict(rows),
        }
        write(args.row, rows, about)
        write_readme(rows, about)
        print(json.dumps(about, indent=1))


if __name__ == "__main__":
    main()
