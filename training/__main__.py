"""Entry point of `python -m training`."""

from __future__ import annotations

import sys

from inference.errors import ExitStatus, no_module

if __name__ == "__main__":
    try:
        from training.cli import main
    except ModuleNotFoundError as error:
        sys.stderr.write(f"error: {no_module(error)}\n")
        sys.exit(ExitStatus.NOTHING_ATTEMPTED)
    sys.exit(main())
