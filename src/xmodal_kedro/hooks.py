"""What surrounds a run: recipe and machine are checked before the first node, and a report ends it."""

from __future__ import annotations

import difflib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from kedro.framework.hooks import hook_impl

from xmodal_kedro.config.recipe import Recipe, RecipeError, read_recipe

if TYPE_CHECKING:
    from kedro.framework.context import KedroContext
    from kedro.io import DataCatalog
    from kedro.pipeline import Pipeline

log = logging.getLogger(__name__)


class ProjectHook:
    """Holds the checked recipe of the session."""

    recipe: Recipe
    project: Path

    @hook_impl
    def after_context_created(self, context: KedroContext) -> None:
        """Check every section and member of the parameters, also those that no node of this run reads."""
        try:
            self.recipe = read_recipe(context.config_loader["parameters"])
        except RecipeError as error:
            # The command line shows such an exception as its message, without a traceback.
            raise click.ClickException(str(error)) from error
        self.project = Path(context.project_path)

    @hook_impl(tryfirst=True)
    def before_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline) -> None:
        """Look for data, weights, disk and memory before the first node, and before a tracked run is opened."""
        for name in run_params.get("load_versions") or {}:
            # A factory pattern takes any name, so Kedro itself would pass over a misspelt one.
            if name not in pipeline.inputs():
                near = difflib.get_close_matches(name, pipeline.inputs(), n=1)
                hint = f", did you mean '{near[0]}'?" if near else f"; it reads {', '.join(sorted(pipeline.inputs()))}"
                raise click.ClickException(f"--load-versions names '{name}', which this run does not read{hint}")
        recipe = self.recipe
        tags = {tag for node in pipeline.nodes for tag in node.tags}
        if recipe.ensemble.rerank and any(node.name.startswith("rerank") for node in pipeline.nodes):
            from xmodal_kedro.retrieval.rerank import check_reranker

            try:
                check_reranker(recipe.ensemble.rerank, recipe.members)
            except ValueError as error:
                raise click.ClickException(str(error)) from error
        reads = [recipe.data] if "data_processing" in tags else []
        reads += [recipe.predict] if "predict" in tags and recipe.predict else []
        template = recipe.ensemble.submission.template
        if template and "matching_submission" in pipeline.all_outputs():
            sample = self.project / recipe.data.root / template
            if not sample.is_file():
                raise click.ClickException(
                    f"ensemble.submission.template: there is no file {sample}. Put it there, or set the key to null."
                )
        loaded = {node.namespace for node in pipeline.nodes if "train" in node.tags}
        if recipe.completion and "completed_attributes" in pipeline.all_outputs():
            loaded.add(recipe.completion.member)
        from xmodal_kedro.data.preflight import PreflightError, Report, check
        from xmodal_kedro.data.sizes import captioner_trainings

        nodes = {node.name for node in pipeline.nodes}
        trained = [name for name in recipe.members if f"{name}.train_member" in nodes]
        begun = {name: one for name, one in recipe.captioners.items() if f"{name}.train_captioner" in nodes}
        trainings = captioner_trainings(begun, recipe.members, recipe.images, self.project)
        members = {name: member for name, member in recipe.members.items() if name in loaded}
        drawn = self.project / recipe.synthetic.folder if recipe.synthetic else None
        reports = [
            check(data, recipe.images, members, recipe.runtime, self.project, drawn, trained, trainings)
            for data in reads or ([None] if members or trainings else [])
        ]
        captioners = {name: one for name, one in recipe.captioners.items() if f"params:{name}" in pipeline.inputs()}
        if captioners:
            from xmodal_kedro.data.weight_checks import check_captioners

            reports.append(check_captioners(captioners, recipe.members, recipe.images, self.project, recipe.captioning))
        if any("caption" in node.tags and "predict" not in node.tags for node in pipeline.nodes):
            from xmodal_kedro.data.caption_checks import check_judging

            reports.append(check_judging(captioners, recipe.captioning, recipe.data.sources))
        report = Report.merged(reports)
        for warning in report.warnings:
            log.warning(warning)
        try:
            report.raise_if_failed()
        except PreflightError as error:
            raise click.ClickException(str(error)) from error

    @hook_impl(trylast=True)
    def after_pipeline_run(self, run_params: dict[str, Any], pipeline: Pipeline, catalog: DataCatalog) -> None:
        """Print the leaderboard, if this run made one, and where everything lies; what trained needs no state now."""
        outputs = pipeline.all_outputs()
        trainings = [node for node in pipeline.nodes if node.name.endswith((".train_member", ".train_captioner"))]
        if trainings:
            from xmodal_kedro.datasets.directory import training_states
            from xmodal_kedro.training.state import discard_states

            discard_states(training_states(), [str(node.namespace) for node in trainings])
        if "leaderboard" in outputs:
            from xmodal_kedro.reporting.leaderboard import render, render_gain

            print(f"\n{render(catalog.load('leaderboard'))}")
            if len(self.recipe.members) > 1 or self.recipe.ensemble.rerank:
                print(render_gain(catalog.load("comparison")))
        if "caption_leaderboard" in outputs:
            from xmodal_kedro.reporting.captions import render_captions

            print(f"\n{render_captions(catalog.load('caption_leaderboard'), catalog.load('caption_comparison'))}")
        places = {name: self._place(catalog, name) for name in sorted(outputs)}
        width = max(map(len, places), default=0)
        print("\nWritten by this run:")
        for name, place in places.items():
            print(f"  {name:<{width}}  {place}")
        env = f" --env={run_params['env']}" if run_params.get("env") else ""
        print("\nCompare members:  uv run python -m xmodal_kedro.tracking.ui")
        print(f"See the lineage:  uv run kedro viz run{env}")

    def _place(self, catalog: DataCatalog, name: str) -> str:
        """The file or folder of this run's version."""
        place = getattr(catalog.get(name), "_get_load_path", lambda: None)()
        return os.path.relpath(place, self.project) if place else "(in memory only)"
