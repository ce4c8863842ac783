"""Training curves, from the log that nnU-Net keeps in its checkpoints, and the picture that it draws of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from inference.errors import UsageError
from training.bundles.checkpoints import read_plainly

log = logging.getLogger(__name__)

# Where the log is looked for. A checkpoint has all epochs, however often the training was stopped and continued; of the
# text files beside it there is one for each start.
CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")


@dataclass(frozen=True)
class Curve:
    """One training, epoch by epoch."""

    order: int
    """nnU-Net's number of the training's data set."""
    stage: str
    """Name of the training's data set: pretraining, finetuning."""
    model: str
    """The model, by the name of its plans."""
    fold: int
    """The fold that it did not see."""
    folder: Path
    """Where it lies, with nnU-Net's `progress.png`."""
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


def read_curves(work: Path) -> list[Curve]:
    """The curves of all trainings of a run that have a checkpoint, in the order of stage, model and fold."""
    curves = []
    for folder in (work / "nnunet" / "trainings").glob("Dataset[0-9]*_*/*__*__*/fold_*"):
        number, _, stage = folder.parent.parent.name.removeprefix("Dataset").partition("_")
        model, fold = folder.parent.name.split("__")[1], int(folder.name.removeprefix("fold_"))
        logs = ((name, logged) for name in CHECKPOINTS if (logged := _read_log(folder / name)) is not None)
        found, logged = next(logs, (None, None))
        if logged is None:
            continue
        columns = [_numbers(logged, key) for key in ("train_losses", "val_losses", "ema_fg_dice")]
        epochs = min(map(len, columns))  # a checkpoint may be written in the middle of an epoch's log
        train, validation, dice = (column[:epochs] for column in columns)
        starts, ends = (_numbers(logged, f"epoch_{side}_timestamps") for side in ("start", "end"))
        # Of the epochs alone, without the hours between a stop and the next start.
        seconds = sum(end - start for start, end in zip(starts, ends, strict=False))
        finished = found == CHECKPOINTS[0]
        curves.append(Curve(int(number), stage, model, fold, folder, finished, train, validation, dice, seconds))
    return sorted(curves, key=lambda curve: (curve.order, curve.stage, curve.model, curve.fold))


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


def _numbers(logged: Mapping[str, object], key: str) -> tuple[float, ...]:
    values = logged.get(key)
    return tuple(float(value) for value in values) if isinstance(values, Sequence) else ()
