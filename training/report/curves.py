"""Training curves, from the log that nnU-Net keeps in its checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.errors import UsageError
from training.bundles.checkpoints import read_plainly

log = logging.getLogger(__name__)

CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")
"""Where the log is looked for. A checkpoint has all epochs, however often the training was stopped and continued; the
text files beside it are one for each start."""


@dataclass(frozen=True)
class Curve:
    """One training, epoch by epoch."""

    order: int
    """nnU-Net's number of the training's data set."""
    stage: str
    """What the training's data set is called: pretraining, finetuning."""
    model: str
    """The model, by the name of its plans."""
    fold: int
    """The fold that it did not see."""
    finished: bool
    """Whether it came to its end."""
    train_loss: tuple[float, ...]
    """Loss on the training patches."""
    validation_loss: tuple[float, ...]
    """Loss on patches of the fold."""
    pseudo_dice: tuple[float, ...]
    """nnU-Net's pseudo Dice on the same patches, mean over regions, as its moving average."""
    seconds: float
    """Sum of the epochs' durations."""

    @property
    def epochs(self) -> int:
        """Epochs that are over."""
        return len(self.train_loss)


def read_curves(work: Path) -> list[Curve]:
    """The curves of all trainings of a run that have a checkpoint, in the order of stage, model and fold."""
    found = _curves(work / "nnunet" / "trainings")
    return sorted(found, key=lambda curve: (curve.order, curve.stage, curve.model, curve.fold))


def _curves(trainings: Path) -> Iterator[Curve]:
    for folder in sorted(trainings.glob("Dataset[0-9]*_*/*__*__*/fold_*")):
        number, _, stage = folder.parent.parent.name.removeprefix("Dataset").partition("_")
        model, fold = folder.parent.name.split("__")[1], int(folder.name.removeprefix("fold_"))
        for name in CHECKPOINTS:
            found = _read_log(folder / name)
            if found is not None:
                yield _curve(found, (int(number), stage, model, fold), finished=name == CHECKPOINTS[0])
                break


def _curve(found: Mapping[str, object], training: tuple[int, str, str, int], *, finished: bool) -> Curve:
    train, validation, dice = (_numbers(found.get(key)) for key in ("train_losses", "val_losses", "ema_fg_dice"))
    starts, ends = (_numbers(found.get(f"epoch_{side}_timestamps")) for side in ("start", "end"))
    epochs = min(len(train), len(validation), len(dice))  # a checkpoint may be written in the middle of an epoch's log
    seconds = sum(end - start for start, end in zip(starts, ends, strict=False))
    return Curve(*training, finished, train[:epochs], validation[:epochs], dice[:epochs], seconds)


def _read_log(path: Path) -> Mapping[str, object] | None:
    """nnU-Net's log in a checkpoint, without running anything in it; none where there is no checkpoint to read."""
    if not path.is_file():
        return None
    try:
        content = read_plainly(path)
    except UsageError as error:
        # One that is just being written, say.
        log.warning("report: a curve cannot be read: %s", error)
        return None
    found = content.get("logging") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else None


def _numbers(values: object) -> tuple[float, ...]:
    return tuple(float(value) for value in values) if isinstance(values, Sequence) else ()
