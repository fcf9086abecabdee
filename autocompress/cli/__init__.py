"""The command line: one module per group of commands, heavy imports only inside the command that needs them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from autocompress.cli import inspecting, profiling, refining, reporting, searching, status
from autocompress.errors import AutocompressError

_EXAMPLES = """\
examples:
  autocompress demo                                      a front and a report in a few minutes, embedded data
  autocompress inspect my_model.py:task                  layers, channel groups, what is frozen and why
  autocompress profile my_model.py:task -o device.json   predicts latencies on this device: search --profile device.json
  autocompress search my_model.py:task --latency-budget 0.5x --trials 100
  autocompress resume runs/my_model                      goes on after Ctrl-C, a crash or a power cut
  autocompress status runs/my_model --watch              how it stands, from another terminal
  autocompress report runs/my_model                      one HTML page, CSV, JSON; --serve watches a running search
  autocompress pick runs/my_model --latency-budget 1.5ms -o model/
  autocompress compare runs/my_model 12 40               two trials side by side
  autocompress refine runs/my_model 12 --epochs 10       trains one point longer
  autocompress export runs/my_model 12 --runtime openvino -o model/

A TASK is a ready-made name (digits, cifar10:resnet20, cifar10:resnet56), file.py:name or package.module:name.
A budget is a share of the uncompressed model's latency (0.5x) or milliseconds (2.0ms).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code: 0, or 2 when something the user gave is wrong."""
    args = vars(_parser().parse_args(argv))
    command: Callable[..., None] = args.pop("command")
    try:
        command(**args)
    except AutocompressError as error:
        print(f"autocompress: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("autocompress: stopped; `autocompress resume` goes on from what is on disk", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autocompress",
        description="Searches compressed versions of a trained PyTorch model under a measured latency budget.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (searching, status, inspecting, profiling, reporting, refining):
        group.add_commands(commands)
    return parser
