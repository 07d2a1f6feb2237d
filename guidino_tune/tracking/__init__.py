"""Tracking: runs and pictures in MLflow. Importing this package imports neither MLflow nor torch."""

from guidino_tune.tracking.client import tracking_uri, ui_command
from guidino_tune.tracking.mlflow_tracker import MLflowTracker
from guidino_tune.tracking.registry import SeedRun, log_model_run
from guidino_tune.tracking.snapshots import DatasetInfo, StudySnapshot, TrialSnapshot, flatten
from guidino_tune.training.reporter import EpochRecord

__all__ = [
    "DatasetInfo",
    "EpochRecord",
    "MLflowTracker",
    "SeedRun",
    "StudySnapshot",
    "TrialSnapshot",
    "flatten",
    "log_model_run",
    "tracking_uri",
    "ui_command",
]
