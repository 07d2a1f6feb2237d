from guidino_tune.api import load_space
from guidino_tune.errors import UserError
from guidino_tune.workflows.compare import compare_study
from guidino_tune.workflows.export_model import export_model
from guidino_tune.workflows.predict import load_model
from guidino_tune.workflows.result import Callback, StudyResult, TrialResult, open_study
from guidino_tune.workflows.retrain import retrain_model as retrain
from guidino_tune.workflows.search import run_search

__version__: str
__all__ = [
    "Callback",
    "StudyResult",
    "TrialResult",
    "UserError",
    "__version__",
    "compare_study",
    "export_model",
    "load_model",
    "load_space",
    "open_study",
    "retrain",
    "run_search",
]
