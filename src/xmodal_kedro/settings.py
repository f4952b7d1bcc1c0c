"""Kedro settings: how recipes are read, and which hooks watch a run."""

from xmodal_kedro.config_loader import CONFIG_LOADER_ARGS, RecipeConfigLoader
from xmodal_kedro.hooks import ProjectHook
from xmodal_kedro.tracking.hook import TrackingHook

__all__ = ["CONFIG_LOADER_ARGS", "CONFIG_LOADER_CLASS", "HOOKS"]

HOOKS = (ProjectHook(), TrackingHook())
CONFIG_LOADER_CLASS = RecipeConfigLoader
