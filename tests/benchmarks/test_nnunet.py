"""Both predictors agree, and nnU-Net's leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import nnunet


def test_both_predictors_agree_on_the_same_weights(measured: Callable[..., dict]) -> None:
    found = measured("nnunet", "--tiles", "2", "--engine", "torch")
    assert [one["model"] for one in found["models"]] == ["nnunet", "mednext"]
    for one in found["models"]:
        assert (one["tiles"], one["forwards"]) == (2, 16)
        assert min(one["dice"].values()) > 0.99
        # nnU-Net's sums are in half precision: on random weights, where logits have no scale, that costs up to 0.12.
        assert 0 < one["largest_difference"] < 0.12
        forwards = one["tiles_of_case"] * 8 * 5
        # Seconds are told in thousandths, and what is extrapolated from them in tenths.
        rounding = 0.0005 / 16 * forwards + 0.05
        theirs = one["nnunet"]
        assert theirs["case_extrapolated"] == pytest.approx(theirs["seconds"] / 16 * forwards, abs=rounding)


def test_one_forward_of_both_agrees(measured: Callable[..., dict]) -> None:
    (one,) = measured("nnunet", "--one-forward", "--engine", "torch", "--model", "mednext")["models"]
    assert (one["tiles"], one["forwards"]) == (1, 1)
    assert min(one["dice"].values()) > 0.99
    assert one["nnunet"]["processor_seconds"] > 0


def test_nnunets_predictor_leaves_cudnn_as_it_was(
    measured: Callable[..., dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    def predictor(*arguments: object, **keywords: object) -> object:
        torch.backends.cudnn.benchmark = True
        return make(*arguments, **keywords)

    make = nnunet._predictor
    monkeypatch.setattr(nnunet, "_predictor", predictor)
    measured("nnunet", "--one-forward", "--engine", "torch", "--model", "nnunet")
    assert not torch.backends.cudnn.benchmark
