"""Report: pages for people, of patients, evaluations and models."""

from .card import write_card as write_card
from .patient import write_index as write_index
from .patient import write_patient_report as write_patient_report
