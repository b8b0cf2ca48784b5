"""Predictions of a run -> calibration, metrics and a report, as its task asks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_mvreg.networks.task import Task, TimeToEvent
from monai_mvreg.report.evaluation import write_evaluation
from monai_mvreg.report.survival import fit_curves, report_on
from monai_mvreg.results.intervals import fit_intervals


def report_training(
    task: Task, folder: str, models: str, *, target: Sequence[str], training_mean: Sequence[float]
) -> None:
    """Calibrate a model on the held-out patients of its training, and report on them; for the end of a training.

    Args:
        task: what the outputs of the network mean.
        folder: holds ``predictions.csv`` of the validation patients; gets ``metrics.json`` and ``report.html``.
        models: the folder of the model; gets ``intervals.json``, or ``survival.json`` for a time to event.
        target: names of the targets.
        training_mean: mean of each target over the training patients, which the model is compared with; not read for a
            time to event.

    Raises:
        ValueError: for a time to event, if none of the patients has an event.
    """
    if isinstance(task, TimeToEvent):
        fit_curves(
            folder, str(Path(models) / "survival.json"), target=[*target, task.event], horizons=list(task.horizons)
        )
    else:
        fit_intervals(folder, str(Path(models) / "intervals.json"), target)
        write_evaluation(folder, target, training_mean=training_mean)


def report_evaluation(
    task: Task, folder: str, models: str, *, target: Sequence[str], training_mean: Sequence[float], notice: str = ""
) -> None:
    """Report on the predictions of an evaluation; for the end of a run.

    Args:
        task: what the outputs of the network mean.
        folder: holds ``predictions.csv``; gets ``metrics.json`` and ``report.html``.
        models: the folder of the model.
        target: names of the targets.
        training_mean: as in :func:`report_training`.
        notice: a sentence on top of the report, on what the numbers do not say; empty for none.
    """
    if isinstance(task, TimeToEvent):
        curve = str(Path(models) / "survival.json")
        report_on(folder, curve, target=[*target, task.event], horizons=list(task.horizons), notice=notice)
    else:
        write_evaluation(folder, target, training_mean=training_mean, notice=notice)
