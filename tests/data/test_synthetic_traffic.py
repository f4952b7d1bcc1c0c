"""The synthetic data set: the layout of track 2, the same bytes for the same config, features that can be seen."""

import re
import subprocess
import sys
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from xmodal_kedro.config.data import SyntheticConfig
from xmodal_kedro.data.synthetic_traffic import BITS, BRANDS, COLORS, SHAPES, Pedestrian, Vehicle, draw, paint

CONFIG = SyntheticConfig(folder="unused", train=420, val=40, test=60, pedestrian_share=0.4, seed=3)
SMALL = SyntheticConfig(folder="unused", train=12, val=4, test=4, seed=5)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    root = tmp_path_factory.mktemp("synthetic")
    return root, draw(CONFIG, root, workers=1)


def bytes_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def rows_of(root: Path, split: str) -> list[list[str]]:
    text = (root / split / f"{split}_label.txt").read_text(encoding="utf-8")
    assert text.endswith("\n")
    return [line.split("$") for line in text.splitlines()]


def is_pedestrian(attributes: str) -> bool:
    return len(attributes.split(",")) == 21


def test_bytes_depend_on_the_config_alone(drawn, tmp_path):
    root, summary = drawn
    assert draw(CONFIG, tmp_path / "two", workers=2) == summary
    assert bytes_of(tmp_path / "two") == bytes_of(root)


def test_another_seed_draws_other_pictures_and_labels(tmp_path):
    one = draw(SMALL, tmp_path / "one", workers=1)
    other = draw(SMALL.model_copy(update={"seed": 6}), tmp_path / "other", workers=1)
    assert one["fingerprint"] != other["fingerprint"]
    assert not {*bytes_of(tmp_path / "one").values()} & {*bytes_of(tmp_path / "other").values()}


def test_more_rows_of_one_split_leave_the_others_as_they_are(tmp_path):
    draw(SMALL, tmp_path / "one", workers=1)
    draw(SMALL.model_copy(update={"train": 20}), tmp_path / "other", workers=1)
    one, other = bytes_of(tmp_path / "one"), bytes_of(tmp_path / "other")
    blind = {name for name in one if name.startswith(("val/", "test/"))}
    assert len(blind) == 4 + 4 + 2
    assert {name: one[name] for name in blind} == {name: other[name] for name in blind}


@pytest.mark.parametrize("split", ["train", "val"])
def test_label_lines_have_three_fields_and_name_every_image_once(drawn, split):
    root, summary = drawn
    rows = rows_of(root, split)
    assert all(len(row) == 3 for row in rows)
    assert sorted(row[0] for row in rows) == sorted(path.name for path in (root / split / f"{split}_images").iterdir())
    people = [is_pedestrian(attributes) for _, attributes, _ in rows]
    assert people == sorted(people), "vehicles come first"
    assert summary["rows"][split] == {"vehicle": people.count(False), "pedestrian": people.count(True)}
    for (image, attributes, text), person in zip(rows, people, strict=True):
        assert text.endswith(".")
        if person:
            assert re.fullmatch(r"\d{6}\.jpg", image)
            assert set(attributes.split(",")) <= {"0", "1"}
        else:
            assert re.fullmatch(r"[a-z]{10}\.jpg", image)
            assert attributes.endswith(".")
            assert text in (attributes, f"This is a{attributes[1:]}")


def test_pedestrian_texts_are_two_sentences_that_contradict_no_bit(drawn):
    root, _ = drawn
    clues = {  # what must be right wherever a sentence says it
        "female": "She ",
        "umbrella": "umbrella",
        "backpack": "backpack",
        "long coat": "coat",
        "skirt": "skirt",
        "boots": "boots",
        "over 60": "sixty",
        "under 18": "child",
        "back": "from the camera",
        "side": "profile",
        "long sleeves": "long sleeve",
        "stripes": "stripe",
    }
    said = Counter()
    for _, attributes, text in rows_of(root, "train"):
        if is_pedestrian(attributes):
            shown = {name for name, bit in zip(BITS, attributes.split(","), strict=True) if bit == "1"}
            assert re.fullmatch(r"[^.]+\. (She|He) [^.]+\.", text)
            assert text.count("She ") == ("female" in shown)
            for name, clue in clues.items():
                assert clue not in text or name in shown, text
                said[name] += clue in text
    assert all(said[name] for name in clues)


def test_pedestrian_bits_are_one_of_three_where_they_exclude_each_other(drawn):
    root, _ = drawn
    bits = np.array([row[1].split(",") for row in rows_of(root, "train") if is_pedestrian(row[1])], int)
    columns = {name: bits[:, k] for k, name in enumerate(BITS)}
    for names in (("over 60", "18 to 60", "under 18"), ("front", "side", "back"), ("short sleeves", "long sleeves")):
        assert (sum(columns[name] for name in names) == 1).all()
    for names in (("handbag", "shoulder bag", "backpack"), ("stripes", "logo", "splice")):
        assert (sum(columns[name] for name in names) <= 1).all()
    assert (bits.sum(0) > 0).all(), "every bit occurs"


def test_queries_say_color_brand_and_type_of_vehicles_first(drawn):
    root, _ = drawn
    queries = (root / "test/test_text.txt").read_text().splitlines()
    phrase = f"(A|An|This is a|This is an) ({'|'.join(COLORS)}) ({'|'.join(BRANDS)}) ({'|'.join(SHAPES)})\\."
    kinds = [bool(re.fullmatch(phrase, query)) for query in queries]
    assert kinds == [True] * 36 + [False] * 24
    assert all(re.search(r"\. (He|She) ", query) for query in queries[36:])
    names = {path.name for path in (root / "test/test_images").iterdir()}
    assert names == {f"vehicle_{n:07d}.jpg" for n in range(36)} | {f"{90000 + n:06d}.jpg" for n in range(24)}


def test_the_vocabulary_can_be_learned_from_train_phrases(drawn):
    root, _ = drawn
    colors, brands, types = set(), set(), set()
    for phrase in (row[1].split(" ", 1)[1].rstrip(".") for row in rows_of(root, "train") if not is_pedestrian(row[1])):
        if pair := re.fullmatch(r"([a-z]+) ([A-Z].*)", phrase):
            colors.add(pair[1])
            brands.add(pair[2])
        elif " " in phrase or phrase == "Hongyan":
            brands.add(phrase)
        else:
            types.add(phrase)
    assert (colors, brands, types) == (set(COLORS), set(BRANDS), set(SHAPES))
    assert len(brands) >= 12
    assert {"Golden Dragon", "Balong Heavy Truck"} <= brands


def test_many_rows_share_a_phrase_and_a_few_phrases_are_common(drawn):
    root, _ = drawn
    rows = rows_of(root, "train")
    for person in (False, True):
        counts = Counter(row[1] for row in rows if is_pedestrian(row[1]) == person)
        assert sum(n for n in counts.values() if n > 1) > 0.3 * counts.total()
        assert max(counts.values()) >= 4 * np.median(list(counts.values()))


def test_images_decode_at_very_different_aspect_ratios_and_sizes(drawn):
    root, _ = drawn
    aspects: dict[bool, list[float]] = {True: [], False: []}
    longest = []
    for image, attributes, _ in rows_of(root, "train"):
        with Image.open(root / "train/train_images" / image) as picture:
            picture.load()
            assert (picture.format, picture.mode) == ("JPEG", "RGB")
            aspects[is_pedestrian(attributes)].append(picture.width / picture.height)
            longest.append(max(picture.size))
    for person, (low, high) in ((False, (1.2, 2.6)), (True, (0.3, 0.55))):
        assert low - 0.02 < min(aspects[person]) < low + 0.15
        assert high - 0.15 < max(aspects[person]) < high + 0.02
    assert min(longest) < 110
    assert 300 < max(longest) <= 400


def test_wrong_captions_are_as_many_as_asked_and_only_in_train(drawn, tmp_path):
    root, _ = drawn
    summary = draw(CONFIG.model_copy(update={"wrong_captions": 0.25}), tmp_path / "wrong", workers=1)
    clean, wrong = bytes_of(root), bytes_of(tmp_path / "wrong")
    assert {name for name in clean if clean[name] != wrong[name]} == {"train/train_label.txt", "synthetic.json"}
    right, given = rows_of(root, "train"), rows_of(tmp_path / "wrong", "train")
    changed = [n for n, (a, b) in enumerate(zip(right, given, strict=True), start=1) if a != b]
    assert changed == summary["wrong_lines"]
    for person in (False, True):
        lines = [n for n in changed if is_pedestrian(right[n - 1][1]) == person]
        assert 0.23 < len(lines) / CONFIG.train / (0.4 if person else 0.6) < 0.26
        captions = {tuple(row[1:]) for row in right if is_pedestrian(row[1]) == person}
        assert all(tuple(given[n - 1][1:]) in captions for n in lines)
        assert all(given[n - 1][0] == right[n - 1][0] and given[n - 1][1] != right[n - 1][1] for n in lines)


def test_a_finished_folder_is_not_drawn_again(tmp_path):
    first = draw(SMALL, tmp_path, workers=1)
    image = next((tmp_path / "train/train_images").iterdir())
    image.write_bytes(b"would be redrawn")
    assert draw(SMALL.model_copy(update={"folder": "elsewhere"}), tmp_path, workers=1) == first
    assert image.read_bytes() == b"would be redrawn"


@pytest.mark.parametrize("finished", [True, False])
def test_another_or_an_unfinished_data_set_is_replaced_and_files_of_the_user_stay(tmp_path, finished):
    draw(SMALL, tmp_path / "old", workers=1)
    (tmp_path / "old/train/train_images/mine.jpg").write_bytes(b"mine")
    if not finished:
        (tmp_path / "old/synthetic.json").unlink()
    other = SMALL.model_copy(update={"train": 7, "seed": 8})
    draw(other, tmp_path / "old", workers=1)
    draw(other, tmp_path / "new", workers=1)
    assert bytes_of(tmp_path / "old") == bytes_of(tmp_path / "new") | {"train/train_images/mine.jpg": b"mine"}


def test_a_list_of_files_that_leads_out_of_the_folder_deletes_nothing_there(tmp_path):
    root = tmp_path / "data"
    draw(SMALL, root, workers=1)
    (tmp_path / "precious.txt").write_text("mine")
    with (root / "synthetic.files").open("a") as files:
        files.write(f"../precious.txt\n{tmp_path / 'precious.txt'}\n")
    draw(SMALL.model_copy(update={"seed": 8}), root, workers=1)
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_folder_of_somebody_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="did not write"):
        draw(SMALL, tmp_path, workers=1)
    assert bytes_of(tmp_path) == {"photo.jpg": b"mine"}


def test_groups_may_be_missing(tmp_path):
    summary = draw(SMALL.model_copy(update={"pedestrian_share": 1.0, "wrong_captions": 1.0}), tmp_path, workers=1)
    assert summary["rows"] == {
        split: {"vehicle": 0, "pedestrian": n} for split, n in (("train", 12), ("val", 4), ("test", 4))
    }


def changed_share(one: Image.Image, other: Image.Image) -> float:
    """Share of pixels that differ so much that a person sees it, in the 64 px letterbox a small model gets."""

    def seen(image: Image.Image) -> np.ndarray:
        scale = 64 / max(image.size)
        small = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BOX)
        square = Image.new("RGB", (64, 64))
        square.paste(small, ((64 - small.width) // 2, (64 - small.height) // 2))
        return np.asarray(square, int)

    change = np.abs(seen(one) - seen(other)).max(axis=2) > 20
    return float(change.sum() / (np.asarray(seen(one)).max(axis=2) > 0).sum())


def plainly_lit_seed(subject: Vehicle | Pedestrian) -> list[int]:
    """A seed whose picture is bright and sharp: visibility is a matter of the feature, not of the weather."""
    return max(([0, 0, n] for n in range(12)), key=lambda seed: np.asarray(paint(subject, seed), float).std())


def test_every_color_brand_and_type_can_be_told_from_every_other():
    base = Vehicle("red", "Toyota", "SUV")
    seed = plainly_lit_seed(base)
    for field, names, least in (("color", COLORS, 0.08), ("type", SHAPES, 0.08)):
        pictures = {name: paint(base._replace(**{field: name}), seed) for name in names}
        for one, other in combinations(names, 2):
            assert changed_share(pictures[one], pictures[other]) > least, (one, other)
    for kind in SHAPES:
        brands = [name for name, look in BRANDS.items() if kind in look.types]
        pictures = {name: paint(Vehicle("red", name, kind), seed) for name in brands}
        for one, other in combinations(brands, 2):
            assert changed_share(pictures[one], pictures[other]) > 0.01, (one, other, kind)


@pytest.mark.parametrize("view", ["front", "side", "back"])
def test_every_bit_is_seen_in_every_view(view):
    def person(*names: str) -> Pedestrian:
        return Pedestrian(tuple(int(name in names) for name in BITS))

    base = {"18 to 60", "long sleeves", view}
    seed = plainly_lit_seed(person(*base))
    for name in BITS:
        rivals = {"over 60": "18 to 60", "under 18": "18 to 60", "short sleeves": "long sleeves"}
        rivals |= dict.fromkeys({"front", "side", "back"} - {view}, view)
        if name in base or (name == "glasses" and view == "back"):  # nobody sees them from behind
            continue
        share = changed_share(paint(person(*base), seed), paint(person(*(base - {rivals.get(name)} | {name})), seed))
        assert share > 0.006, (name, share)


def test_drawing_needs_no_torch():
    code = "import sys, xmodal_kedro.data.synthetic_traffic; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
