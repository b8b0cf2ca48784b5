"""Explain: where in each scan a network found what moves the number."""

from .explanation import explain_patient as explain_patient
from .saliency import gradcam as gradcam
from .saliency import occlusion as occlusion
