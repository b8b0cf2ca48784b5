"""Training and evaluation: the handlers that Ignite and MONAI lack."""

import csv
import logging
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import MeanAbsoluteError, Metric
from monai.engines import IterationEvents
from monai.utils import CommonKeys
from torch import Tensor, nn

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.metrics.survival import concordance
from monai_mvreg.networks.multiscan import TargetScaling
from monai_mvreg.networks.task import Task, TimeToEvent
from monai_mvreg.results.calibration import Baseline, Calibration
from monai_mvreg.results.predictions_table import PredictionsTable, check_target_names

_log = logging.getLogger(__name__)


class GradientClipping:
    """Scale the gradients of all parameters down to one largest norm before the optimizer steps.

    Args:
        max_norm: largest Euclidean norm.

    Source: Pascanu, Mikolov, Bengio, ICML 2013. https://arxiv.org/abs/1211.5063
    """

    def __init__(self, max_norm: float) -> None:
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Register the handler with a trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Any) -> None:
        """Clip, in units of the true gradient also under automatic mixed precision."""
        if engine.scaler is not None:
            engine.scaler.unscale_(engine.optimizer)
        nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_norm)


class HistorySaver:
    """Write ``history.csv``: for every epoch the mean training loss and, where it was measured, the validation metric.

    The same is logged in one line, with the best epoch so far and the time that is left.

    Args:
        path: the file; written anew after every epoch, so that it is whole after an interruption.
        evaluator: the validation evaluator.
        metric: the name of its metric.
        write: false on all processes but one.
    """

    def __init__(self, path: str, evaluator: Engine, metric: str, *, write: bool = True) -> None:
        self.path, self.evaluator, self.metric, self.write = Path(path), evaluator, metric, write
        self.rows: list[list[str]] = []
        self.losses: list[Tensor] = []
        self.validated = False
        self.seconds: list[float] = []
        self.began = 0.0

    def attach(self, engine: Engine) -> None:
        """Register the handler with a trainer, behind the handler that runs the validation."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        self.evaluator.add_event_handler(Events.COMPLETED, self._validation)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, and the losses of the epoch that is not over."""
        return {"rows": self.rows, "losses": [float(loss) for loss in self.losses]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on behind these rows."""
        self.rows, self.losses = list(state_dict["rows"]), [torch.tensor(loss) for loss in state_dict["losses"]]

    def _start(self, engine: Engine) -> None:
        self.began = time.perf_counter()

    def _iteration(self, engine: Engine) -> None:
        self.losses.append(engine.state.output[CommonKeys.LOSS].detach())  # to read it here would wait for the GPU

    def _validation(self, evaluator: Engine) -> None:
        self.validated = True

    def _epoch(self, engine: Engine) -> None:
        metric = f"{self.evaluator.state.metrics[self.metric]:.6g}" if self.validated else ""
        loss = float(torch.stack([loss.cpu() for loss in self.losses]).mean())
        self.rows.append([str(engine.state.epoch), f"{loss:.6g}", metric])
        self.losses, self.validated = [], False
        self.seconds.append(time.perf_counter() - self.began)
        if self.write:
            _write_csv(self.path, ["epoch", "train_loss", self.metric], self.rows)
            _log.info("%s", self._line(engine))

    def _line(self, engine: Engine) -> str:
        epoch, loss, metric = self.rows[-1]
        state, epochs = self.evaluator.state, engine.state.max_epochs
        words = [f"epoch {epoch} of {epochs}: loss {loss}"]
        if metric:
            at = getattr(state, "best_metric_epoch", -1)
            best = " (the best)" if at == engine.state.epoch else f" (best {state.best_metric:.6g} in epoch {at})"
            words.append(f"{self.metric} {metric}{best * (at > 0)}")
        words.append(f"{self.seconds[-1]:.1f} s")
        if left := (epochs or 0) - engine.state.epoch:
            seconds = left * sum(self.seconds) / len(self.seconds)
            words.append(f"at most {seconds:.0f} s left" if seconds < 120 else f"at most {seconds / 60:.0f} min left")
        return ", ".join(words)


class PredictionSaver:
    """Write ``predictions.csv``: one row per patient with measured and predicted targets and the weight of each scan.

    Scans stand in order of time; ``days`` and ``weights`` hold one entry per scan, joined by ``;``. What a patient's
    ``groups`` say stands last, in columns ``group_<name>``. With several processes the first writes for all.

    Args:
        path: the file.
        network: the :class:`~monai_mvreg.networks.multiscan.MultiScanNet` (or its distributed wrapper).
        task: what the outputs of the network mean.
        target: names of the targets, in the order of the label without the event.
        unit: unit of the targets, ``"1"`` for none; times to an event are in days.
        calibration: what was fitted on held-out patients: of numbers the interval of each target, ``None`` for a target
            without, written as ``<target>_low`` and ``<target>_high``; of a time to event the curve, written as
            ``median_days``, empty where half of such patients are free of the event at the end of what is known, and
            ``risk_<day>``, the probability of the event by that day, and ``log_hazard``, the log cumulative hazard by
            the last of them. ``None``: it is not known yet.

    Raises:
        ValueError: if a target has the name of another column.
    """

    def __init__(
        self,
        path: str,
        network: nn.Module,
        *,
        task: Task,
        target: Sequence[str],
        unit: str = "1",
        calibration: Calibration | None = None,
    ) -> None:
        self.path, self.task, self.target = Path(path), task, list(target)
        self.unit, self.calibration = "d" if isinstance(task, TimeToEvent) else unit, calibration
        self.label = [*target, *([task.event] if task.event is not None else [])]
        check_target_names(self.label)
        self.rows: dict[str, list[Any]] = {}
        self.names: list[str] = []
        self.groups: list[str] = []
        whole: nn.Module = getattr(network, "module", network)
        self.weights = torch.empty(0)
        # The weights are taken as the pool makes them, so no scan is encoded twice.
        whole.get_submodule("pool").register_forward_hook(self._keep_weights)

    def attach(self, engine: Engine) -> None:
        """Register the handler with an evaluator that keeps whole batches (``decollate=False``)."""
        engine.add_event_handler(Events.STARTED, lambda _: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _numbers(self, measured: Sequence[float], outputs: Tensor) -> dict[str, float]:
        """Name the numbers of one patient, NaN for none, from the label and the outputs ``(K,)`` of the network."""
        read = self.task.read(outputs[None])
        if isinstance(self.task, TimeToEvent):
            return dict(zip(self.label, measured, strict=True)) | self._risk(read.value[0].numpy(), self.task.horizons)
        numbers: dict[str, float] = {}
        spread = np.ones(len(self.target)) if read.spread is None else read.spread[0].numpy()
        for index, (target, value) in enumerate(zip(self.target, read.value[0].numpy(), strict=True)):
            numbers |= {target: measured[index], f"{target}_predicted": float(value)}
            if read.spread is not None:
                numbers[f"{target}_spread"] = float(spread[index])
            if self.calibration is not None:
                assert not isinstance(self.calibration, Baseline)
                interval = self.calibration[index]
                ends = (math.nan, math.nan) if interval is None else interval.around(value, spread=spread[index])
                numbers |= {f"{target}_low": float(ends[0]), f"{target}_high": float(ends[1])}
        return numbers

    def _risk(self, risk: npt.NDArray[Any], horizons: Sequence[float]) -> dict[str, float]:
        """Name the log risk ``(1,)`` of one patient and, where the curve is known, what follows from it."""
        numbers = {"log_risk": float(risk[0])}
        if isinstance(self.calibration, Baseline):
            median = float(self.calibration.median_days(risk)[0])
            events = 1 - self.calibration.survival(risk, np.asarray(horizons, dtype=np.float64))[0]
            numbers["median_days"] = median if math.isfinite(median) else math.nan
            numbers |= {f"risk_{day:g}": float(event) for day, event in zip(horizons, events, strict=True)}
            numbers["log_hazard"] = float(self.calibration.log_hazard(risk, horizons[-1])[0])
        return numbers

    def _keep_weights(self, pool: nn.Module, args: Any, result: tuple[Tensor, Tensor]) -> None:
        self.weights = result[1].detach().float().cpu()

    def _iteration(self, engine: Engine) -> None:
        batch, predicted = engine.state.batch, engine.state.output[CommonKeys.PRED].float().cpu()
        labelled, unknown = "label" in batch, [math.nan] * len(self.label)
        for row, patient in enumerate(batch["patient"]):
            real = batch["mask"][row]
            # The shortest text of a float32 is the number of the cohort's table.
            measured = [float(str(number)) for number in batch["label"][row].cpu().numpy()] if labelled else unknown
            days, order = batch["time"][row][real].sort(stable=True)
            groups = batch["groups"][row] if "groups" in batch else {}
            numbers = self._numbers(measured, predicted[row])
            self.names, self.groups = list(numbers), list(groups)
            self.rows[patient] = [
                patient,
                batch["fold"][row],
                *numbers.values(),
                self.unit,
                int(real.sum()),
                ";".join(f"{day:g}" for day in days.tolist()),
                ";".join(f"{weight:.4f}" for weight in self.weights[row][real][order].tolist()),
                *groups.values(),
            ]

    def _write(self, engine: Engine) -> None:
        rows = self.rows
        if dist.is_available() and dist.is_initialized():
            shards: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(shards, self.rows)
            rows = {patient: row for shard in shards for patient, row in shard.items()}
            if dist.get_rank() != 0:
                return
        groups = [f"group_{name}" for name in self.groups]
        header = ["patient", "fold", *self.names, "unit", "scans", "days", "weights", *groups]
        frame = pd.DataFrame([rows[patient] for patient in sorted(rows)], columns=header, dtype=object)
        PredictionsTable(frame).write(self.path)


def validation_metrics(task: Task, scaling: TargetScaling, *, targets: int) -> dict[str, Metric]:
    """Name and make the metric that chooses the model, for ``key_val_metric``.

    Args:
        task: what the outputs of the network mean.
        scaling: that of the network. Errors of several targets are added up in its standard deviations.
        targets: how many there are.
    """
    if isinstance(task, TimeToEvent):
        return {task.metric: Concordance(lambda output: (task.read(output[CommonKeys.PRED]).value, output["label"]))}
    scale = scaling.standardise if targets > 1 else nn.Identity()

    def pair(output: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        predicted = task.read(output[CommonKeys.PRED]).value.to(output[CommonKeys.LABEL].dtype)
        return scale(predicted), scale(output[CommonKeys.LABEL])

    return {task.metric: MeanAbsoluteError(pair)}


class Concordance(Metric):
    """Harrell's concordance of the whole cohort, over all processes, for ``key_val_metric``.

    Args:
        output_transform: picks log risk ``(B, 1)`` and label ``(B, 2)`` from the output of the evaluator.
    """

    def reset(self) -> None:
        """Forget all patients."""
        self.risk: list[float] = []
        self.label: list[list[float]] = []

    def update(self, output: tuple[Tensor, Tensor]) -> None:
        """Add the patients of a batch."""
        risk, label = output
        self.risk += risk.detach().double().flatten().tolist()
        self.label += label.detach().double().tolist()

    def compute(self) -> float:
        """Compare all patients; NaN if no two of them can be compared."""
        risk, label = self.risk, self.label
        if dist.is_available() and dist.is_initialized():
            shards: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(shards, (risk, label))
            risk, label = ([row for shard in shards for row in shard[i]] for i in (0, 1))
        return concordance(np.array(risk), np.array(label))


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
