"""Image-text pairs in, a tracked retrieval ensemble out."""

import os
import warnings

# Nothing here phones home: Kedro's, MLflow's and the hub client's telemetry are off before any of them is imported.
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# Kedro 1.7 still calls OmegaConf's old name, and dislikes the dots of namespaced inputs that are meant here.
warnings.filterwarnings("ignore", message=r".*register_new_resolver\(\) is deprecated.*")
warnings.filterwarnings("ignore", message=r".*contain '\.' characters.*")

__version__ = "0.1.0"
