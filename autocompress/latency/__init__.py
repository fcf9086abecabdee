"""Latencies: measured on this machine, profiled for a device, or estimated from a device's description."""

from autocompress.latency.clock import PairedTiming
from autocompress.latency.measure import Measurement, measure_latency, measure_paired, time_sessions
from autocompress.latency.measurement_lock import MeasurementLock
from autocompress.latency.model import LatencyModel
from autocompress.latency.online_predictor import load_latency_model
from autocompress.latency.plan import batch_size
from autocompress.latency.profiling import profile
from autocompress.latency.roofline import Estimate

__all__ = [
    "Estimate",
    "LatencyModel",
    "Measurement",
    "MeasurementLock",
    "PairedTiming",
    "batch_size",
    "load_latency_model",
    "measure_latency",
    "measure_paired",
    "profile",
    "time_sessions",
]
