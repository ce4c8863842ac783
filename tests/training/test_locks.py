"""Locks, and file systems that have none."""

from __future__ import annotations

import errno
import fcntl
import os

import pytest

from inference.errors import FolderError
from training.fit.devices import own_gpu
from training.locks import alone


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, as some network drives are."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "lockf", refuse)


def test_a_file_system_without_locks_is_named(tmp_path, no_locks):
    refused = pytest.raises(FolderError, match=r"locks/run: cannot be locked \(No locks available\)")
    with refused, alone(tmp_path / "locks" / "run", "running"):
        pass


def test_gpus_are_claimed_by_locks_too(tmp_path, no_locks, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(FolderError, match=r"cannot be locked \(No locks available\)"), own_gpu(tmp_path):
        pass


def test_a_folder_that_takes_no_lock_file_is_named(tmp_path):
    (tmp_path / "locks").write_text("")
    with pytest.raises(FolderError, match="locks: cannot be written to"), alone(tmp_path / "locks" / "run", "running"):
        pass
    (tmp_path / "run").mkdir()
    with pytest.raises(FolderError, match="run: cannot be written"), alone(tmp_path / "run", "running"):
        pass
