"""`python -m benchmarks`: bundles of random weights, and speed and memory of whole cases."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from benchmarks import bundles, speed
from inference.errors import ExitStatus, GliomaError

_LOG = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit status: 0, or 2 with one line that says what is wrong."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, tool in (("bundle", bundles), ("speed", speed)):
        command = commands.add_parser(name, help=tool.run.__doc__, description=tool.__doc__)
        tool.add_arguments(command)
        command.set_defaults(run=tool.run)
    parsed = parser.parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except GliomaError as error:
        _LOG.error("error: %s", error)
        return ExitStatus.NOTHING_ATTEMPTED


if __name__ == "__main__":
    sys.exit(main())
