"""One number per patient from all of that patient's scans: a plugin package for MONAI."""

from .cohort.split import split_cohort as split_cohort
from .cohort.table import Cohort as Cohort
from .cohort.table import Columns as Columns
from .cohort.table import read_cohort as read_cohort
from .experiments.fit import FittedModel as FittedModel
from .experiments.fit import fit as fit
from .metrics.regression import cohort_metrics as cohort_metrics
from .metrics.survival import survival_metrics as survival_metrics
from .networks.multiscan import MultiScanNet as MultiScanNet
from .networks.pools import AttentionPool as AttentionPool
from .networks.pools import GatedAttentionPool as GatedAttentionPool
from .networks.pools import GRUPool as GRUPool
from .networks.pools import LastPool as LastPool
from .networks.pools import LSTMPool as LSTMPool
from .networks.pools import MaxPool as MaxPool
from .networks.pools import MeanPool as MeanPool
from .networks.pools import SumPool as SumPool
from .networks.pools import TimeEncoding as TimeEncoding
from .networks.pools import TransformerPool as TransformerPool
from .networks.pools import TrendPool as TrendPool
from .networks.task import Number as Number
from .networks.task import NumberWithSpread as NumberWithSpread
from .networks.task import TimeToEvent as TimeToEvent
from .predict.prediction import Prediction as Prediction
from .predict.predictor import Predictor as Predictor
from .scans.find import Scan as Scan
from .scans.find import find_scans as find_scans
from .scans.formats.byte_ranges import ScanError as ScanError
from .scans.read import ScanData as ScanData
from .scans.read import read_scan as read_scan
from .scans.reader import ScanReader as ScanReader
from .training.batches import collate_scans as collate_scans

__version__: str
