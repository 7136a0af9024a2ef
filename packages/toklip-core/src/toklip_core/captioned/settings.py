"""The settings that name captioned pictures: entries of ``data`` in the TOML files of `toklip train encoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toklip_core.config import Config
from toklip_core.ranges import LARGEST_MAX_PIXELS, LARGEST_SEED, MAX_PIXELS


class CaptionedScenes(Config):
    """Procedural scenes; every epoch draws new ones, each with one of its four captions. They are never cropped."""

    kind: Literal["scenes"]
    count: int = Field(gt=0, description="Scenes an epoch.")
    seed: int = Field(default=0, ge=0, le=LARGEST_SEED, description="Another seed gives other scenes.")
    objects: Literal[1, 2, 3] | None = Field(default=None, description="In each scene; one to three by default.")
    background: Literal["plain", "gradient", "striped", "checkered", "cloudy"] | None = Field(
        default=None, description="Of all scenes; any by default."
    )


class CaptionedPictures(Config):
    """Picture files and tars with captions beside them: KEY.jpg, and KEY.txt or "caption" in KEY.json."""

    kind: Literal["pictures"]
    inputs: tuple[str, ...] = Field(
        min_length=1,
        description="Files, folders, globs, tars of img2dataset or WebDataset. Those without a caption are left out.",
    )
    max_pixels: int = Field(
        default=MAX_PIXELS,
        gt=0,
        le=LARGEST_MAX_PIXELS,
        description="Width times height above which a picture is not read, and left out.",
    )


class CaptionedTable(Config):
    """A CSV, TSV or JSONL file that names pictures and their captions; rows that name one picture are one picture."""

    kind: Literal["table"]
    table: Path = Field(description="NAME.csv or NAME.tsv, with a line of column names, or NAME.jsonl.")
    root: Path | None = Field(
        default=None, description="The folder that the pictures' paths start from; by default the table's own."
    )
    image: str = Field(default="image", description="Column of the picture's path.")
    caption: str = Field(
        default="caption",
        description="Column of the caption; in JSONL also a list. Of all those of a picture one is drawn each epoch.",
    )
    max_pixels: int = Field(
        default=MAX_PIXELS,
        gt=0,
        le=LARGEST_MAX_PIXELS,
        description="Width times height above which a picture is not read, and left out.",
    )


class CaptionedDataset(Config):
    """Parquet files or a data set of the Hugging Face hub, through the library `datasets`, which keeps a copy.

    Rows that hold one picture, byte by byte, are one picture.
    """

    kind: Literal["dataset"]
    files: tuple[str, ...] = Field(default=(), description="Parquet files or globs of them.")
    name: str | None = Field(default=None, description="A data set of the hub, in place of files.")
    subset: str | None = Field(default=None, description="Of the data set, where it has several.")
    split: str = Field(default="train", description="Of the data set.")
    image: str = Field(default="image", description="Column of the picture, as the library stores it or as bytes.")
    caption: str = Field(default="caption", description="Column of the caption, or of a list, of which one is drawn.")
    max_pixels: int = Field(
        default=MAX_PIXELS,
        gt=0,
        le=LARGEST_MAX_PIXELS,
        description="Width times height above which a picture is not read, and left out.",
    )

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if bool(self.files) == bool(self.name):
            raise ValueError("give files or name, and not both")
        if self.files and (self.subset is not None or self.split != "train"):
            raise ValueError("subset and split belong to a data set that is named; files are taken as a whole")
        return self


class CaptionedStore(Config):
    """A token store: ids and captions, and the teacher's features if it has them; no picture is read."""

    kind: Literal["store"]
    store: Path = Field(description="What `toklip encode` wrote; every row needs a caption.")


CaptionSource = Annotated[
    CaptionedScenes | CaptionedPictures | CaptionedTable | CaptionedDataset | CaptionedStore,
    Field(discriminator="kind"),
]
