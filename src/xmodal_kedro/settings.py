"""Kedro settings: how recipes are read, and which hooks watch a run."""

from xmodal_kedro.config_loader import BASE, LOCAL, RecipeConfigLoader
from xmodal_kedro.hooks import ProjectHook
from xmodal_kedro.tracking.hook import TrackingHook

HOOKS = (ProjectHook(), TrackingHook())

CONFIG_LOADER_CLASS = RecipeConfigLoader
CONFIG_LOADER_ARGS = {
    "base_env": BASE,
    "default_run_env": LOCAL,
    "merge_strategy": {"parameters": "soft", "mlflow": "soft"},
    "config_patterns": {"mlflow": ["mlflow*", "mlflow*/**", "**/mlflow*"]},
}
