"""Measurements say what happened."""

from __future__ import annotations

from collections.abc import Callable

import pytest


def test_speed_counts_every_case_and_step(measured: Callable[..., dict]) -> None:
    found = measured("speed", "--cases", "3", "--networks", "1")
    assert found["networks"] == 2
    assert [case["id"][:3] for case in found["cases"]] == ["000", "001", "002"]
    assert set(found["steps"]) == {"read", "predict", "refine", "write", "draw"}
    ends = [case["over_at"] for case in found["cases"]]
    assert ends == sorted(ends)
    assert found["seconds_per_case"] == pytest.approx(ends[-1] / 3, abs=0.01)
    assert found["first_file_seconds"] == pytest.approx(found["start_seconds"] + ends[0], abs=0.02)
    # The kernel counts pages per thread, and adds them up now and then.
    assert found["peak_rss_gb"] + 0.02 > max(case["rss_gb"] for case in found["cases"]) > 0.05
    later = [case["seconds"]["predict"] for case in found["cases"][1:]]
    assert found["later_predict_seconds"] == pytest.approx(sum(later) / 2, abs=0.001)
    assert found["peak_gpu_gb"] is found["reserved_gpu_gb"] is None
    assert all(len(halves) == 2 for halves in found["growth"].values())
