"""A recipe is checked whole, before anything runs, and every fault is named by its key."""

import copy

import pytest

from xmodal_kedro.config.recipe import RecipeError, read_recipe

SOURCE = {"split": "train", "format": "table", "file": "pairs.csv", "images": "images"}
PARAMETERS = {
    "member_names": ["small"],
    "data": {"root": "data/01_raw/mine", "sources": [SOURCE]},
    "images": {"size": 64},
    "small": {
        "backbone": {"name": "open_clip", "architecture": {"embed_dim": 16}},
        "train": {"epochs": 1, "batch_size": 8, "lr": 0.001},
    },
}


def changed(path: str, value: object) -> dict:
    parameters = copy.deepcopy(PARAMETERS)
    section = parameters
    *parents, last = path.split(".")
    for part in parents:
        section = section.setdefault(part, {})
    section[last] = value
    return parameters


def test_a_valid_recipe_gathers_its_members() -> None:
    recipe = read_recipe(PARAMETERS)
    assert list(recipe.members) == ["small"]
    assert recipe.members["small"].train.lr == 0.001
    assert recipe.ensemble.fusion.weights == "search"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("ensembel", {}, r"ensembel: unknown key, did you mean 'ensemble'\?"),
        ("small.train.lrr", 0.1, r"small\.train\.lrr: unknown key, did you mean 'lr'\?"),
        ("ensemble.fusion.weigths", "equal", r"ensemble\.fusion\.weigths: unknown key, did you mean 'weights'\?"),
        ("small.train.epochs", "3", r"small\.train\.epochs: .*integer.*\(it is '3'\)"),
        ("small.train.epochs", 1.5, r"small\.train\.epochs: .*integer"),
        ("data.dev_share", 2.0, r"data\.dev_share: .*less than"),
        ("small.backbone", {"architecture": {}}, r"small\.backbone\.name: is missing"),
        ("relevance.default", "by_magic", r"relevance\.default: "),
        ("small.train.augment", {"scale": [1.0, 0.5]}, r"small\.train\.augment\.scale: .*lowest and a highest"),
        ("small.train.augment", {"scale": [0.5, 2.0]}, r"small\.train\.augment\.scale: .*none is above 1"),
        ("small.train.augment", {"ratio": [0.0, 1.0]}, r"small\.train\.augment\.ratio: .*both above 0"),
        ("small.train", {**PARAMETERS["small"]["train"], "schedule": "constant", "schedule_epochs": 3}, "leave one"),
        ("evaluation", {"ks": [0]}, r"evaluation\.ks\.0: .*equal to 1"),
        ("ensemble.fusion", {"metric": "recal_at_1"}, r"metric: .*there is no metric 'recal_at_1'"),
        ("ensemble.fusion", {"metric": "mrr"}, r"metric: .*'mrr' has no cut-off"),
        ("ensemble.fusion", {"temperature": float("inf")}, r"temperature: "),
        ("ensemble.fusion", {"weights": {"small": 0.0}}, r"weights: .*no member has a weight above zero"),
        (
            "ensemble.fusion",
            {"weights": {"small": -1}},
            r"recipe:\n- ensemble\.fusion\.weights\.small: [^\n]* 0 \(it is -1\)$",
        ),
        ("ensemble.fusion", {"weights": 1}, r"fusion\.weights: [^\n]* dictionary, or 'search' or 'equal' \(it is 1\)$"),
        ("runtime.processes", 0, r"recipe:\n- runtime\.processes: [^\n]* equal to 1, or 'auto' \(it is 0\)$"),
        ("small", None, r"small: is empty; it needs backbone, train$"),
        ("evaluation", None, r"evaluation: is empty; leave it out"),
        (
            "ensemble.fusion",
            {"weights": {"smal": 1.0}},
            r"\n- ensemble\.fusion\.weights names 'smal', which is no member",
        ),
        ("ensemble.fusion", {"normalisations": {"smal": "rank"}}, r"ensemble\.fusion\.normalisations names 'smal'"),
        ("ensemble.rerank", {"method": "adaption", "member": "small", "top_ks": {"a": 1}}, r"top_ks\.a: .*equal to 2"),
        ("member_names", [], "member_names is empty"),
        ("member_names", ["small", "small"], "lists a member twice"),
        ("member_names", "small", "must be a list"),
        ("member_names", ["small", "tall"], r"tall: is listed in member_names, but has no section"),
    ],
)
def test_faults_are_named_by_their_key(path: str, value: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        read_recipe(changed(path, value))


@pytest.mark.parametrize("name", ["data", "ensemble", "fused", "Tall", "a-b", "1st"])
def test_member_names_that_would_clash_are_refused(name: str) -> None:
    parameters = copy.deepcopy(PARAMETERS)
    parameters["member_names"] = [name]
    parameters.setdefault(name, parameters["small"])
    del parameters["small"]
    with pytest.raises(RecipeError, match=name):
        read_recipe(parameters)


def test_all_faults_are_listed_at_once() -> None:
    parameters = changed("small.train.lrr", 0.1)
    parameters["imagess"] = {}
    with pytest.raises(RecipeError) as caught:
        read_recipe(parameters)
    assert "imagess" in str(caught.value)
    assert "small.train.lrr" in str(caught.value)


def test_a_source_says_what_its_format_needs() -> None:
    with pytest.raises(RecipeError, match=r"data\.sources\.0: a source of format 'table' needs 'file'"):
        read_recipe(changed("data.sources", [{"split": "train", "format": "table"}]))


TRAINED = {"member": "small", "train": {"epochs": 1, "batch_size": 8, "lr": 0.001}}


def captioning(weights: object) -> dict:
    """A recipe with two captioners from a member, and one of transformers."""
    captioners = {"one": TRAINED, "other": TRAINED, "blip": {"weights": "owner/blip"}}
    return {**PARAMETERS, **captioners, "captioner_names": list(captioners), "captioning": {"ensemble": {**weights}}}


@pytest.mark.parametrize("weights", [{}, {"weights": {"one": 0.0, "other": 0.5, "blip": 0.5}}])
def test_captioners_of_members_and_of_transformers_are_not_mixed(weights: dict) -> None:
    one = "other" if weights else "one"
    message = rf"captioning\.ensemble: '{one}' is trained from a member and 'blip' has weights of transformers, .* to 0"
    with pytest.raises(RecipeError, match=message):
        read_recipe(captioning(weights))


@pytest.mark.parametrize("shares", [(0.5, 0.5, 0.0), (0.0, 0.0, 1.0)])
def test_captioners_of_one_kind_are_mixed_beside_others_of_weight_0(shares: tuple[float, ...]) -> None:
    weights = dict(zip(("one", "other", "blip"), shares, strict=True))
    assert read_recipe(captioning({"weights": weights})).captioning.ensemble.weights == weights


def test_one_captioner_has_a_say() -> None:
    with pytest.raises(RecipeError, match=r"captioning\.ensemble\.weights: no captioner has a weight above zero"):
        read_recipe(captioning({"weights": {"one": 0.0, "other": 0.0, "blip": 0.0}}))
