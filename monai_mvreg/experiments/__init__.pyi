"""Experiments: trainings, one or many."""

from .fit import FittedModel as FittedModel
from .fit import fit as fit
