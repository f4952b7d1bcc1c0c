"""Draws a throw-away traffic data set in the layout of CVPR-2023 track 2: the same config gives the same bytes.

A phrase of train or val may leave out parts of what it describes (`A SUV.`), the picture never does. Clothes have
colours that no sentence mentions: the relevance of pedestrians is judged by their 21 bits alone, so a colour would tell
apart texts that are equally right.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from xmodal_kedro.config.data import SyntheticConfig

VERSION = 1  # of the drawing: another one redraws the folder
DONE, FILES = "synthetic.json", "synthetic.files"
SPLITS = ("train", "val", "test")

Color = tuple[int, int, int]
Point = tuple[float, float]
Box = tuple[float, float, float, float]


class Vehicle(NamedTuple):
    """What a vehicle picture shows."""

    color: str
    brand: str
    type: str


class Pedestrian(NamedTuple):
    """What a pedestrian picture shows: 21 bits in the order of BITS."""

    bits: tuple[int, ...]


Job = tuple[str, Vehicle | Pedestrian, tuple[int, int, int]]  # image path, what it shows, its seed


class Row(NamedTuple):
    """One pair: the image's path in the data set, what it shows, and its caption."""

    image: str
    subject: Vehicle | Pedestrian
    attributes: str
    text: str


class Look(NamedTuple):
    """How the vehicles of a brand are told apart: some brands share a feature or two, none share all."""

    types: tuple[str, ...]
    grille: str
    lights: str
    badge: str
    stripe: str


class Shape(NamedTuple):
    """A vehicle type whose box is `aspect` times as wide as high, with the front at x = 0."""

    aspect: float
    face: Box
    side: Box
    body: str
    glass: str
    wheels: str


# Colours, brands and types come in order of frequency.
COLORS: dict[str, Color] = {
    "white": (238, 238, 234), "black": (26, 26, 30), "grey": (132, 134, 136), "red": (200, 26, 30),
    "blue": (28, 66, 190), "yellow": (242, 210, 28), "green": (24, 132, 56), "orange": (244, 122, 14),
    "brown": (104, 62, 30), "pink": (246, 146, 184), "purple": (114, 42, 156),
}  # fmt: skip
BRANDS = {
    "Volkswagen": Look(("Sedan", "SUV", "Minivan"), "bars", "square", "disc", "none"),
    "Toyota": Look(("Sedan", "SUV", "Microbus"), "mouth", "slit", "oval", "sill"),
    "Audi": Look(("Sedan", "SUV"), "frame", "slit", "rings", "none"),
    "Yutong": Look(("Bus",), "mouth", "round", "disc", "chevron"),
    "FOTON": Look(("Truck", "Microbus"), "slats", "square", "diamond", "pair"),
    "Buick": Look(("Minivan", "Sedan"), "slats", "slit", "bar", "waist"),
    "Golden Dragon": Look(("Bus", "Microbus"), "bars", "tall", "diamond", "slash"),
    "Honda": Look(("SUV", "Sedan"), "bars", "tall", "disc", "dots"),
    "Jinbei": Look(("Microbus", "Minivan"), "split", "square", "oval", "waist"),
    "Dongfeng": Look(("Truck", "Bus"), "split", "round", "rings", "dots"),
    "BYD": Look(("Sedan", "SUV"), "wedge", "round", "oval", "pair"),
    "Landrover": Look(("SUV",), "mouth", "square", "bar", "rear"),
    "Hongyan": Look(("Truck",), "frame", "tall", "bar", "sill"),
    "Balong Heavy Truck": Look(("Truck",), "wedge", "round", "diamond", "slash"),
    "Chana": Look(("Minivan", "Sedan"), "wedge", "tall", "diamond", "chevron"),
    "Iveco": Look(("Microbus", "Truck"), "frame", "round", "bar", "rear"),
}
LONE_BRANDS = ("Hongyan", "Balong Heavy Truck")  # as in the real set, train and val never say their colour

# Drawings are strokes `colour point point ...;` in per cent of a box: two points are a rectangle, more a polygon, one
# point with a radius (or `rx*ry`, in per cent of the box's height) is an ellipse.
SHAPES = {
    "Sedan": Shape(
        2.1, (1, 48, 35, 86), (37, 48, 99, 80), "body 0,56 3,47 30,42 44,8 74,8 87,40 100,45 100,86 0,88",
        "glass 31,43 44,11 50,11 43,43; glass 46,43 52,13 60,13 60,43; glass 63,43 63,13 73,13 83,43",
        "dark 48,82 16; rim 48,82 8; dark 84,82 16; rim 84,82 8",
    ),
    "SUV": Shape(
        1.45, (1, 38, 37, 84), (39, 38, 98, 74), "body 0,42 3,36 30,33 38,3 95,3 99,36 99,84 0,86",
        "glass 31,33 39,6 46,6 43,33; glass 47,33 50,9 68,9 68,33; glass 72,33 72,9 92,9 95,33; dark 40,0 93,3",
        "dark 51,79 20; rim 51,79 10; dark 84,79 20; rim 84,79 10",
    ),
    "Minivan": Shape(
        1.75, (1, 50, 36, 87), (38, 50, 99, 80), "body 0,58 5,46 27,10 35,3 95,3 100,20 100,87 0,89",
        "glass 7,47 27,12 36,12 36,47; glass 40,12 65,45; glass 69,45 69,12 93,12 95,45",
        "dark 48,83 16; rim 48,83 8; dark 84,83 16; rim 84,83 8",
    ),
    "Microbus": Shape(
        1.65, (1, 47, 33, 87), (35, 46, 99, 80), "body 0,25 6,2 12,0 97,0 100,5 100,87 0,89",
        "glass 2,44 7,13 31,13 31,44; glass 36,14 49,40; glass 52,14 65,40; glass 68,14 81,40; glass 84,14 97,40",
        "dark 46,84 15; rim 46,84 7; dark 84,84 15; rim 84,84 7",
    ),
    "Bus": Shape(
        2.4, (1, 54, 26, 90), (28, 50, 99, 84), "body 0,6 2,1 100,1 100,90 0,90",
        "glass 2,13 24,50; glass 28,10 38,46; glass 40,10 50,46; glass 52,10 62,46; glass 64,10 74,46; "
        "glass 76,10 86,46; glass 88,10 98,46; dark 3,3 23,10",
        "dark 39,88 11; rim 39,88 5; dark 84,88 11; rim 84,88 5",
    ),
    "Truck": Shape(
        1.85, (1, 51, 30, 89), (45, 12, 98, 62), "body 0,30 4,14 40,14 40,88 0,90; load 43,2 100,72; dark 40,72 100,80",
        "glass 2,47 5,20 27,20 27,47; glass 30,20 38,47",
        "dark 38,85 13; rim 38,85 6; dark 72,85 13; rim 72,85 6; dark 89,85 13; rim 89,85 6",
    ),
}  # fmt: skip
GRILLES = {
    "bars": "dark 26,32 74,84; chrome 26,37 74,45; chrome 26,54 74,62; chrome 26,71 74,79",
    "slats": "dark 26,32 74,84; chrome 31,32 38,84; chrome 46,32 54,84; chrome 62,32 69,84",
    "frame": "chrome 24,26 76,88; dark 35,40 65,76",
    "split": "dark 22,34 46,84; dark 54,34 78,84",
    "mouth": "dark 6,62 94,86",
    "wedge": "chrome 22,28 78,28 50,90; dark 36,36 64,36 50,70",
}
LIGHTS = {
    "round": "dark 12,44 21; dark 88,44 21; lamp 12,44 17; lamp 88,44 17",
    "square": "dark 0,25 25,65; dark 75,25 100,65; lamp 2,29 22,61; lamp 78,29 98,61",
    "slit": "dark 0,30 28,50; dark 72,30 100,50; lamp 0,34 26,46; lamp 74,34 100,46",
    "tall": "dark 2,10 20,84; dark 80,10 98,84; lamp 5,14 17,80; lamp 83,14 95,80",
}
BADGES = {
    "disc": "badge 50,16 14",
    "oval": "badge 50,16 32*9",
    "diamond": "badge 50,0 60,17 50,34 40,17",
    "bar": "badge 30,11 70,20",
    "rings": "badge 36,16 10; badge 50,16 10; badge 64,16 10; dark 36,16 5; dark 50,16 5; dark 64,16 5",
}
STRIPES = {
    "none": "",
    "waist": "stripe 0,6 100,34",
    "sill": "stripe 0,60 100,100",
    "pair": "stripe 0,2 100,18; stripe 0,40 100,56",
    "rear": "stripe 64,0 100,100",
    "dots": "stripe 22,34 28; stripe 50,34 28; stripe 78,34 28",
    "slash": "stripe 24,0 42,0 22,100 4,100; stripe 64,0 82,0 62,100 44,100",
    "chevron": "stripe 8,0 26,0 46,50 26,100 8,100 28,50; stripe 50,0 68,0 88,50 68,100 50,100 70,50",
}
BITS: dict[str, tuple[str, ...]] = {  # the name of each bit and what sentences say for it
    "female": ("A woman on foot", "A lady", "A female passer-by"),
    "over 60": ("over sixty", "a senior of more than 60 years", "of old age"),
    "18 to 60": ("in the prime of life", "a grown-up from 18 to 60", "of working age"),
    "under 18": ("not yet 18", "still a child", "of school age"),
    "front": ("comes towards the camera", "shows the front of the body"),
    "side": ("crosses the picture in profile", "shows one side of the body"),
    "back": ("walks away from the camera", "shows the back of the body"),
    "hat": ("a hat", "a cap on the head"),
    "glasses": ("glasses", "a pair of spectacles"),
    "handbag": ("a handbag", "a bag in one hand"),
    "shoulder bag": ("a shoulder bag", "a bag on a strap across the body"),
    "backpack": ("a backpack", "a rucksack"),
    "short sleeves": ("a top with short sleeves", "a short sleeved top"),
    "long sleeves": ("a top with long sleeves", "a long sleeved top"),
    "stripes": (" with stripes", " with a striped pattern"),
    "logo": (" with a logo", " with a printed emblem"),
    "splice": (" in two spliced parts", " with a spliced lower half"),
    "long coat": ("a long coat", "a coat down to the knees"),
    "skirt": ("a skirt", "a skirt instead of trousers"),
    "boots": ("boots", "high boots"),
    "umbrella": ("an umbrella", "an open umbrella"),
}
MEN = ("A man on foot", "A gentleman", "A male passer-by")
# A pedestrian who faces the camera, in the order of drawing; x = 50 is the middle of a box as wide as high. A name that
# is no bit is drawn on everybody, or on everybody without the bit after `no`. Then what differs in the other views.
FRONT = {
    "no skirt": "bottom 41,50 49.4,96; bottom 50.6,50 59,96",
    "skirt": "skin 42,60 48,96; skin 52,60 58,96; bottom 41,48 59,48 67,72 33,72",
    "shoes": "dark 39,96 49,99; dark 51,96 61,99",
    "boots": "boot 39,77 49,100; boot 51,77 61,100; light 38,76 50,80; light 50,76 62,80",
    "torso": "top 38,18 62,18 60,53 40,53",
    "long coat": "top 38,18 62,18 68,80 32,80; dark 49.2,20 50.8,80",
    "stripes": "mark 38,21 62,27; mark 39,32 61,38; mark 40,43 60,49",
    "logo": "mark 50,31 7",
    "splice": "mark 39,36 61,36 61,53 39,53",
    "long sleeves": "sleeve 38,18 32,20 28,51 34,51 39,28; sleeve 62,18 68,20 72,51 66,51 61,28;"
    "skin 31,53 3; skin 69,53 3",
    "short sleeves": "skin 37,24 32,22 28,51 33,51; skin 63,24 68,22 72,51 67,51; skin 31,53 3; skin 69,53 3;"
    "sleeve 38,18 32,20 29,33 37,34; sleeve 62,18 68,20 71,33 63,34",
    "backpack": "bag 40,16 45,16 45,42 40,42; bag 55,16 60,16 60,42 55,42; bag 40,36 60,40",
    "shoulder bag": "bag 58,18 62,18 42,50 38,50; bag 31,48 46,62; dark 31,48 46,51",
    "handbag": "bag 63,59 77,71; dark 66,55 74,59; bag 68,57 72,59",
    "over 60": "wood 27,52 29.5,100; wood 27,50 34,53",
    "head": "hair 50,8.5 8.5*9; skin 50,11 7*7.5; dark 47,10 1.1; dark 53,10 1.1; dark 47.5,14 52.5,15.2",
    "female": "hair 39.5,6 43.5,25; hair 56.5,6 60.5,25; hair 50,3.5 9*4",
    "glasses": "dark 46.2,10.5 3.4; dark 53.8,10.5 3.4; dark 41,9.5 59,10.8",
    "hat": "hat 42,-2 58,6; hat 36,4 64,7.5",
    "umbrella": "hat 22,2 30,-9 50,-14 70,-9 78,2; dark 67.5,2 69.5,52",
}
OTHER_VIEWS = {
    "front": {},
    "back": {
        "long coat": "top 38,18 62,18 68,80 32,80; dark 49.2,60 50.8,80",
        "logo": "mark 50,31 9",
        "backpack": "bag 39,20 61,49; dark 43,35 57,37; dark 43,44 57,46",
        "head": "hair 50,9.5 8.5*9; skin 46,17 54,19",
        "female": "hair 42,8 58,27",
        "glasses": "",
    },
    "side": {
        "no skirt": "bottom 45,50 55,50 46,96 38,96; bottom 46,50 56,50 64,95 57,97",
        "skirt": "skin 46,60 52,60 45,96 40,96; skin 50,60 55,60 63,95 58,96; bottom 43,48 57,48 64,72 37,72",
        "shoes": "dark 35,96 45,99; dark 55,96 64,99",
        "boots": "boot 38,76 49,78 45,100 34,100; boot 53,78 62,75 66,98 56,100; light 38,76 50,80; light 52,76 63,80",
        "torso": "top 44,18 56,18 57,53 43,53",
        "long coat": "top 44,18 56,18 62,80 39,80",
        "stripes": "mark 44,21 56,27; mark 44,32 56,38; mark 43,43 57,49",
        "logo": "mark 47,28 5",
        "splice": "mark 43,36 57,53",
        "long sleeves": "sleeve 48,20 54,20 51,52 46,52; skin 48,54 3",
        "short sleeves": "skin 48,24 53,24 51,52 47,52; skin 48,54 3; sleeve 47,20 55,20 54,34 47,34",
        "backpack": "bag 56,19 69,22 70,45 57,47; bag 46,17 49,17 55,36 52,36",
        "shoulder bag": "bag 49,17 52,17 62,48 59,48; bag 53,46 68,60; dark 53,46 68,49",
        "handbag": "bag 41,60 55,72; dark 44,56 52,60; bag 46,58 50,60",
        "over 60": "wood 32,52 34.5,100; wood 32,50 46,53",
        "head": "hair 51.5,9 8.5*9; skin 47,11 6*7; skin 39,13 42,9 43,13; dark 44,10 1.1",
        "female": "hair 54,6 61,27; hair 52,4 9*4.5",
        "glasses": "dark 43.8,10.5 3.4; dark 44,9.5 56,11",
        "hat": "hat 43,-2 60,6; hat 33,4 58,7.5",
    },
}  # fmt: skip
SKIN = ((240, 204, 172), (222, 172, 132), (168, 116, 80), (112, 74, 50))
CLOTH = ((210, 210, 204), (62, 66, 78), (128, 128, 132), (178, 44, 46), (44, 84, 160), (210, 178, 62), (58, 120, 76))
HAIR = ((28, 22, 20), (60, 38, 24), (104, 66, 34), (150, 104, 52))
BAGS = ((196, 60, 36), (232, 196, 70), (40, 38, 44), (96, 60, 150), (60, 150, 160))
FIXED: dict[str, Color] = {
    "glass": (44, 58, 72), "dark": (20, 20, 24), "lamp": (255, 250, 214), "chrome": (226, 230, 234),
    "rim": (150, 152, 156), "badge": (225, 228, 240), "load": (120, 118, 112), "boot": (128, 70, 26),
    "light": (232, 226, 214), "wood": (190, 130, 60),
}  # fmt: skip


def draw(config: SyntheticConfig, root: Path, workers: int = 0) -> dict[str, Any]:
    """Draw the data set into a folder, unless it already lies there whole.

    `synthetic.files` is written first and names every file to come, `synthetic.json` is written last. An unfinished or
    another data set of this generator is replaced; nothing but the files it names is ever deleted.

    Args:
        config: Counts, shares and seed; its `folder` is of no account here.
        root: Gets `train/`, `val/` and `test/`.
        workers: Drawing processes; 0 takes one per core. The bytes do not depend on it.

    Returns:
        `rows` (split -> group -> count), `wrong_lines` (1-based lines of train_label.txt that carry another row's
        caption), `seed`, and `fingerprint`: sha256 of the label files.

    Raises:
        FileExistsError: If the folder holds files and is not one of this generator.
    """
    wanted = {**config.model_dump(exclude={"folder"}), "version": VERSION}
    if (root / DONE).is_file():
        done = json.loads((root / DONE).read_text(encoding="utf-8"))
        if done.get("config") == wanted:
            return dict(done["summary"])
    _clear(root)
    rows = {split: _plan(config, split) for split in SPLITS}
    wrong_lines = _swap_captions(rows["train"], config)
    labels = {
        f"{split}/{split}_label.txt": [f"{Path(row.image).name}${row.attributes}${row.text}" for row in rows[split]]
        for split in ("train", "val")
    } | {"test/test_text.txt": [row.text for row in rows["test"]]}
    jobs = [
        (row.image, row.subject, (config.seed, number, line))
        for number, split in enumerate(SPLITS)
        for line, row in enumerate(rows[split])
    ]
    root.mkdir(parents=True, exist_ok=True)
    _write_lines(root / FILES, [*labels, *(image for image, _, _ in jobs)])
    for folder in _folders(root):
        folder.mkdir(parents=True, exist_ok=True)
    for name, lines in labels.items():
        _write_lines(root / name, lines)
    _draw_all(root, jobs, workers or min(os.cpu_count() or 1, 1 + len(jobs) // 400))
    people = {split: sum(isinstance(row.subject, Pedestrian) for row in rows[split]) for split in SPLITS}
    summary = {
        "rows": {split: {"vehicle": len(rows[split]) - people[split], "pedestrian": people[split]} for split in SPLITS},
        "wrong_lines": wrong_lines,
        "seed": config.seed,
        "fingerprint": hashlib.sha256(b"".join((root / name).read_bytes() for name in labels)).hexdigest(),
    }
    unfinished = root / f"{DONE}.tmp"
    unfinished.write_text(json.dumps({"config": wanted, "summary": summary}), encoding="utf-8")
    unfinished.replace(root / DONE)
    return summary


def paint(subject: Vehicle | Pedestrian, seed: Sequence[int]) -> Image.Image:
    """Draw one picture.

    Scene, figure and camera have random streams of their own that do not depend on the subject: with the same seed,
    another feature changes the picture only where that feature is.
    """
    scene, figure, camera = (np.random.default_rng([*seed, part]) for part in range(3))
    longest, slack = float(np.exp(scene.uniform(np.log(80), np.log(400)))), float(scene.uniform(0, 1))
    if isinstance(subject, Vehicle):
        aspect = float(np.clip(SHAPES[subject.type].aspect * (0.8 + 0.45 * slack), 1.2, 2.6))
        size = round(longest), round(longest / aspect)
    else:
        size = round(longest * (0.3 + 0.25 * slack)), round(longest)
    canvas = _background((2 * size[0], 2 * size[1]), scene)
    if isinstance(subject, Vehicle):
        _draw_vehicle(canvas, subject, figure)
    else:
        _draw_pedestrian(canvas, set(_names(subject)), figure)
    _occlude(canvas, scene)
    return _photograph(canvas, size, camera)


def _clear(root: Path) -> None:
    if not root.is_dir() or not any(root.iterdir()):
        return
    if not (root / FILES).is_file():
        raise FileExistsError(
            f"{root} holds files that the synthetic data generator did not write (it has no {FILES}): nothing was "
            "deleted. Name an empty folder in 'folder', or move these files away."
        )
    (root / DONE).unlink(missing_ok=True)
    for name in (root / FILES).read_text(encoding="utf-8").splitlines():
        path = root / name
        if path.resolve().is_relative_to(root.resolve()):
            path.unlink(missing_ok=True)
    for folder in _folders(root):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
    (root / FILES).unlink()


def _folders(root: Path) -> list[Path]:
    return [root / split / f"{split}_images" for split in SPLITS]


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _draw_all(root: Path, jobs: list[Job], workers: int) -> None:
    pieces = [jobs[start : start + 32] for start in range(0, len(jobs), 32)]
    # Not forked: the parent may hold threads of a numeric library, and a fork of those can hang.
    with (
        ProcessPoolExecutor(min(workers, len(pieces)), get_context("spawn")) if workers > 1 else nullcontext() as pool,
        tqdm(total=len(jobs), desc="drawing", unit="image", disable=None) as bar,
    ):
        for done in (pool.map if pool else map)(partial(_draw_piece, root), pieces):
            bar.update(done)


def _draw_piece(root: Path, jobs: list[Job]) -> int:
    for name, subject, seed in jobs:
        quality = int(np.random.default_rng([*seed, 3]).integers(45, 96))
        paint(subject, seed).save(root / name, quality=quality)
    return len(jobs)


def _plan(config: SyntheticConfig, split: str) -> list[Row]:
    """The rows of a split, vehicles first; each split has its own stream, so that more of one changes no other."""
    number, count = SPLITS.index(split), getattr(config, split)
    rng = np.random.default_rng([config.seed, 9, number])
    people = round(count * config.pedestrian_share)
    subjects: list[Vehicle | Pedestrian] = [_vehicle(rng) for _ in range(count - people)]
    subjects += _pedestrians(config.seed, people, rng)
    if split == "test":  # in an order of their own: the place of a query says nothing about the image
        names = [f"vehicle_{n:07d}" for n in rng.permutation(count - people)]
        names += [f"{90_000 + n:06d}" for n in rng.permutation(people)]
    else:
        names = _letters(count - people, rng)
        names += [f"{n:06d}" for n in rng.permutation(max(90_000, people))[:people]]
    captions = (
        _say_vehicle(s, rng, whole=split == "test") if isinstance(s, Vehicle) else _say_pedestrian(s, rng)
        for s in subjects
    )
    return [
        Row(f"{split}/{split}_images/{name}.jpg", subject, attributes, text)
        for name, subject, (attributes, text) in zip(names, subjects, captions, strict=True)
    ]


def _letters(count: int, rng: np.random.Generator) -> list[str]:
    names: dict[str, None] = {}
    while len(names) < count:
        names["".join(chr(ord("a") + n) for n in rng.integers(26, size=10))] = None
    return list(names)


def _vehicle(rng: np.random.Generator) -> Vehicle:
    brand = _skewed(list(BRANDS), rng)
    return Vehicle(_skewed(list(COLORS), rng), brand, _skewed(BRANDS[brand].types, rng))


def _skewed(choices: Sequence[Any], rng: np.random.Generator) -> Any:
    """One of the choices, the earlier the likelier."""
    weights = 1 / np.arange(4, 4 + len(choices))
    return choices[int(rng.choice(len(choices), p=weights / weights.sum()))]


def _pedestrians(seed: int, count: int, rng: np.random.Generator) -> Iterable[Pedestrian]:
    """Half of them share one of a few looks, which are the same in every split, so that many rows say the same."""
    looks = np.random.default_rng([seed, 9, len(SPLITS)])
    common = [_pedestrian(looks) for _ in range(60)]
    for _ in range(count):
        yield _skewed(common, rng) if rng.random() < 0.5 else _pedestrian(rng)


def _pedestrian(rng: np.random.Generator) -> Pedestrian:
    def one(chances: dict[str, float]) -> str:
        return str(rng.choice(list(chances), p=list(chances.values())))

    shown = {one({"over 60": 0.15, "18 to 60": 0.67, "under 18": 0.18}), one({"front": 0.4, "back": 0.4, "side": 0.2})}
    shown.add(one({"handbag": 0.2, "shoulder bag": 0.2, "backpack": 0.2, "": 0.4}))
    pattern = one({"stripes": 0.19, "logo": 0.21, "splice": 0.18, "": 0.42})
    shown |= {pattern} if not {"back", "backpack"} <= shown else set()  # the backpack would hide it
    female, coat = bool(rng.random() < 0.48), bool(rng.random() < 0.12)
    chances = {"female": female, "long coat": coat, "hat": 0.14, "boots": 0.15, "umbrella": 0.08}
    chances |= {"skirt": 0.45 * (female and not coat), "glasses": 0.3 * ("back" not in shown)}
    shown |= {name for name, chance in chances.items() if rng.random() < chance}
    shown.add("long sleeves" if coat or rng.random() < 0.4 else "short sleeves")
    return Pedestrian(tuple(int(name in shown) for name in BITS))


def _names(pedestrian: Pedestrian) -> list[str]:
    return [name for name, bit in zip(BITS, pedestrian.bits, strict=True) if bit]


def _say_vehicle(vehicle: Vehicle, rng: np.random.Generator, whole: bool) -> tuple[str, str]:
    """Attribute phrase and text: colour, brand and type; or as in the real set colour and brand, or one part alone."""
    if whole:
        phrase = " ".join(vehicle)
    elif rng.random() < 0.16:
        phrase = vehicle.type
    else:
        phrase = vehicle.brand if vehicle.brand in LONE_BRANDS else f"{vehicle.color} {vehicle.brand}"
    article = "An" if phrase[0].lower() in "aeiou" else "A"
    text = f"This is {article.lower()} {phrase}." if rng.random() < 0.5 else f"{article} {phrase}."
    return f"{article} {phrase}.", text


def _say_pedestrian(pedestrian: Pedestrian, rng: np.random.Generator) -> tuple[str, str]:
    """The bits, and two sentences that name most of them: who, how old, seen from where, with what; then clothes."""
    shown = _names(pedestrian)
    said = {name: str(rng.choice(BITS[name])) for name in shown if name == "female" or rng.random() > 0.08}

    def first(*names: str, otherwise: str = "") -> str:
        return next((said[name] for name in names if name in said), otherwise)

    def listed(items: list[str]) -> str:
        items = [item for item in items if item]
        return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)

    age = first("over 60", "18 to 60", "under 18")
    view = first("front", "side", "back", otherwise="walks by")
    carried = listed([first("handbag", "shoulder bag", "backpack"), first("umbrella")])
    top = first("long coat", "short sleeves", "long sleeves", otherwise="a top") + first("stripes", "logo", "splice")
    worn = listed([top, *(first(name) for name in ("skirt", "boots", "hat", "glasses"))])
    who = said.get("female") or str(rng.choice(MEN))
    text = f"{who}{f', {age},' if age else ''} {view}{f' with {carried}' if carried else ''}. "
    text += f"{'She' if 'female' in said else 'He'} {rng.choice(('wears', 'is dressed in', 'has on'))} {worn}."
    return ",".join(map(str, pedestrian.bits)), text


def _swap_captions(rows: list[Row], config: SyntheticConfig) -> list[int]:
    """Give a share of each group a caption of the same group that is false for it; returns the changed lines."""
    rng, right, wrong = np.random.default_rng([config.seed, 9, 9]), list(rows), []
    for kind in (Vehicle, Pedestrian):
        lines = [n for n, row in enumerate(right) if isinstance(row.subject, kind)]
        for n in sorted(rng.permutation(lines)[: round(config.wrong_captions * len(lines))].tolist()):
            # Captions are shared: the next draw may be true as well. A group that says one thing alone stays as it is.
            for donor in (right[lines[k]] for k in rng.integers(len(lines), size=100)):
                if not _is_true(donor.attributes, right[n].subject):
                    rows[n] = right[n]._replace(attributes=donor.attributes, text=donor.text)
                    wrong.append(n + 1)
                    break
    return wrong


def _is_true(attributes: str, subject: Vehicle | Pedestrian) -> bool:
    if isinstance(subject, Pedestrian):
        return attributes == ",".join(map(str, subject.bits))
    return attributes.split(" ", 1)[1].rstrip(".") in (subject.type, subject.brand, f"{subject.color} {subject.brand}")


class Pen:
    """Draws strokes into a box on a canvas, or their mirror image."""

    def __init__(self, canvas: Image.Image, box: Box, mirrored: bool, palette: dict[str, Color]) -> None:
        self.canvas, self.mirrored, self.palette = canvas, mirrored, palette
        self.draw = ImageDraw.Draw(canvas)
        self.left, self.top, self.width, self.height = box  # in pixels

    def _at(self, x: float, y: float) -> Point:
        x = 100 - x if self.mirrored else x
        return self.left + x * self.width / 100, self.top + y * self.height / 100

    def strokes(self, text: str) -> None:
        """Draw `colour point point ...; ...`."""
        for name, points, radii in _parsed(text):
            fill, corners = self.palette[name], [self._at(*point) for point in points]
            if radii:
                (x, y), rx, ry = corners[0], radii[0] * self.height / 100, radii[1] * self.height / 100
                self.draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill)
            else:
                self.draw.polygon(corners, fill)

    def inside(self, x0: float, y0: float, x1: float, y1: float) -> "Pen":
        """A pen whose box is a part of this one, given in per cent."""
        (xa, top), (xb, bottom) = self._at(x0, y0), self._at(x1, y1)
        return Pen(self.canvas, (min(xa, xb), top, abs(xb - xa), bottom - top), self.mirrored, self.palette)


@lru_cache(1024)
def _parsed(text: str) -> list[tuple[str, list[Point], Point | None]]:
    strokes = []
    for name, *numbers in (stroke.split() for stroke in text.split(";") if stroke.strip()):
        radii = None
        if "," not in numbers[-1]:
            rx, _, ry = numbers.pop().partition("*")
            radii = float(rx), float(ry or rx)
        points = [(float(x), float(y)) for x, y in (number.split(",") for number in numbers)]
        if len(points) == 2:
            (x0, y0), (x1, y1) = points
            points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
        strokes.append((name, points, radii))
    return strokes


def _shade(color: Iterable[float], gain: float, shift: Iterable[float] = (0, 0, 0)) -> Color:
    red, green, blue = (min(255, max(0, round(c * gain + s))) for c, s in zip(color, shift, strict=True))
    return red, green, blue


def _contrast(color: Color) -> Color:
    return (240, 240, 236) if sum(color) < 400 else (30, 36, 52)


def _draw_vehicle(canvas: Image.Image, vehicle: Vehicle, rng: np.random.Generator) -> None:
    shape, look = SHAPES[vehicle.type], BRANDS[vehicle.brand]
    fill, right, down = rng.uniform(0.65, 0.97), rng.uniform(0, 1), rng.uniform(0.3, 1)
    mirrored, gain, tint = bool(rng.integers(2)), rng.uniform(0.75, 1.1), rng.uniform(-18, 18, 3)
    plain = rng.random() < 0.25  # a cheaper trim without the stripe of its brand
    height = fill * min(canvas.height, canvas.width / shape.aspect)
    width = height * shape.aspect
    body = _shade(COLORS[vehicle.color], gain, tint)
    palette = FIXED | {"body": body, "front": _shade(body, 1.05, (9, 9, 9)), "stripe": _contrast(body)}
    box = ((canvas.width - width) * right, (canvas.height - height) * down, width, height)
    pen = Pen(canvas, box, mirrored, palette)
    pen.strokes(f"dark 52,92 {47 * shape.aspect}*7;" + shape.body)
    pen.inside(*shape.side).strokes(STRIPES["none" if plain else look.stripe])
    pen.strokes(shape.glass + ";" + shape.wheels)
    face = pen.inside(*shape.face)
    for strokes in (
        "front 0,0 100,100; dark 0,90 100,100",
        GRILLES[look.grille],
        LIGHTS[look.lights],
        BADGES[look.badge],
    ):
        face.strokes(strokes)


def _draw_pedestrian(canvas: Image.Image, shown: set[str], rng: np.random.Generator) -> None:
    def one(colors: Sequence[Color]) -> Color:
        return _shade(colors[int(rng.integers(len(colors)))], rng.uniform(0.85, 1.1), rng.uniform(-12, 12, 3))

    fill, right, mirrored = rng.uniform(0.8, 0.97), rng.uniform(0.3, 0.7), bool(rng.integers(2))
    top, bottom, skin, hair, bag, hat = (one(colors) for colors in (CLOTH, CLOTH, SKIN, HAIR, BAGS, BAGS))
    palette = FIXED | {"top": top, "sleeve": _shade(top, 0.85), "mark": _contrast(top), "bottom": bottom, "skin": skin}
    palette |= {"bag": bag, "hat": hat, "hair": (206, 206, 208) if "over 60" in shown else hair}
    height = fill * min(canvas.height, canvas.width / 0.46)
    height *= (0.76 if "under 18" in shown else 1) * (0.87 if "umbrella" in shown else 1)
    width = height * (0.88 if "female" in shown else 1)
    pen = Pen(
        canvas, ((canvas.width - width) * right, canvas.height * 0.985 - height, width, height), mirrored, palette
    )
    head = pen.inside(-17.5, -6.3, 117.5, 128.7) if "under 18" in shown else pen  # 1.35 times as large
    view = next(name for name in OTHER_VIEWS if name in shown)
    for name, strokes in (FRONT | OTHER_VIEWS[view]).items():
        if name in shown or (name not in BITS and name.removeprefix("no ") not in shown):
            (head if name in ("head", "female", "glasses", "hat") else pen).strokes(strokes)


def _background(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Sky or wall above a horizon, a road below it, and clutter between."""
    horizon, mirrored = rng.uniform(15, 55), bool(rng.integers(2))
    sky, road = rng.uniform(120, 225) + rng.uniform((-15, -10, -5), (10, 10, 30)), rng.uniform(70, 160, 1)
    rows = np.linspace(0, 100, 32)[:, None]
    column = np.where(rows < horizon, sky * (1.1 - 0.0035 * rows), road * (0.75 + 0.004 * rows)).clip(0, 255)
    canvas = Image.fromarray(column.astype(np.uint8)[:, None]).resize(size, Image.Resampling.BILINEAR)
    pen = Pen(canvas, (0, 0, *size), mirrored, {})
    for _ in range(int(rng.integers(2, 9))):
        x, wide, high, kind = rng.uniform(-10, 100), rng.uniform(4, 35), rng.uniform(5, horizon), int(rng.integers(4))
        plain = ((120, 118, 112), (120, 118, 112), (64, 104, 54), rng.uniform(40, 200, 3))[kind]
        pen.palette["it"] = _shade(plain, rng.uniform(0.5, 1.4))
        wall, pole = f"{x},{horizon - high} {x + wide},{horizon + 4}", f"{x},0 {x + 2},{horizon + 12}"
        pen.strokes("it " + (wall, pole, f"{x},{horizon - high / 2} {high}", wall)[kind])
    for x in rng.uniform(-20, 120, int(rng.integers(0, 4))):
        pen.palette["it"] = _shade((225, 225, 215), rng.uniform(0.7, 1))
        pen.strokes(f"it {50 + (x - 50) / 3},{horizon} {x},100 {x + 6},100")
    return canvas


def _occlude(canvas: Image.Image, rng: np.random.Generator) -> None:
    """On every third picture a pole, a bush or a box hides a part."""
    x, wide, kind, gray = rng.uniform(0, 100), rng.uniform(4, 16), rng.integers(9), rng.uniform(50, 170)
    palette = {"post": _shade((gray,) * 3, 1), "bush": _shade((40, 84, 40), gray / 100)}
    hidden = {
        0: f"post {x},0 {x + wide / 2},100",
        1: f"bush {x},100 {1.6 * wide}",
        2: f"post {x},{100 - wide} {x + 2 * wide},100",
    }
    Pen(canvas, (0, 0, *canvas.size), False, palette).strokes(hidden.get(int(kind), ""))


def _photograph(canvas: Image.Image, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Half the canvas in light, contrast, tint, blur and noise of a street camera."""
    gain, contrast, tint = rng.uniform(0.6, 1.2), rng.uniform(0.65, 1.1), rng.uniform(0.9, 1.1, 3)
    noise, blur = rng.uniform(0, 11), max(0.0, rng.uniform(-0.012, 0.012)) * min(size)
    image = canvas.reduce(2).filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, np.float32)
    pixels = ((pixels - 128) * contrast + 128) * (gain * tint).astype(np.float32)
    pixels += noise * rng.standard_normal((*pixels.shape[:2], 1), np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
