"""Metrics of a cohort, with intervals over patients."""

from .regression import cohort_metrics as cohort_metrics
from .regression import interval_metrics as interval_metrics
from .regression import limits_of_agreement as limits_of_agreement
from .smooth import CalibrationCurve as CalibrationCurve
from .survival import Forecast as Forecast
from .survival import concordance as concordance
from .survival import event_curve as event_curve
from .survival import kaplan_meier as kaplan_meier
from .survival import survival_metrics as survival_metrics
