"""Settings of captioned pictures: entries of ``data`` in the TOML files of `toklip train encoder`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from toklip_core.config import LARGEST_SEED, MAX_PIXELS, Config, MaxPixels

#: Kinds of backgrounds of scenes.
BackgroundKind = Literal["plain", "gradient", "striped", "checkered", "cloudy"]


class CaptionedScenes(Config):
    """Generated scenes. Every epoch has new ones, each with one of its four captions; they are never cropped."""

    kind: Literal["scenes"]
    count: int = Field(gt=0, description="Number of scenes per epoch.")
    seed: int = Field(
        default=0, ge=0, le=LARGEST_SEED, description="Seed of the scenes; another seed gives other scenes."
    )
    objects: Literal[1, 2, 3] | None = Field(
        default=None, description="Number of objects in each scene; by default 1 to 3 at random."
    )
    background: BackgroundKind | None = Field(
        default=None, description="Background of all scenes; by default random for each scene."
    )


class CaptionedPictures(Config):
    """Picture files and tars with captions beside them: KEY.jpg with KEY.txt, or with "caption" in KEY.json."""

    kind: Literal["pictures"]
    inputs: tuple[str, ...] = Field(
        min_length=1,
        description="Files, folders, globs, and tars of img2dataset or WebDataset; pictures without a caption are "
        "skipped.",
    )
    max_pixels: MaxPixels = MAX_PIXELS


class CaptionedTable(Config):
    """A CSV, TSV or JSONL file of pictures and captions; rows that name the same picture are merged into one."""

    kind: Literal["table"]
    table: Path = Field(description="Path of the table: NAME.csv or NAME.tsv with a header line, or NAME.jsonl.")
    root: Path | None = Field(
        default=None, description="Folder that the picture paths are relative to; by default the table's own."
    )
    image: str = Field(default="image", description="Column of the picture's path.")
    caption: str = Field(
        default="caption",
        description="Column of the caption, or in JSONL of a list of captions; each epoch takes one of them at random.",
    )
    max_pixels: MaxPixels = MAX_PIXELS


class CaptionedDataset(Config):
    """Parquet files, or a data set of the Hugging Face hub, read by the library `datasets`, which caches a copy.

    Rows whose pictures are equal byte for byte are merged into one picture.
    """

    kind: Literal["dataset"]
    files: tuple[str, ...] = Field(default=(), description="Parquet files, or globs of them.")
    name: str | None = Field(default=None, description="Name of a data set on the hub, in place of files.")
    subset: str | None = Field(
        default=None, description="Subset (configuration) of the data set on the hub, if it has several."
    )
    split: str = Field(default="train", description="Split of the data set on the hub.")
    image: str = Field(default="image", description="Column of the picture, as the library stores it or as bytes.")
    caption: str = Field(
        default="caption",
        description="Column of the caption, or of a list of captions; each epoch takes one of them at random.",
    )
    max_pixels: MaxPixels = MAX_PIXELS

    @model_validator(mode="after")
    def _one_of_two(self) -> Self:
        if bool(self.files) == bool(self.name):
            raise ValueError("give files or name, and not both")
        if self.files and (self.subset is not None or self.split != "train"):
            raise ValueError("subset and split belong to a data set that is named; files are taken as a whole")
        return self


class CaptionedStore(Config):
    """A token store with captions, and with the teacher's features if it has them; no picture is read."""

    kind: Literal["store"]
    store: Path = Field(description="Folder that `toklip encode` wrote; every row needs a caption.")


CaptionSource = Annotated[
    CaptionedScenes | CaptionedPictures | CaptionedTable | CaptionedDataset | CaptionedStore,
    Field(discriminator="kind"),
]
