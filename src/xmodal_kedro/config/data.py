"""What a recipe says about its data: where pairs come from, how they are split, prompted and judged."""

from itertools import chain
from string import Formatter
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from xmodal_kedro.config.frozen import Frozen

Split = Literal["train", "dev", "val", "test"]
SourceFormat = Literal["table", "jsonl", "track2", "parquet", "folder", "queries"]
DevUnit = Literal["image", "attributes", "text"]
RelevanceMode = Literal["id", "text", "attribute_text", "attribute_inclusion"]


class Columns(Frozen):
    """Names of the columns (CSV, Parquet) or fields (JSONL) that hold each part of a pair."""

    image: str | None = Field("image", description="null says that the file has no images: its rows are queries")
    text: str | list[str] | None = Field(
        "text",
        description="one or several columns; a cell may hold a list of captions; null says that the file has no texts",
    )
    image_id: str | None = None
    text_id: str | None = None
    attributes: str | None = None
    group: str | None = None
    bytes: str | None = Field(
        None, description="Parquet: the column with encoded image bytes (plain, or {bytes, path})"
    )


class Source(Frozen):
    """One file or folder of pairs.

    `table` is CSV/TSV, `jsonl` one object a line, `track2` lines `image$attributes$text`, `parquet` shards (a glob)
    with the image bytes inside, `folder` a folder of images (a captions file is optional: without one it is a gallery
    with no texts), `queries` a text file with one query a line.
    """

    split: Split
    format: SourceFormat
    file: str | None = Field(None, description="relative to data.root; a glob for parquet")
    images: str | None = Field(None, description="folder of the images, relative to data.root")
    columns: Columns = Columns()
    separator: str | None = Field(None, description="of a table; by default found out")
    encoding: str | None = Field(None, description="by default found out: UTF-8, UTF-16 (BOM) or GB18030")
    group: str | None = Field(None, description="group of every row; by default found by data.groups")

    @model_validator(mode="after")
    def _has_what_its_format_needs(self) -> "Source":
        if self.format != "folder" and self.file is None:
            raise ValueError(f"a source of format '{self.format}' needs 'file'")
        if self.format == "folder" and self.images is None:
            raise ValueError("a source of format 'folder' needs 'images'")
        if self.columns.image is None and self.columns.bytes is None and self.columns.text is None:
            raise ValueError("'columns' names neither images nor texts")
        return self


class GroupRule(Frozen):
    """Rows fall into the first group whose rule matches: every given pattern (regular expression) must be found.

    A pattern for a side that a row lacks (the `image` of a query) is passed over if the rule has another to look for.
    """

    name: str
    image: str | None = None
    text: str | None = None
    attributes: str | None = None


class DataConfig(Frozen):
    """The raw data of a recipe."""

    root: str
    sources: list[Source] = Field(min_length=1)
    groups: list[GroupRule] = []
    dev_share: float = Field(0.1, gt=0.0, lt=0.9, description="of the train images, for every choice")
    dev_by: dict[str, DevUnit] = Field(
        {}, description="per group, what is never on both sides of that cut besides an image: equal attributes or texts"
    )
    seed: int = 0
    max_bad_share: float = Field(0.05, ge=0.0, le=1.0, description="of rows and of images; above it the run fails")


class ImagesConfig(Frozen):
    """How images are packed."""

    size: int = Field(gt=0, description="side of the packed square, in pixels")
    fit: Literal["letterbox", "squash"] = "letterbox"
    mirror: bool = Field(False, description="flip every image horizontally, for training, ranking and prediction alike")
    workers: int = Field(0, ge=0, description="decoding processes; 0 takes one per core")
    store: str = Field("data/03_primary/image_stores", description="folder of the packed stores, one per content")


class VehicleVocabulary(Frozen):
    """Words of the attribute phrases. A list that is left out is learned from the phrases of the train split."""

    colors: list[str] | None = None
    brands: list[str] | None = None
    types: list[str] | None = None

    @model_validator(mode="after")
    def _every_entry_is_one_part(self) -> "VehicleVocabulary":
        part_of: dict[str, str] = {}
        for part in ("colors", "brands", "types"):
            for entry in getattr(self, part) or ():
                if not entry.strip():
                    raise ValueError(f"{part} holds an empty entry")
                if part_of.setdefault(entry, part) != part:
                    raise ValueError(f"'{entry}' is in {part_of[entry]} and in {part}: keep it in one of them")
        return self


TEMPLATE_PARTS = ("color", "brand", "type", "text")


def template_parts(template: str) -> set[str]:
    """The parts that a template names: of "A {color} {brand}." they are color and brand.

    Raises:
        ValueError: When it has a placeholder that is no part, or braces that do not match.
    """
    names = set()
    try:
        for _, name, form, conversion in Formatter().parse(template):
            if name is not None:
                if name not in TEMPLATE_PARTS or form or conversion:
                    raise ValueError(f"no part is called '{name}'")
                names.add(name)
    except ValueError as error:
        known = ", ".join(f"{{{part}}}" for part in TEMPLATE_PARTS)
        raise ValueError(f"cannot fill this template: {error}; it may hold {known}, and other braces doubled") from None
    return names


def _checked(template: str) -> str:
    template_parts(template)
    return template


def _each_checked(row: str | list[str]) -> str | list[str]:
    for template in [row] if isinstance(row, str) else row:
        template_parts(template)
    return row


Template = Annotated[str, AfterValidator(_checked)]
RowTemplate = Annotated[str | list[str], AfterValidator(_each_checked)]


class QueryForm(Frozen):
    """How the texts of dev, val and test are put before they are encoded; the submission has them as they came."""

    strip_prefixes: list[str] = Field([], description="the longest of these that a text begins with is cut")
    strip_end: str = Field("", description="characters that are cut from the end")
    suffix: str = Field("", description="follows the text as it is, so with a blank in front where one is wanted")


class GroupPrompts(Frozen):
    """Templates for the captions of one group; `{color} {brand} {type} {text}` are filled in.

    A template that names a part which a row lacks is left out for that row. `replace`, `rows` and `sentence_rows` are
    for train rows only, whatever `queries` says.
    """

    replace: Template | None = Field(
        None, description="what a train text becomes; parts that a row lacks are skipped, with none it stays"
    )
    query: QueryForm = QueryForm()

    append: list[Template] = Field([], description="appended to the text of the row, in this order")
    separator: str = " "
    rows: list[RowTemplate] = Field(
        [],
        description="each adds a row of its own for the same image; of a list of templates those that can be filled "
        "are joined by `separator`",
    )
    sentence_rows: bool = Field(False, description="adds a row per sentence where the text has several")


class PromptsConfig(Frozen):
    """Prompt augmentation of train captions (and of queries only when asked)."""

    vocabulary: VehicleVocabulary = VehicleVocabulary()
    vehicle_group: str = Field("vehicle", description="the group whose attributes are phrases to parse")
    groups: dict[str, GroupPrompts] = {}
    queries: bool = Field(False, description="also append to the texts of dev, val and test")

    @model_validator(mode="after")
    def _attribute_parts_only_of_vehicles(self) -> "PromptsConfig":
        for group, prompts in self.groups.items():
            sentences = [[row] if isinstance(row, str) else row for row in prompts.rows]
            templates = (*prompts.append, *chain.from_iterable(sentences), *filter(None, [prompts.replace]))
            for template in () if group == self.vehicle_group else templates:
                if parts := template_parts(template) - {"text"}:
                    raise ValueError(
                        f"groups.{group} names {{{min(parts)}}} in '{template}', but only the rows of vehicle_group "
                        f"('{self.vehicle_group}') have colour, brand and type"
                    )
        return self


class CompletionConfig(Frozen):
    """Zero-shot completion of attributes that a vehicle's phrase lacks: the likeliest by an un-tuned model."""

    member: str = Field(description="whose backbone, as it is before training, labels the images")
    parts: list[Literal["color", "brand", "type"]] = Field(
        ["color", "type"], min_length=1, description="completed where they are missing; the others stay missing"
    )
    template: Template = Field("This is a {color} {brand} {type}.", description="of a candidate; missing parts skipped")
    store: str = Field("data/03_primary/completions", description="folder of what was labelled already")

    @model_validator(mode="after")
    def _candidates_differ_in_their_parts(self) -> "CompletionConfig":
        named = template_parts(self.template)
        if "text" in named:
            raise ValueError("template names {text}: candidates are made of colour, brand and type alone")
        if hidden := sorted(set(self.parts) - named):
            raise ValueError(f"template does not name {{{hidden[0]}}}, so that all its candidates would read the same")
        return self


class RelevanceConfig(Frozen):
    """Which gallery items are right for a query."""

    default: RelevanceMode = "id"
    groups: dict[str, RelevanceMode] = {}


class SyntheticConfig(Frozen):
    """The embedded default: synthetic traffic, drawn into `folder`."""

    folder: str
    train: int = Field(gt=0, description="pairs")
    val: int = Field(gt=0)
    test: int = Field(gt=0)
    pedestrian_share: float = Field(0.5, ge=0.0, le=1.0)
    wrong_captions: float = Field(
        0.0, ge=0.0, le=1.0, description="share of train rows that carry another row's caption"
    )
    seed: int = Field(0, ge=0)
