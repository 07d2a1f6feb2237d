"""What may vary in an experiment: a YAML file with conditions, its checks, and its Optuna distributions."""
