"""What the bodies of requests have."""

from typing import Annotated, Literal

from pydantic import Field

from audiovq.studio.projects import Labels, Name, Number, Settings, Strict, Text


class PieceRequest(Strict):
    """How new music is to be made."""

    takes: int = Field(default=1, ge=1, le=1000)
    seed: int | None = Field(default=None, ge=0, lt=2**63)  # the same seed gives the same music; None draws one
    labels: Labels = Field(default={})
    text: Text = ""
    settings: Settings = Field(default={})  # temperature, top_p, top_k, guidance: one value per level


class NewPiece(PieceRequest):
    """A piece in a project of its own."""

    seconds: Number
    name: Name | None = None


class JobRequest(PieceRequest):
    """New music in a project, or a change of one of its versions."""

    kind: Literal["make", "extend", "redraw", "vary", "rerender"]
    version: int | None = None  # that is changed
    seconds: Number = 0  # make
    before: Number = 0  # extend, in seconds, as the next three
    after: Number = 0
    start: Number = 0  # redraw
    end: Number = 0
    keep_levels: Annotated[int, Field(ge=0, le=64)] = 0  # redraw, rerender: coarse levels that stay
    percent: Number = 0  # vary
    chroma: Name | None = None  # id of a recording whose melody and harmony to follow
    keep_audio: bool | None = None  # None: the sound outside the change is kept for recordings


class ProjectChange(Strict):
    name: Name | None = None
    starred: bool | None = None
    shown: int | None = None


class VersionChange(Strict):
    title: Name | None = None
    starred: bool | None = None
