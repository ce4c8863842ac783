"""Fixtures that training shares with inference, and a fabricated run, tuned and reported once."""

import pytest

from tests.inference.conftest import phantom_folder, tiny_bundle

__all__ = ["finished", "phantom_folder", "tiny_bundle"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Configuration and folder of a run with its report."""
    from tests.training.fabricated import fabricate
    from training.report.report import write_report

    work = tmp_path_factory.mktemp("fabricated")
    config = fabricate(work)
    write_report(config, work, revision="abc1234", jobs=1)
    return config, work
