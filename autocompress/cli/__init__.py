"""The command line: one module per group of commands, heavy imports only inside the command that needs them."""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence

from autocompress import __version__
from autocompress.cli import completion, doctor, inspecting, profiling, refining, reporting, searching, status
from autocompress.errors import AutocompressError, StoppedError
from autocompress.files import printable
from autocompress.stop_signals import StopSignal, ends_as_exceptions

_EXAMPLES = """\
examples:
  autocompress demo                                      a front and a report in a few minutes, embedded data
  autocompress inspect my_model.py:task                  layers, channel groups, what is frozen and why
  autocompress profile my_model.py:task -o device.json   predicts latencies on this device: search --profile device.json
  autocompress search my_model.py:task --latency-budget 0.5x --trials 100
  autocompress resume runs/my_model                      continues after Ctrl-C, a crash or a power cut
  autocompress status runs/my_model --watch              how it stands, from another terminal
  autocompress report runs/my_model                      one HTML page, CSV, JSON; --serve watches a running search
  autocompress pick runs/my_model --latency-budget 1.5ms -o model/
  autocompress compare runs/my_model 12 40               two trials side by side
  autocompress refine runs/my_model 12 --epochs 10       trains one point longer
  autocompress export runs/my_model 12 --runtime openvino -o model/
  autocompress doctor                                    what is installed, which runtimes work, is the machine quiet

A TASK is a ready-made name (digits, cifar10:resnet20, cifar10:resnet56), file.py:name or package.module:name.
A budget is a share of the uncompressed model's latency (0.5x) or milliseconds (2.0ms).
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code.

    That is 0, or 2 when something the user gave is wrong or the system refuses something, or 128 and the number of the
    signal that stopped it.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # paths need not be text
    args = vars(_parser().parse_args(argv))
    command: Callable[..., None] = args.pop("command")
    try:
        with ends_as_exceptions():
            command(**args)
    except StoppedError as error:
        _say(str(error))
        return 128 + error.number
    except AutocompressError as error:
        _say(str(error))
        return 2
    except KeyboardInterrupt as error:
        _say(f"stopped by {error or 'SIGINT'}; `autocompress resume` continues a search that had begun")
        return 128 + (error.number if isinstance(error, StopSignal) else signal.SIGINT)
    except BrokenPipeError:  # who read the output has gone
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - Python flushes it at its end
        return 1
    except OSError as error:
        _say(f"the system refused: {error}")
        return 2
    return 0


def _say(message: str) -> None:
    """One line on the standard error, without what would change the terminal."""
    print(f"autocompress: {printable(message)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="autocompress",
        description="Searches compressed versions of a trained PyTorch model under a measured latency budget.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for group in (searching, status, inspecting, profiling, reporting, refining, doctor, completion):
        group.add_commands(commands)
    return parser
