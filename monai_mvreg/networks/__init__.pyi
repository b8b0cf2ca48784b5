"""Networks: encoder, pool and head, and the task that says what their outputs mean."""

from .encoders import HistogramEncoder as HistogramEncoder
from .encoders import PretrainedEncoder as PretrainedEncoder
from .encoders import SliceEncoder as SliceEncoder
from .encoders import TokenEncoder as TokenEncoder
from .multiscan import MultiScanNet as MultiScanNet
from .pools import AttentionPool as AttentionPool
from .pools import GatedAttentionPool as GatedAttentionPool
from .pools import GRUPool as GRUPool
from .pools import LastPool as LastPool
from .pools import LSTMPool as LSTMPool
from .pools import MaxPool as MaxPool
from .pools import MeanPool as MeanPool
from .pools import SumPool as SumPool
from .pools import TimeEncoding as TimeEncoding
from .pools import TransformerPool as TransformerPool
from .pools import TrendPool as TrendPool
from .task import Number as Number
from .task import NumberWithSpread as NumberWithSpread
from .task import TimeToEvent as TimeToEvent
