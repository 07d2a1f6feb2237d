"""Hyper-parameter search for guided medical image segmentation (GuiDINO): Optuna decides, Ray runs, MLflow remembers."""

__version__ = "0.1.0"
