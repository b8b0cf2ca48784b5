"""Cohort: tables of patients and their scans, read, audited and split."""

from .audit import audit as audit
from .split import select as select
from .split import split_cohort as split_cohort
from .table import Cohort as Cohort
from .table import Columns as Columns
from .table import Patient as Patient
from .table import datalist as datalist
from .table import read_cohort as read_cohort
from .table import write_cohort as write_cohort
