"""The schema of `stimuli`: the keys of each source, and the keys that all sources share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Discriminator, Field, PrivateAttr, Tag, model_validator

from xact.errors import RequestError
from xact.recipe.blocks import Block, FileName, Text, name_yaml_kind

Folders = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[list[Text], Field(min_length=1), Tag("list")]
    | Annotated[dict[Text, Text], Field(min_length=1), Tag("mapping")],
    Discriminator(name_yaml_kind),
]
Patterns = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[str], Field(min_length=1), Tag("list")], Discriminator(name_yaml_kind)
]


Files = Annotated[
    Annotated[Text, Tag("text")] | Annotated[list[Text], Field(min_length=1), Tag("list")],
    Discriminator(name_yaml_kind),
]


class Regex(Block):
    """A regular expression for whole stems."""

    regex: Text
    """Each named group `(?P<name>...)` becomes a coordinate."""


Fields = Annotated[Annotated[Text, Tag("text")] | Annotated[Regex, Tag("mapping")], Discriminator(name_yaml_kind)]


class StimuliBlock(Block):
    """Keys of every source; they apply in the order columns, fields, where, limit."""

    columns: Files | None = None
    """Tables, relative to the recipe file; their column `stimulus` or `stem` pairs rows with stimuli."""
    fields: Fields | None = None
    """Coordinates from parts of stems: `{name}` matches text, `{name:N}` exactly N characters; or {regex: ...}."""
    where: Text | None = None
    """Keep the stimuli for which this expression is true, e.g. `rating > 3`."""
    limit: int | None = Field(None, ge=1)
    """Keep only the first `limit` stimuli."""
    prompt_name: FileName | None = None
    """Part of the file names of `.pt` exports."""
    _held: Mapping[str, str] = PrivateAttr(default_factory=dict)

    @property
    def held(self) -> Mapping[str, str]:
        """{column: its type in the store}, for a store that exists; no key of a recipe."""
        return self._held

    def hold_types(self, held: Mapping[str, str]) -> Self:
        """Return a copy for a store with these types of columns."""
        copy = self.model_copy()
        copy._held = held
        return copy


class PictureBlock(StimuliBlock):
    """Keys of every source of pictures."""

    mask_alpha: Literal["black", "white", "gray", "none"] = "black"
    """Colour of pixels with alpha 0; `none` refuses images with alpha."""
    border: float = Field(0.0, ge=0, lt=10)
    """Black border on each side, as a fraction of that side's length."""


class FolderStimuli(PictureBlock):
    """Image files in one or more folders under a root; each folder is a condition."""

    source: Literal["folder"]
    root: str = "."
    """Root folder, relative to the recipe file."""
    folders: Folders = ["."]
    """Name or glob of folders, a list of these, or {condition: folder}; `**/` is every folder that holds a match."""
    pattern: Patterns = "*.png"
    """Glob of file names inside a folder, or a list of globs."""
    dataset: FileName = "folder"
    """Name of the data set in `.pt` exports."""


class TableStimuli(PictureBlock):
    """A CSV or parquet file with a column of image paths; its other columns become coordinates."""

    source: Literal["table"]
    file: Text
    """Relative to the recipe file."""
    root: str = "."
    """Base folder of the paths in the table; relative to the recipe file."""
    path: str = "path"
    """Column with the image paths."""
    id: str = "id"
    """Column with the ids; if the table lacks it, the id is the path without its extension."""
    unique: bool = False
    """The table is a list of presentations, such as BIDS's `events.tsv`: take each picture once, at its first row."""
    rename: dict[str, str] = {}
    """{column: its name in the store}; the keys above name columns as renamed."""
    dataset: FileName = "table"
    """Name of the data set in `.pt` exports."""


class ArrayBlock(PictureBlock):
    """Keys of every array of images: (n, height, width, channel), (n, channel, height, width) or (n, height, width)."""

    channels: Literal["first", "last"] | None = None
    """Axis of the 3, 4 (alpha) or 1 channels, where the shape does not tell it."""
    white: float | None = Field(None, gt=0)
    """Number that is white (0 is black); default: 255 of uint8, 1 of floats."""


class Hdf5Stimuli(ArrayBlock):
    """An array of images in an HDF5 file."""

    source: Literal["hdf5"]
    file: Text
    """Relative to the recipe file."""
    dataset: Text
    """Data set with the images."""
    id: str | None = None
    """Data set with the ids; default: the id is the index, in five digits."""


class NpyStimuli(ArrayBlock):
    """An array of images in a NumPy file `.npy`; the id is the index, in five digits."""

    source: Literal["npy"]
    file: Text
    """Relative to the recipe file."""
    dataset: FileName = "npy"
    """Name of the data set in `.pt` exports."""


class NsdStimuli(PictureBlock):
    """The Natural Scenes Dataset, read from its `imgBrick` or its unrolled images; nsdId is the row."""

    source: Literal["nsd"]
    root: Text | None = None
    """Root folder, relative to the recipe file; default: the environment variable NSD_DATASET."""
    ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Keep only these nsdIds."""
    subject: int | None = Field(None, ge=1, le=8)
    """Keep only the images that this subject saw."""
    dataset: FileName = "nsd"
    """Name of the data set in `.pt` exports."""


class Bold5000Stimuli(PictureBlock):
    """BOLD5000, in the order of first presentation (`bold_id`)."""

    source: Literal["bold5000"]
    root: Text | None = None
    """Root folder, relative to the recipe file; default: the environment variable BOLD_DATASET."""
    dataset: FileName = "bold5000"
    """Name of the data set in `.pt` exports."""


class ThingsStimuli(PictureBlock):
    """THINGS, in the order of the file names (`things_id`)."""

    source: Literal["things"]
    root: Text | None = None
    """Root folder, relative to the recipe file; default: the environment variable THINGS_DATASET."""
    dataset: FileName = "things"
    """Name of the data set in `.pt` exports."""


class CaptionsStimuli(StimuliBlock):
    """A CSV or parquet file of captions, the input of language models."""

    source: Literal["captions"]
    file: Text | None = None
    """Path relative to the recipe file; default with `dataset: nsd`: `annotations/coco_captions.csv` under the root."""
    dataset: FileName = "captions"
    """Name of the data set in `.pt` exports; nsd, bold5000 and things also give their ids and their order."""
    root: Text | None = None
    """Root folder of that data set, used if its ids must be looked up there; default: its environment variable."""
    id: Text | None = None
    """Column with the ids; default: the first of stimulus, id, nsd_id, things_id, bold_id, image_name, name."""
    caption: Text | None = None
    """Column with one caption per row; default: `caption`, else `captions`."""
    captions: Literal["first", "stimuli", "replicates"] = "first"
    """Use of several captions, joined by `;` in a column `captions`, or in several rows of one id: the first, each as a
    stimulus, or each as a replicate."""
    context: Literal["all", "sentences"] | None = None
    """Show each text after the texts before it in its condition: `all` of their tokens that the model has room for, or
    whole texts (`sentences`) only. The reductions go over the tokens of the text itself."""
    rename: dict[str, str] = {}
    """{column: its name in the store}; the keys above name columns as renamed."""

    @model_validator(mode="after")
    def _check_context(self) -> CaptionsStimuli:
        if self.context is not None and self.captions == "replicates":
            raise ValueError("`context` needs one text a stimulus: captions: first, or captions: stimuli")
        return self

    @model_validator(mode="before")
    @classmethod
    def _refuse_pixels(cls, data: object) -> object:
        key = next((key for key in ("mask_alpha", "border") if isinstance(data, dict) and key in data), None)
        if key is not None:
            raise ValueError(f"{key!r} is for pictures, captions have no pixels")
        return data


Stimuli = Annotated[
    FolderStimuli
    | TableStimuli
    | Hdf5Stimuli
    | NpyStimuli
    | NsdStimuli
    | Bold5000Stimuli
    | ThingsStimuli
    | CaptionsStimuli,
    Field(discriminator="source"),
]


def get_pictures(stimuli: Stimuli, model: str) -> PictureBlock:
    """Return the block of stimuli if they are pictures; refuse captions."""
    if isinstance(stimuli, PictureBlock):
        return stimuli
    raise RequestError(f"model {model!r} takes pictures, the stimuli are captions", hint="name a language model")
