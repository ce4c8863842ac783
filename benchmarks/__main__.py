"""Speed, memory and agreement, measured by commands that anyone can repeat: `python -m benchmarks COMMAND`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

from inference.errors import ExitStatus, GliomaError

_LOG = logging.getLogger(__name__)

COMMANDS: Final[Mapping[str, str]] = {
    "bundle": "write a bundle of random weights, whose networks cost what trained ones cost",
    "speed": "seconds and memory of whole cases, as `infer` goes through them",
    "nnunet": "nnU-Net's own predictor against ours, on the same weights and tiles",
    "agreement": "whether agreement of the networks tells how good a segmentation is",
    "ranked": "the ranked system's own container and the bundle imported from it, on the same cases",
    "grid": "what a grid alone costs: references resampled to it and back",
    "scoring": "seconds of the official scores on a full-size case, by edition",
}
"""Each command is the module of its name: its docstring, `add_arguments` and `run`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0, or 2 with one line that says what is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    listing = "commands:\n" + "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, epilog=listing, formatter_class=layout
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="...", help="its arguments: COMMAND --help")
    chosen = parser.parse_args(arguments)
    # Only the chosen command is imported: some need torch or nnU-Net, and `--help` needs neither.
    tool = import_module(f"benchmarks.{chosen.command}")
    command = argparse.ArgumentParser(
        f"python -m benchmarks {chosen.command}", description=tool.__doc__, formatter_class=layout
    )
    tool.add_arguments(command)
    try:
        return int(tool.run(command.parse_args(chosen.rest)))
    except GliomaError as error:
        _LOG.error("error: %s", error)
        return ExitStatus.NOTHING_ATTEMPTED


if __name__ == "__main__":
    sys.exit(main())
