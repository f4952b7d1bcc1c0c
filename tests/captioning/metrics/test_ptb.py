"""English is cut as Stanford's tokeniser cuts it for coco-caption: recorded examples, and the program where it runs."""

import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import SHARED
from xmodal_kedro.captioning.metrics.ptb import ptb

# What coco-caption passes to its metrics, as Stanford CoreNLP 3.4.1 gives it.
RECORDED = {
    "A dog, a cat; and: a bird - or two!": "a dog a cat and a bird or two",
    "He's sure they don't, can't, won't; I'm not.": "he 's sure they do n't ca n't wo n't i 'm not",
    "They'll say we've seen what I'd do.": "they 'll say we 've seen what i 'd do",
    "A man's and two dogs' toys": "a man 's and two dogs toys",
    "“It’s” and \"it's\" and 'it'": "it 's and it 's and it",
    "You cannot, gonna, wanna, gotta": "you can not gon na wan na got ta",
    "At 10:30 a.m. in the U.S. with Mr. Smith.": "at 10:30 a.m. in the u.s. with mr. smith",
    "1,000 of 3.5 and 1/2 cost $5 #1 50% 2x4 1st": "1,000 of 3.5 and 1/2 cost $ 5 # 1 50 % 2x4 1st",
    "the 1950's, the '90s": "the 1950 's the '90s",
    "black/white t-shirt, tee_shirt at five o'clock": "black/white t-shirt tee_shirt at five o'clock",
    "(round) [square] {curly}": "-lrb- round -rrb- -lsb- square -rsb- -lcb- curly -rcb-",
    "wow!! what?! no! ... -- end": "wow !! what ?! no end",
    "Give 'em rock'n'roll & AT&T": "give 'em rock 'n' roll & at&t",
    " \t": "",
    "": "",
    "...": "",
}


@pytest.mark.parametrize("text", RECORDED)
def test_recorded(text):
    assert " ".join(ptb(text)) == RECORDED[text]


def stanford(texts, folder):
    """Lines of the program, without what coco-caption removes."""
    package = find_spec("pycocoevalcap")
    if package is None or shutil.which("java") is None:
        pytest.skip("Stanford's tokeniser needs Java and the package pycocoevalcap")
    jar = Path(package.submodule_search_locations[0]) / "tokenizer" / "stanford-corenlp-3.4.1.jar"
    (folder / "texts").write_text("\n".join(texts) + "\n", encoding="utf-8")
    command = ["java", "-Dfile.encoding=UTF-8", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    found = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", str(folder / "texts")], capture_output=True, check=True
    )
    removed = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
    lines = found.stdout.decode("utf-8").split("\n")
    return [" ".join(token for token in line.split(" ") if token and token not in removed) for line in lines]


def test_recorded_is_what_the_program_says(tmp_path):
    assert stanford(RECORDED, tmp_path)[: len(RECORDED)] == list(RECORDED.values())


def test_captions_are_cut_as_by_the_program(tmp_path):
    file = SHARED / "flickr8k" / "val.parquet"
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    texts = [text for texts in pd.read_parquet(file, columns=["captions_en"])["captions_en"] for text in texts]
    theirs = stanford(texts, tmp_path)
    same = sum(" ".join(ptb(text)) == line for text, line in zip(texts, theirs, strict=False))
    assert same / len(texts) > 0.999
