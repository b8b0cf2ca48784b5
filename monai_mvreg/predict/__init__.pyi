"""Predict: a trained model and the scans of a patient, to a prediction."""

from .prediction import PredictedNumber as PredictedNumber
from .prediction import Prediction as Prediction
from .prediction import prediction_schema as prediction_schema
from .prediction import read_predictions as read_predictions
from .prediction import to_json as to_json
from .predictor import Predictor as Predictor
