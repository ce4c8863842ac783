"""A fabricated run, tuned and reported once."""

from __future__ import annotations

import pytest

from tests.training.fabricated import fabricate
from training.report.report import write_report


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Configuration and folder of a run with its report."""
    work = tmp_path_factory.mktemp("fabricated")
    config = fabricate(work)
    write_report(config, work, revision="abc1234", jobs=1)
    return config, work
