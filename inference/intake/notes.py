"""Notes on one file, taken on the way: what was mended, what is odd, and how to refuse it."""

from __future__ import annotations

from dataclasses import dataclass, field

from inference.errors import CaseError
from inference.text import printable


@dataclass(frozen=True)
class Notes:
    """Findings about one file of one case."""

    case: str
    """ID of the case."""
    file: str
    """Name of the file, without its folder."""
    repairs: list[str] = field(default_factory=list)
    """Repairs."""
    warnings: list[str] = field(default_factory=list)
    """Oddities that were left alone."""

    def refusal(self, problem: str, *, found: str, expected: str) -> CaseError:
        """The error that names the case, the file, what was found there and what was expected."""
        return CaseError(self.case, f"{printable(self.file)}: {problem}", found=found, expected=expected)

    def unreadable(self, error: Exception) -> CaseError:
        """The error for a file that the system will not give."""
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return self.refusal("cannot be read", found=str(reason), expected="a readable file")
