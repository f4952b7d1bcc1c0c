"""`python -m benchmarks.study ENVIRONMENT ...`: what each step of retrieval is worth on embeddings of trained members.

It reads what `kedro run --env=ENVIRONMENT` left in the catalog. Everything that has a knob is tuned on dev over the
grid below, then judged once on val: value with a 95 % bootstrap interval, and the paired difference to the same scores
without the step. Banks that the run did not need are embedded here. Results go to `benchmarks/results/study.json`,
tables to `docs/retrieval.md`.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from benchmarks.contest import machine
from benchmarks.study_page import write
from xmodal_kedro.config.ensemble import FusionConfig, RerankConfig
from xmodal_kedro.config.recipe import Recipe, read_recipe
from xmodal_kedro.config_loader import CONFIG_LOADER_ARGS, RecipeConfigLoader
from xmodal_kedro.datasets.images import ImageStoreDataset
from xmodal_kedro.models.checkpoint import read_checkpoint
from xmodal_kedro.retrieval.bank import draw_bank, with_bank
from xmodal_kedro.retrieval.bootstrap import interval, paired_difference
from xmodal_kedro.retrieval.embed import embed_images, embed_texts
from xmodal_kedro.retrieval.embeddings import Embeddings
from xmodal_kedro.retrieval.ensemble import Member, choose_weights, pair_members
from xmodal_kedro.retrieval.fuse import FUSIONS, SEARCHES
from xmodal_kedro.retrieval.match import assign, best_of_each
from xmodal_kedro.retrieval.metrics import Judged, entries, judge, per_query, pool
from xmodal_kedro.retrieval.normalise import NORMALISATIONS
from xmodal_kedro.retrieval.rank import rank
from xmodal_kedro.retrieval.rerank.stage import SECOND_STAGES, Asked, Candidates
from xmodal_kedro.retrieval.scores import Reordered, ScoreSource
from xmodal_kedro.retrieval.slices import Slice, cut_slices

ROOT = Path(__file__).parents[1]
DIRECTIONS = ("t2i", "i2t")
METRICS = {"traffic_photos": ("map_at_10",), "flickr_photos": ("recall_at_1", "recall_at_10")}  # tuned on the last
RESAMPLES = 2000
MIXTURE = "mixture"

# What is tried on dev; the first of equals wins. A name that is not listed is tried as its defaults.
TEMPERATURES = {"temperature": [0.02, 0.05, 0.1, 0.2]}
KNOBS: dict[str, Mapping[str, Sequence[Any]]] = {
    "softmax": TEMPERATURES,
    "csls_bank": {"neighbours": [1, 3, 10, 30]},
    "csls_transductive": {"neighbours": [1, 3, 10, 30]},
    "dual_softmax_transductive": TEMPERATURES,
    "inverted_softmax_bank": TEMPERATURES,
    "inverted_softmax_transductive": TEMPERATURES,
    "qb_norm": TEMPERATURES,
    "sinkhorn_transductive": {**TEMPERATURES, "iterations": [1, 10]},
    "adaption": {"top_k": [10, 30], "anchors": [3, 10], "neighbours": [5, 10]},
    "k_reciprocal": {"top_k": [30], "neighbours": [5, 10, 20], "share": [0.3, 0.7, 0.9]},
    "query_expansion": {"top_k": [10, 30], "expansion": [1, 3, 10], "alpha": [0.0, 3.0]},
}

Scored = Callable[[Slice], ScoreSource]


@dataclass(frozen=True)
class Treatment:
    """One step, applied to one base.

    Attributes:
        kind: Which table it stands in.
        name: Of the step.
        of: Member, or mixture, that it is applied to.
        settings: What to try on dev.
        scored: From a setting to scores of slices; called once per setting.
        base: What it is compared to; none for a base.
        transductive: Whether a query's result depends on the other queries.
    """

    kind: str
    name: str
    of: str
    settings: Sequence[Mapping[str, Any]]
    scored: Callable[[Mapping[str, Any]], Scored]
    base: Scored | None
    transductive: bool = False


@dataclass(frozen=True)
class Bench:
    """Members and slices of an environment, and the metrics that it is judged by; the last one is tuned on."""

    members: list[Member]
    dev: list[Slice]
    val: list[Slice]
    metrics: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Of the members."""
        return [member.name for member in self.members]


def newest(path: Path) -> Path:
    """The newest complete version of a catalog entry."""
    found = sorted(path.glob(f"*/{path.name}"))
    if not found:
        raise FileNotFoundError(f"{path} has no version: `kedro run --env={path.parents[1].name}` writes it")
    return found[-1]


def load(environment: str, data: Path) -> Bench:
    """What the last run of the environment wrote."""
    parameters = RecipeConfigLoader(ROOT / "conf", environment, **CONFIG_LOADER_ARGS)["parameters"]
    recipe = read_recipe(parameters)
    folder = data / environment
    captions = pd.read_parquet(newest(folder / "05_model_input" / "captions.parquet"))
    embeddings = [both for name in recipe.members for both in embeddings_of(name, recipe, captions, folder)]
    members = pair_members(embeddings, embeddings[0].meta["fingerprints"]["captions"])
    dev, val = (cut_slices(captions, recipe.relevance, [split]) for split in ("dev", "val"))
    return Bench(members, dev, val, METRICS.get(environment, ("map_at_10",)))


def embeddings_of(name: str, recipe: Recipe, captions: pd.DataFrame, folder: Path) -> list[Embeddings]:
    """Images and texts of a member, each with its bank of train."""
    size, member = recipe.ensemble.fusion.bank_size, recipe.members[name]
    found = []
    for side in ("image", "text"):
        one = Embeddings.open(newest(folder / "07_model_output" / name / f"{side}_embeddings"))
        if one.bank is None:
            rows = draw_bank(captions, side, size)
            backbone = read_checkpoint(newest(folder / "06_models" / name / "checkpoint"), "cpu").backbone
            options = {"batch_size": member.embed.batch_size, "device": "cpu", "precision": member.embed.precision}
            ids = rows[f"{side}_id"].tolist()
            if side == "image":
                images = ImageStoreDataset(filepath=str(newest(folder / "03_primary" / "images.json"))).load()
                matrix = embed_images(backbone, images.pixels, images.rows(ids), **options)
            else:
                matrix = embed_texts(backbone, rows["text"].tolist(), **options)
            one = with_bank(one, ids, rows["group"].tolist(), matrix, size)
        found.append(one)
    return found


def treatments(bench: Bench, direction: str) -> Iterator[Treatment]:
    """All of them, in the order of the tables."""

    def alone(member: Member, name: str, setting: Mapping[str, Any]) -> Scored:
        fusion = FusionConfig(normalisation=name, **setting)
        return lambda part: member.scores(part, fusion, direction)

    def fused(setting: Mapping[str, Any], **more: Any) -> Scored:
        fusion = FusionConfig(**{"direction": direction, "metric": bench.metrics[-1], **more, **setting})
        return mixture(bench, fusion, direction)

    untreated = {member.name: alone(member, "none", {}) for member in bench.members}
    untreated[MIXTURE] = fused({}, normalisation="none", weights="equal")
    for of, base in untreated.items():
        yield Treatment("normalisation", "none", of, [{}], lambda _, base=base: base, None)
    for name, entry in NORMALISATIONS.items():
        if name == "none":
            continue
        changes_order = entry.transductive or entry.banked
        for member in bench.members if changes_order else []:
            apply = lambda setting, member=member, name=name: alone(member, name, setting)  # noqa: E731
            yield Treatment(
                "normalisation", name, member.name, grid(name), apply, untreated[member.name], entry.transductive
            )
        apply = lambda setting, name=name: fused(setting, normalisation=name, weights="equal")  # noqa: E731
        yield Treatment("normalisation", name, MIXTURE, grid(name), apply, untreated[MIXTURE], entry.transductive)

    best = best_on_dev(bench, untreated, direction)
    yield Treatment("fusion", "none", f"{best}, best on dev", [{}], lambda _: untreated[best], None)
    for name, more in ways_to_fuse().items():
        apply = lambda setting, more=more: fused(setting, **more)  # noqa: E731
        yield Treatment("fusion", name, MIXTURE, grid(str(more.get("method"))), apply, untreated[best])

    first = fused({})
    yield Treatment("re-rank", "none", MIXTURE, [{}], lambda _: first, None)
    for name, stage in SECOND_STAGES.items():
        if stage.head or direction not in stage.directions:
            continue
        settings = [{"member": member, **setting} for member in bench.names for setting in grid(name)]
        apply = lambda setting, name=name: reranked(bench, first, name, setting, direction)  # noqa: E731
        yield Treatment("re-rank", name, MIXTURE, settings, apply, first)


def mixture(bench: Bench, fusion: FusionConfig, direction: str) -> Scored:
    """The members as one, in one direction."""
    chosen = choose_weights(bench.members, bench.dev, fusion)

    def of_slice(part: Slice) -> ScoreSource:
        used = [member for member in bench.members if chosen["weights"][member.name] > 0.0]
        sources = {member.name: member.scores(part, fusion, direction) for member in used}
        return FUSIONS[fusion.method].fuse(sources, chosen, direction, fusion)

    return of_slice


def ways_to_fuse() -> dict[str, dict[str, Any]]:
    """Name to what a config says of it; all but the first two normalise as the config does by default."""
    ways: dict[str, dict[str, Any]] = {"mean of scores": {"weights": "equal", "normalisation": "none"}}
    ways["mean"] = {"weights": "equal"}
    ways |= {f"weighted, {search} search": {"search": search} for search in SEARCHES}
    for method in FUSIONS:
        if method == "reciprocal_rank":
            ways |= {
                f"{method}, {weights} weights": {"method": method, "weights": weights}
                for weights in ("equal", "search")
            }
        elif method != "weighted":
            ways[method] = {"method": method}
    return ways


def grid(name: str) -> list[dict[str, Any]]:
    """Every combination of the knobs of a step."""
    knobs = KNOBS.get(name, {})
    return [dict(zip(knobs, values, strict=True)) for values in itertools.product(*knobs.values())]


def reranked(bench: Bench, first: Scored, method: str, setting: Mapping[str, Any], direction: str) -> Scored:
    """The first stage with its candidates in the order of a second stage that asks no model."""
    config = RerankConfig(method=method, directions=[direction], mirrored=False, **setting)
    member = next(member for member in bench.members if member.name == config.member)

    def of_slice(part: Slice) -> ScoreSource:
        source = first(part)
        rows = rank(source, None, config.top_k).top_rows  # [N, K]
        queries = torch.arange(len(rows)).repeat_interleave(rows.shape[1])
        scores = source.pairs(queries, torch.from_numpy(rows.ravel())).view(rows.shape).numpy()
        asked = Asked(part, {direction: Candidates(rows, scores)}, member, config)
        answer = SECOND_STAGES[method].ask(asked)[direction]
        return Reordered(source, torch.from_numpy(rows), torch.from_numpy(np.asarray(answer.score, np.float64)))

    return of_slice


def best_on_dev(bench: Bench, untreated: Mapping[str, Scored], direction: str) -> str:
    """The member that one would take instead of a mixture."""
    return max(bench.names, key=lambda name: on_dev(bench, untreated[name], direction))


def judged(scored: Scored, slices: Sequence[Slice], direction: str) -> Judged:
    """Every query of the slices, each within its group."""
    parts = []
    for part in slices:
        if part.relevance.nnz:
            truth = part.relevance if direction == "t2i" else part.relevance.T
            clusters = part.clusters if direction == "t2i" else None
            parts.append(judge(rank(scored(part), truth, 0), direction=direction, clusters=clusters))
    return pool(parts)


def on_dev(bench: Bench, scored: Scored, direction: str) -> float:
    """The metric that is tuned on."""
    values = [
        per_query(bench.metrics[-1], rank(scored(part), part.relevance if direction == "t2i" else part.relevance.T, 0))
        for part in bench.dev
        if part.relevance.nnz
    ]
    return float(np.nanmean(np.concatenate(values)))


def study(bench: Bench, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """One row per treatment and direction."""
    rows = []
    for direction in DIRECTIONS:
        bases: dict[int, Judged] = {}
        for one in treatments(bench, direction):
            tell(f"{direction} {one.kind}: {one.name} of {one.of}")
            tried = []
            for setting in one.settings:
                scored = one.scored(setting)
                tried.append((on_dev(bench, scored, direction), setting, scored))
            dev, setting, scored = max(tried, key=lambda trial: trial[0])  # the first of equals
            on_val = judged(scored, bench.val, direction)
            if one.base is None:
                bases[id(scored)] = on_val
            base = None if one.base is None else bases[id(one.base)]
            row = {"kind": one.kind, "name": one.name, "of": one.of, "direction": direction}
            row |= {"transductive": one.transductive, "setting": dict(setting), "tried": len(tried), "dev": dev}
            rows.append(row | {"metrics": {metric: verdict(metric, on_val, base) for metric in bench.metrics}})
    return rows + [row for direction in DIRECTIONS for row in matchings(bench, direction)]


def verdict(metric: str, found: Judged, base: Judged | None) -> dict[str, float]:
    """Value with its interval; where there is a base, the paired difference with its own and p."""
    values = found.values[metric]
    low, high = interval(values, clusters=found.clusters, resamples=RESAMPLES)
    row = {"value": float(values.mean()), "low": float(low), "high": float(high)}
    if base is None:
        return row
    change = paired_difference(values, base.values[metric], clusters=found.clusters, resamples=RESAMPLES)
    return row | {"gain": change.value, "gain_low": change.low, "gain_high": change.high, "p": change.p}


def matchings(bench: Bench, direction: str) -> Iterator[dict[str, Any]]:
    """One-to-one matching against the best of each, on one text per image: without that nothing is one to one."""
    single = [one_text_each(part) for part in bench.val if part.relevance.nnz]
    tuned = FusionConfig(metric=bench.metrics[-1], direction=direction)
    plain = FusionConfig(normalisation="none", weights="equal")
    sources: dict[str, Scored] = {
        member.name: lambda part, member=member: member.scores(part, plain, direction) for member in bench.members
    }
    sources["mean of scores"] = mixture(bench, plain, direction)
    sources["weighted, coordinate search"] = mixture(bench, tuned, direction)
    for of, scored in sources.items():
        found: dict[str, list[np.ndarray]] = {"best of each": [], "one to one": []}
        clusters: list[np.ndarray] = []
        for part in single:
            source = scored(part)
            truth = sparse.csr_array(part.relevance if direction == "t2i" else part.relevance.T)
            for way, match in (("best of each", best_of_each(source)), ("one to one", assign(source))):
                found[way].append(entries(truth, np.arange(source.shape[0]), match.gallery_row_of()).astype(float))
            start = sum(len(done) for done in clusters)
            clusters.append(start + (part.clusters if direction == "t2i" else np.arange(source.shape[0])))
        same = np.concatenate(clusters)
        base = np.concatenate(found["best of each"])
        for way, values in found.items():
            right = np.concatenate(values)
            low, high = interval(right, clusters=same, resamples=RESAMPLES)
            facts = {"value": float(right.mean()), "low": float(low), "high": float(high)}
            if way == "one to one":
                change = paired_difference(right, base, clusters=same, resamples=RESAMPLES)
                facts |= {"gain": change.value, "gain_low": change.low, "gain_high": change.high, "p": change.p}
            row = {"kind": "matching", "name": way, "of": of}
            row |= {"direction": direction, "transductive": way == "one to one", "setting": {}, "tried": 1}
            yield row | {"dev": None, "metrics": {"matching_accuracy": facts}}


def one_text_each(part: Slice) -> Slice:
    """The slice with the first text of every image; as it is where there are as many of both."""
    if len(part.text_ids) == len(part.image_ids):
        return part
    truth = part.relevance.tocsc()
    texts: list[int] = []
    images: list[int] = []
    for image in range(truth.shape[1]):
        own = [text for text in truth.indices[truth.indptr[image] : truth.indptr[image + 1]] if text not in texts]
        if own:
            texts.append(int(own[0]))
            images.append(image)
    return Slice(
        part.split,
        part.group,
        [part.text_ids[row] for row in texts],
        [part.texts[row] for row in texts],
        [part.image_ids[row] for row in images],
        sparse.csr_array(part.relevance.tocsr()[texts][:, images]),
    )


def main() -> None:
    """Study the environments that are named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("environments", nargs="+", help=f"such as {' '.join(METRICS)}")
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="folder of the catalog")
    arguments = parser.parse_args()
    results: dict[str, Any] = {"name": "study", "machine": machine(), "environments": {}}
    for environment in arguments.environments:
        start = time.perf_counter()
        bench = load(environment, arguments.data)

        def tell(doing: str, environment: str = environment) -> None:
            print(f"{time.strftime('%H:%M:%S')} {environment} {doing}", file=sys.stderr, flush=True)

        facts: dict[str, Any] = {"metrics": list(bench.metrics), "members": bench.names}
        facts["sizes"] = {
            split: (sum(len(part.text_ids) for part in parts), sum(len(part.image_ids) for part in parts))
            for split, parts in (("dev", bench.dev), ("val", bench.val))
        }
        facts["rows"] = study(bench, tell)
        results["environments"][environment] = facts
        tell(f"took {time.perf_counter() - start:.0f} s")
    write(results)


if __name__ == "__main__":
    main()
