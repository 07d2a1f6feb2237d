"""The search: one persisted Optuna study behind Ray Tune, and the executors that run its trials."""

from guidino_tune.running.environment import prepare_environment

prepare_environment()
