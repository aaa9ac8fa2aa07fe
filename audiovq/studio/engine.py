"""The model of a studio, and all that needs it: new music, recordings, sounds, and projects from elsewhere."""

import functools
import json
import re
import shutil
import zipfile
import zlib
from pathlib import Path
from typing import Any, get_args

from audiovq.api.generator import Generator
from audiovq.data.audio import audio_info
from audiovq.data.audio_writer import piece_tags
from audiovq.data.codes import Codes
from audiovq.pretrained.locate import model_licence
from audiovq.prior.prior import SamplingConfig
from audiovq.studio import sounds
from audiovq.studio.jobs import Job
from audiovq.studio.live import Stage
from audiovq.studio.making import draw, make_plan
from audiovq.studio.projects import LARGEST_PROJECT_FILE, Library, Project, Version, parse
from audiovq.studio.requests import MB, Export, JobRequest, Limits, Refused, SoundFormat

LEVEL_ROW = re.compile(r"^\| (\d+) \|[^|]*\|[^|]*\| ([0-9.]+) \|")  # bits per second in the table of a model card
UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError)  # what zipfile raises


class Engine:
    """A model, by the `name` that the user knows, and the projects of its studio; `place` is for sounds, made anew."""

    def __init__(self, folder: Path, name: str, library: Library, limits: Limits, place: Path):
        self.folder, self.name, self.library, self.limits = folder, name, library, limits
        self.generator = Generator.from_pretrained(folder)
        self.tokenizer = self.generator.tokenizer
        self.hash = self.tokenizer.hash
        self.sounds = sounds.Sounds(self.tokenizer, library, place)
        self.training_bits = training_bits(folder)
        self.stage, self.licence = Stage(self.generator), model_licence(folder)

    def describe(self) -> dict[str, Any]:
        generator = self.generator
        inputs = [prior.config.extra_inputs for prior in generator.priors]
        rate, settings = generator.sample_rate, [setting.model_dump() for setting in generator.sampling]
        facts: dict[str, Any] = {name: getattr(self, name) for name in ("name", "hash", "licence")}
        facts |= {name: getattr(self.tokenizer.config, name) for name in ("sample_rate", "channels", "codebook_size")}
        facts["levels"] = [
            {"hop_length": hop, "code_rate": rate / hop, "highest": self.tokenizer.config.highest_pitch(i)}
            for i, hop in enumerate(generator.hop_lengths)
        ]
        facts |= {name: any(known[name] for known in inputs) for name in ("chroma", "notes")}
        facts |= {"labels": generator.labels, "text_bytes": max(known["text_bytes"] for known in inputs)}
        facts["settings"] = {name: [setting[name] for setting in settings] for name in SamplingConfig.model_fields}
        return facts | {"formats": list(get_args(SoundFormat))}

    def codes(self, project: Project, number: int | None) -> Codes:
        return Codes.load(self.library.codes_path(project, project.version(number).number))

    def sound(self, project: Project, version: Version, export: Export) -> Path:
        """A sound file of a version; a download has tags."""
        if export.levels is not None and export.levels > version.n_levels:
            raise Refused(f"levels: expected 1 to {version.n_levels}, found {export.levels}")
        if not export.download:
            return self.sounds.version(project, version.number, export)
        tags = piece_tags(project.name, self.name, version.seed, version.labels, self.licence)
        return self.sounds.version(project, version.number, export, tags)

    def job(self, project: Project, request: JobRequest) -> Job:
        """Raises ValueError for an impossible request."""
        self.library.check_versions(project, request.takes)
        is_change = request.kind != "make"
        is_same = is_change and request.seed == project.version(request.version).seed
        if is_same and request.kind != "extend":  # the same noise would make the same codes
            request = request.model_copy(update={"seed": None})
        piece = self.codes(project, request.version) if is_change else None
        reference = None
        if request.chroma:
            recording = project.recording(request.chroma)
            reference = self.library.recording_path(project, recording)
            sounds.check_reference(reference, recording.name, self.limits)
        plan = make_plan(self.generator, self.limits, request, piece, reference)
        keeps_audio = request.keep_audio
        if keeps_audio is None and is_change:
            changed = project.version(request.version)
            keeps_audio = bool(changed.recording or changed.kept)  # there is original sound in it

        def work(job: Job) -> list[int]:
            takes = draw(self.generator, plan, request.takes, job)
            facts = request.model_dump(include={"labels", "text", "chords", "settings"}) | {"seed": plan.seed}
            facts |= {"kind": "change", "parent": request.version} if is_change else {"kind": "new"}
            versions = []
            for i, codes in enumerate(takes):
                title = f"{plan.title}, take {i + 1}" if len(takes) > 1 else plan.title
                kept = plan.kept(i, codes.hop_lengths) if keeps_audio else None
                versions.append((_version(codes, title=title, take=i + 1, kept=kept, **facts), codes))
            return self._add(project, versions)

        return Job(project.id, project.owner, request.kind, plan.title, work)

    def _add(self, project: Project, versions: list[tuple[Version, Codes]]) -> list[int]:
        """Add versions with the next numbers: first the codes, then the project that names them."""
        with self.library.changing(project):
            for version, codes in versions:
                version.number = project.next_number
                codes.save(self.library.codes_path(project, version.number))
                project.add(version)
        return [version.number for version, _ in versions]

    def keep(self, project: Project, codes: Codes) -> None:
        """What was played live as a version of a project."""
        self.library.check_versions(project, 1)
        self._add(project, [(_version(codes, title=f"the last {codes.seconds:.0f} s", kind="new"), codes)])

    def open(self, project: Project, path: Path, name: str) -> Job:
        """Make an uploaded file a version. It becomes a recording of the project, or its codes are the version's."""

        def work(job: Job) -> list[int]:
            if path.suffix == ".codes":
                codes = sounds.read_codes(path, name, self.tokenizer, self.limits)
                numbers = self._add(project, [(_version(codes, title=name, kind="recording"), codes)])
                path.unlink()
                return numbers
            codes, recording = sounds.read_recording(path, name, self.tokenizer, self.limits, job.report)
            warning = sounds.unlikeness(self.generator, codes, self.training_bits)
            version = _version(codes, title=name, kind="recording", recording=recording.id, warning=warning)
            with self.library.changing(project):
                path.rename(self.library.recording_path(project, recording))
                project.recordings.append(recording)
                return self._add(project, [(version, codes)])

        discard = functools.partial(path.unlink, missing_ok=True)
        return Job(project.id, project.owner, "open", f"opening {name}", work, discard)

    def export(self, project: Project, path: Path) -> None:
        with self.library.lock:
            content, names = project.model_dump(mode="json") | {"owner": ""}, _files(project)
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("project.json", json.dumps(content, indent=1))
            for name in names:
                file.write(self.library.folder(project) / name, name)

    def import_(self, path: Path, owner: str) -> Project:
        """A new project from a .zip file. Raises ValueError if it is damaged or of another model."""
        fresh = Project(tokenizer_hash=self.hash, owner=owner)
        folder = self.library.folder(fresh)
        try:
            with zipfile.ZipFile(path) as file:
                if file.getinfo("project.json").file_size > LARGEST_PROJECT_FILE:
                    raise Refused(f"project.json: more than {LARGEST_PROJECT_FILE // MB} MB")
                project = parse(file.read("project.json"), "project.json")
                project.id, project.owner = fresh.id, owner
                if project.tokenizer_hash != self.hash:
                    raise Refused("a project of another model; open it in a studio of that model")
                if len(project.versions) > self.limits.max_versions:
                    raise Refused(f"{len(project.versions)} versions; a project may have {self.limits.max_versions}")
                names = _files(project)
                self.library.check_room(owner, sum(file.getinfo(name).file_size for name in names))
                for name in names:  # by the names that the project gives them: no other place is written
                    (folder / name).parent.mkdir(parents=True, exist_ok=True)
                    with file.open(name) as content, (folder / name).open("wb") as out:
                        shutil.copyfileobj(content, out)  # zipfile gives no more than the size that was checked
                self._check(project)
            return self.library.create(project)
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, KeyError):
                raise Refused(f"not a whole project: {error.args[0]}") from None
            if isinstance(error, UNREADABLE):
                raise Refused(f"not a project, or a damaged file ({error})") from None
            raise

    def _check(self, project: Project) -> None:
        """Raises ValueError for files that contradict a project or cannot be used."""
        for version in project.versions:
            path = self.library.codes_path(project, version.number)
            codes = sounds.read_codes(path, f"version {version.number}", self.tokenizer, self.limits)
            if (codes.n_samples, len(codes.levels)) != (version.n_samples, version.n_levels):
                raise Refused(f"version {version.number}: its codes are not those that the project describes")
            version.seconds = codes.seconds
            if version.kept and version.kept.source_start >= codes.n_samples:
                raise Refused(f"version {version.number}: what it keeps begins after its end")
            for start, end in version.kept.stretches if version.kept else []:
                if not 0 <= start < end <= codes.n_samples or start % codes.hop_lengths[-1]:
                    raise Refused(f"version {version.number}: its kept stretches are not within it")
        for recording in project.recordings:
            path = self.library.recording_path(project, recording)
            with sounds.named_as_uploaded(path, recording.name):
                info = audio_info(path)
            found = (info.sample_rate, min(info.channels, 2))
            most = self.limits.max_seconds * info.sample_rate
            if found != (recording.sample_rate, recording.channels) or recording.n_samples > most:
                raise Refused(f"{recording.name}: not the recording that the project describes")


def _version(codes: Codes, **facts: Any) -> Version:
    """A version of codes; it gets its number when it is added."""
    return Version(number=1, seconds=codes.seconds, n_samples=codes.n_samples, n_levels=len(codes.levels), **facts)


def _files(project: Project) -> list[str]:
    """The files of a project besides project.json, by their names in its folder."""
    codes = [f"codes/{version.number}.codes" for version in project.versions]
    return codes + [f"recordings/{recording.id}{recording.suffix}" for recording in project.recordings]


def training_bits(folder: Path) -> float | None:
    """Bits a second of the music a model was trained for, from its report or its card; None if they do not say."""
    try:
        if (folder / "report.json").is_file():
            levels = json.loads((folder / "report.json").read_text("utf-8"))["levels"]
            return sum(float(level["bits_per_second"]) for level in levels) or None
        rows = map(LEVEL_ROW.match, (folder / "README.md").read_text("utf-8").splitlines())
        return sum(float(row[2]) for row in rows if row) or None
    except (OSError, ValueError, KeyError, TypeError):
        return None
