"""Named errors pass between processes whole."""

from __future__ import annotations

import importlib
import pickle
import pkgutil

import pytest

import inference
import training
from inference.errors import CaseError, FolderError, GliomaError, SeveralErrors, UsageError
from inference.schema import Mismatch

GIVEN = {
    CaseError: [
        CaseError("A", "A-t1c.nii.gz: empty", found="0 bytes", expected="a NIfTI file"),
        CaseError("A", "its name cannot be used"),
    ],
    SeveralErrors: [SeveralErrors([CaseError("A", "empty", found="0 bytes"), FolderError("b: cannot be read")])],
    Mismatch: [Mismatch("folds", 0, "a number")],
}
"""Errors of the classes that take more than a text."""


def families() -> set[type[Exception]]:
    """Every named error of both packages, and what becomes one."""
    for package in (inference, training):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith(("__main__", ".resident", ".trainers")):  # these need torch and nnU-Net
                importlib.import_module(module.name)
    found, new = set(), {GliomaError, Mismatch}
    while new:
        found |= new
        new = {below for kind in new for below in kind.__subclasses__()}
    return found


def test_every_error_survives_the_way_between_processes():
    kinds = families()
    assert {CaseError, FolderError, UsageError, SeveralErrors} < kinds
    for kind in kinds:
        for error in GIVEN.get(kind) or [kind("x: found y, expected z")]:
            for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
                again = pickle.loads(pickle.dumps(error, protocol))
                assert type(again) is kind
                assert str(again) == str(error)
                assert str(vars(again)) == str(vars(error))


def test_notes_come_along():
    error = UsageError("x")
    error.add_note("where it was raised")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["where it was raised"]


@pytest.mark.parametrize("count", [1, 3])
def test_several_errors_have_a_line_each(count):
    errors = [CaseError(f"case-{number}", "empty") for number in range(count)]
    assert str(SeveralErrors(errors)).splitlines() == [str(error) for error in errors]
