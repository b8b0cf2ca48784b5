"""Training and evaluation: the handlers that Ignite and MONAI lack."""

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
import torch.distributed as dist
from ignite.engine import Engine, Events
from ignite.metrics import Metric
from monai.engines import IterationEvents
from monai.utils import CommonKeys
from torch import Tensor, nn

from monai_mvreg.cache.atomic import atomic_write
from monai_mvreg.results.predictions_table import PredictionsTable, check_target_names


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

    def attach(self, engine: Engine) -> None:
        """Register the handler with a trainer, behind the handler that runs the validation."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._iteration)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._epoch)
        self.evaluator.add_event_handler(Events.COMPLETED, self._validation)

    def state_dict(self) -> dict[str, Any]:
        """The rows so far, and the losses of the epoch that is not over."""
        return {"rows": self.rows, "losses": [float(loss) for loss in self.losses]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on behind these rows."""
        self.rows, self.losses = list(state_dict["rows"]), [torch.tensor(loss) for loss in state_dict["losses"]]

    def _iteration(self, engine: Engine) -> None:
        self.losses.append(engine.state.output[CommonKeys.LOSS].detach().cpu())

    def _validation(self, evaluator: Engine) -> None:
        self.validated = True

    def _epoch(self, engine: Engine) -> None:
        metric = f"{self.evaluator.state.metrics[self.metric]:.6g}" if self.validated else ""
        loss = float(torch.stack(self.losses).mean())
        self.rows.append([str(engine.state.epoch), f"{loss:.6g}", metric])
        self.losses, self.validated = [], False
        if self.write:
            _write_csv(self.path, ["epoch", "train_loss", self.metric], self.rows)


class PredictionInterval(Protocol):
    """What puts an interval around predictions, such as :class:`~monai_mvreg.results.calibration.Interval`."""

    def around(self, pred: npt.NDArray[Any], *, spread: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Lower and upper ends."""


class PredictionSaver:
    """Write ``predictions.csv``: one row per patient with measured and predicted targets and the weight of each scan.

    Scans stand in order of time; ``days`` and ``weights`` hold one entry per scan, joined by ``;``. What a patient's
    ``groups`` say stands last, in columns ``group_<name>``. With several processes the first writes for all.

    Args:
        path: the file.
        network: the :class:`~monai_mvreg.networks.multiscan.MultiScanNet` (or its distributed wrapper).
        target: names of the targets, in the order of the outputs.
        unit: unit of the targets, ``"1"`` for none.
        intervals: one for each target, None for a target without; then ``<target>_low`` and ``<target>_high`` are
            written too. Empty: they are not known yet.
    """

    def __init__(
        self,
        path: str,
        network: nn.Module,
        *,
        target: Sequence[str],
        unit: str = "1",
        intervals: Sequence[PredictionInterval | None] = (),
    ) -> None:
        self.path, self.target, self.unit, self.intervals = Path(path), list(target), unit, list(intervals)
        check_target_names(self.target)
        self.rows: dict[str, list[Any]] = {}
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

    def names(self) -> list[str]:
        """Name the columns of numbers: each target, what was predicted for it, and its interval."""
        ends = ["_predicted", *(["_low", "_high"] if self.intervals else [])]
        return [name for target in self.target for name in (target, *(target + end for end in ends))]

    def numbers(self, measured: Sequence[float], predicted: Tensor) -> list[float]:
        """The numbers of one patient, nan for none, from the label and the output ``(K,)`` of the network."""
        found: list[float] = []
        for place, number in enumerate(predicted.double().numpy()):
            found += [measured[place], number, *self.ends(place, number, np.ones(()))]
        return found

    def ends(self, place: int, predicted: npt.NDArray[Any], spread: npt.NDArray[Any]) -> list[float]:
        """Both ends of the interval of one target around its prediction, nan for none; nothing without intervals."""
        if not self.intervals:
            return []
        interval = self.intervals[place]
        if interval is None:
            return [math.nan, math.nan]
        return [float(end) for end in interval.around(predicted, spread=spread)]

    def _keep_weights(self, pool: nn.Module, args: Any, result: tuple[Tensor, Tensor]) -> None:
        self.weights = result[1].detach().float().cpu()

    def _iteration(self, engine: Engine) -> None:
        batch, predicted = engine.state.batch, engine.state.output[CommonKeys.PRED].float().cpu()
        labelled, unknown = "label" in batch, [math.nan] * len(self.target)
        for row, patient in enumerate(batch["patient"]):
            real = batch["mask"][row]
            # The shortest text of a float32 is the number of the cohort's table.
            measured = [float(str(number)) for number in batch["label"][row].cpu().numpy()] if labelled else unknown
            days, order = batch["time"][row][real].sort(stable=True)
            groups = batch["groups"][row] if "groups" in batch else {}
            self.groups = list(groups)
            self.rows[patient] = [
                patient,
                batch["fold"][row],
                *self.numbers(measured, predicted[row]),
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
        header = ["patient", "fold", *self.names(), "unit", "scans", "days", "weights", *groups]
        frame = pd.DataFrame([rows[patient] for patient in sorted(rows)], columns=header, dtype=object)
        PredictionsTable(frame).write(self.path)


class SpreadSaver(PredictionSaver):
    """Write ``predictions.csv`` of one target with the spread that the network predicts, ``<target>_spread``.

    Args:
        path: the file.
        network: the :class:`~monai_mvreg.networks.multiscan.MultiScanNet` (or its distributed wrapper).
        value_and_spread: turns outputs of the network ``(B, K)`` into both, each ``(B, 1)``, as the method of the loss.
        target: the name of the target.
        unit: its unit, ``"1"`` for none.
        intervals: one, in spreads; empty: it is not known yet.

    Raises:
        ValueError: for several targets.
    """

    def __init__(
        self,
        path: str,
        network: nn.Module,
        *,
        value_and_spread: Callable[[Tensor], tuple[Tensor, Tensor]],
        target: Sequence[str],
        unit: str = "1",
        intervals: Sequence[PredictionInterval | None] = (),
    ) -> None:
        super().__init__(path, network, target=target, unit=unit, intervals=intervals)
        if len(target) != 1:
            raise ValueError(f"expected one target to predict with a spread, got {list(target)}")
        self.value_and_spread = value_and_spread

    def names(self) -> list[str]:
        """Name the columns of numbers."""
        target, predicted, *ends = super().names()
        return [target, predicted, f"{target}_spread", *ends]

    def numbers(self, measured: Sequence[float], predicted: Tensor) -> list[float]:
        """The numbers of one patient, nan for none."""
        value, spread = (part.double().numpy()[0, 0] for part in self.value_and_spread(predicted[None]))
        return [measured[0], float(value), float(spread), *self.ends(0, value, spread)]


class Curves(Protocol):
    """What turns a log risk into time, such as :class:`~monai_mvreg.results.calibration.Baseline`."""

    def survival(self, risk: npt.NDArray[Any], days: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Chance of no event through each day."""

    def median_days(self, risk: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Day through which half of the patients of that risk have the event."""

    def log_hazard(self, risk: npt.NDArray[Any], day: float) -> npt.NDArray[Any]:
        """Log cumulative hazard through a day."""


class RiskSaver(PredictionSaver):
    """Write ``predictions.csv`` of a time to event: time, event, log risk, and with curves what they make of it.

    ``median_days`` is empty where half of such patients are free of the event at the end of what is known;
    ``risk_<day>`` is the chance of the event by that day, ``log_hazard`` the log cumulative hazard by the last of them.

    Args:
        path: the file.
        network: the :class:`~monai_mvreg.networks.multiscan.MultiScanNet` (or its distributed wrapper).
        log_risk: turns outputs of the network ``(B, K)`` into log risks ``(B, 1)``, as the method of the loss.
        target: names of time and event.
        horizons: days for which chances are written.
        curves: from log risk to time; None: they are not known yet.
    """

    def __init__(
        self,
        path: str,
        network: nn.Module,
        *,
        log_risk: Callable[[Tensor], Tensor],
        target: Sequence[str],
        horizons: Sequence[float],
        curves: Curves | None = None,
    ) -> None:
        super().__init__(path, network, target=target, unit="d")
        self.log_risk, self.horizons, self.curves = log_risk, list(horizons), curves

    def names(self) -> list[str]:
        """Name the columns of numbers."""
        known = ["median_days", *(f"risk_{day:g}" for day in self.horizons), "log_hazard"]
        return [*self.target, "log_risk", *(known if self.curves is not None else [])]

    def numbers(self, measured: Sequence[float], predicted: Tensor) -> list[float]:
        """The numbers of one patient, nan for none."""
        risk = self.log_risk(predicted[None]).double().numpy()[0]
        if self.curves is None:
            return [*measured, float(risk[0])]
        median = float(self.curves.median_days(risk)[0])
        chances = 1 - self.curves.survival(risk, np.asarray(self.horizons, dtype=np.float64))[0]
        hazard = float(self.curves.log_hazard(risk, self.horizons[-1])[0])
        return [*measured, float(risk[0]), median if math.isfinite(median) else math.nan, *chances.tolist(), hazard]


class Concordance(Metric):
    """Harrell's concordance of the whole cohort, over all processes, for ``key_val_metric``.

    Args:
        concordance: the measure ``(risk (P,), label (P, 2)) -> float``, such as
            :func:`monai_mvreg.metrics.survival.concordance`.
        output_transform: picks log risk ``(B, 1)`` and label ``(B, 2)`` from the output of the evaluator.
    """

    def __init__(
        self,
        concordance: Callable[[npt.NDArray[Any], npt.NDArray[Any]], float],
        output_transform: Callable[[Any], Any] = lambda output: output,
    ) -> None:
        self.concordance = concordance
        super().__init__(output_transform=output_transform)

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
        """Compare all patients.

        Raises:
            ValueError: if no two of them can be compared.
        """
        risk, label = self.risk, self.label
        if dist.is_available() and dist.is_initialized():
            shards: list[Any] = [None] * dist.get_world_size()
            dist.all_gather_object(shards, (risk, label))
            risk, label = ([row for shard in shards for row in shard[i]] for i in (0, 1))
        found = self.concordance(np.array(risk), np.array(label))
        if math.isnan(found):
            raise ValueError(f"expected validation patients with events that can be compared, got {len(risk)} without")
        return found


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with atomic_write(path) as unfinished, unfinished.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
