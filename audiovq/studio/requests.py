"""What a studio allows, and what the bodies of requests have."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MB = 1 << 20
MANY = 20  # visitors

Name = Annotated[str, Field(min_length=1, max_length=200)]
Labels = Annotated[dict[Name, Name], Field(max_length=100)]
Text = Annotated[str, Field(max_length=20_000)]
Number = Annotated[float, Field(allow_inf_nan=False)]
SoundFormat = Literal["wav", "flac", "opus", "mp3"]
Settings = Annotated[dict[Name, Annotated[list[Number], Field(max_length=64)]], Field(max_length=10)]


class Refused(ValueError):
    """A request that cannot be met. `status` is the HTTP status of the answer."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


def sentence(error: Exception) -> str:
    """What is wrong, in one line."""
    if errors := getattr(error, "errors", None):  # pydantic's, and FastAPI's with the part of the request
        first = errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
        return f"{place}: {first['msg']}" if place else first["msg"]
    return " ".join(str(error).split())


@dataclass(frozen=True)
class Limits:
    """Limits of a studio. On one's own machine all visitors count as one."""

    max_seconds: float = 120.0  # of a piece, and of the part of a recording that is used
    max_upload_mb: float = 50.0
    max_takes: int = 4
    max_versions: int = 200  # of a project
    max_projects: int = 200  # of a visitor; and of all together, MANY times as many, as with the next one
    max_waiting: int = 10  # jobs of a visitor
    quota_mb: float = 2000.0  # the projects of a visitor
    total_mb: float = 20000.0  # the projects of all visitors
    stall_seconds: float = 20.0  # an upload without a byte for so long is dropped
    slowest_upload_seconds: float = 1800.0

    def check_seconds(self, seconds: float, slack: float = 1e-6) -> None:
        """Raises ValueError for a piece that is too long or has no length."""
        if not 0 < seconds <= self.max_seconds + slack:
            rule = f"a piece must be above 0 s, and may be up to {self.max_seconds:g} s long here"
            advice = "the option --max-seconds of audiovq studio allows more"
            raise ValueError(f"{rule}, and this would be {seconds:.1f} s ({advice})")


class Strict(BaseModel):
    """Files may come from anybody: unknown keys and numbers that are not finite are errors."""

    model_config = ConfigDict(extra="forbid")


class PieceRequest(Strict):
    takes: int = Field(default=1, ge=1, le=1000)
    seed: int | None = Field(default=None, ge=0, lt=2**63)  # the same seed gives the same music; None draws one
    labels: Labels = Field(default={})
    text: Text = ""
    chords: Text = ""  # to follow, such as "Am F C G/B", see `PieceOptions`
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
    chroma: Name | None = None  # id of a recording to follow, by its chroma or, if the model has none, its notes
    keep_audio: bool | None = None  # None: the sound outside the change is kept for recordings


class Turn(Strict):
    """What the live page says: how far it has played, and what is to change."""

    set: Annotated[dict[Name, Any], Field(max_length=100)] = Field(default={})  # see `Live.set`
    restart: bool = False
    buffer: float | None = Field(default=None, ge=0.02, le=5)  # seconds that are made ahead
    played: int = Field(default=0, ge=0)  # samples since the beginning
    underruns: int = Field(default=0, ge=0)


class ProjectChange(Strict):
    name: Name | None = None
    starred: bool | None = None
    shown: int | None = None


class VersionChange(Strict):
    title: Name | None = None
    starred: bool | None = None


class Export(Strict):
    """How a version is written to a sound file."""

    levels: int | None = Field(default=None, ge=1)  # only the first ones, decoded, also where a recording was kept
    format: SoundFormat = "wav"
    bits: Literal["16", "24"] = "16"  # of WAV and FLAC
    lufs: float | None = Field(default=None, ge=-60, le=0)  # as far as peaks stay below -1 dBFS; None: as it is
    download: bool = False  # with tags
