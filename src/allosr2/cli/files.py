"""Where the result of each input goes, and what to do about files that are there already."""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Literal, NamedTuple

from allosr2.cli.console import describe, errors_console
from allosr2.errors import AlloSR2Error, ConfigError
from allosr2.pipeline import Job, Outcome

logger = logging.getLogger(__name__)

STREAM = Path("-")
"""As an input stdin, as the output stdout."""

SUFFIX_OF_FORMAT = {
    "png": ".png",
    "jpeg": ".jpg",
    "webp": ".webp",
    "tiff": ".tif",
    "bmp": ".bmp",
    "avif": ".avif",
}
Format = Literal["png", "jpeg", "webp", "tiff", "bmp", "avif", "same"]
Existing = Literal["skip", "overwrite", "error"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Naming:
    """How results are called."""

    format: Format | None = None
    """What their suffixes say; None is PNG in folders, and for a single file what its target says."""
    suffix: str = ""
    """Put behind each stem: "_x4" makes `a_x4.png` of `a.png`."""
    recursive: bool = False
    """Read folders with the folders inside them, and write the same tree."""

    def __post_init__(self) -> None:
        if "/" in self.suffix or "\\" in self.suffix:
            raise ConfigError(f"--suffix is {self.suffix}: use no slash, such as _x4")

    def name(self, source: Path) -> str:
        """The file name of a source's result in a folder."""
        kept = source.suffix if self.format == "same" else SUFFIX_OF_FORMAT[self.format or "png"]
        return f"{source.stem}{self.suffix}{kept}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Everything to do, in the order of the inputs."""

    jobs: tuple[Job, ...]
    folder: Path | None
    """The folder that a run holds for its results; None for a single file that is named, and for stdout."""


def plan_jobs(
    inputs: Sequence[Path],
    output: Path,
    naming: Naming | None = None,
    source_of: Callable[[Path], Path | None] = lambda _: None,
) -> Plan:
    """Give each input its target.

    An input is a file, a folder, a pattern such as `photos/*.jpg`, or `-`, which is stdin. A single file
    goes to the file `output`, or into `output` if that is a folder, or to stdout if it is `-`; everything
    else goes into the folder `output`. Hidden files are left out, and links to folders are not followed.
    An input that is named twice, however it is written, is done once.

    What earlier runs made in `output` is no input of a folder or a pattern, nor is what lies in `output`,
    if that lies in a folder that is searched. Nor is a file, though named itself, that was made from
    another input: a shell writes out its patterns so.

    Args:
        inputs: one or more.
        output: a file, a folder that need not exist, or `-`.
        naming: how results are called.
        source_of: what an earlier run made a file from, as `Manifest.source_of`.

    Raises:
        ConfigError: for a folder or a pattern without images, results that would share a name or
            replace an input, and an output that cannot hold them or whose suffix says no format.
        ImageError: for a folder that cannot be read.
    """
    naming = naming or Naming()
    names = _names(inputs, naming, output, source_of)
    first = next(iter(names))
    several = len(names) > 1 or any(path.is_dir() for path in inputs)
    if output == STREAM:
        if several:
            raise ConfigError("--output is -: stdout takes one image; name a folder for several")
        return Plan(jobs=(Job(source=_file_or_stream(first), target=None),), folder=None)
    named_alone = len(inputs) == 1 and not several and not _is_pattern(inputs[0])
    if not output.is_dir():
        is_file = output.exists() or _suffix_known(output)
        if several and is_file:
            count = f"{len(names)} images" if len(names) > 1 else "the images of a folder"
            raise ConfigError(f"--output is {output}: {count} need a folder; name one")
        if named_alone or (is_file and not several):
            _check_file(output, naming)
            return Plan(jobs=_checked({first: output}), folder=None)
    targets = {source: output / name for source, name in names.items()}
    # several commands of one file each may well write into one folder at once
    return Plan(jobs=_checked(targets), folder=None if named_alone else output)


def plan(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """Pair each input file with its target, for verbs that know no streams; else as `plan_jobs`."""
    if STREAM in (*inputs, output):
        raise ConfigError("- (stdin or stdout) is for `upscale`; name a file or a folder")
    jobs = plan_jobs(inputs, output).jobs
    return [(job.source, job.target) for job in jobs if job.source and job.target]


def sort_out(
    jobs: Iterable[Job], existing: Existing, is_done: Callable[[Path, Path], bool]
) -> tuple[list[Job], list[Outcome]]:
    """The jobs that are to be done, and outcomes of those that are passed over.

    Args:
        jobs: all of them.
        existing: what to do about a target that exists: pass it over, replace it, or refuse the run.
        is_done: whether a target is what the run would make of a source; it is always passed over.

    Raises:
        ConfigError: naming the first target that exists, if that is refused.
    """
    to_do: list[Job] = []
    passed_over: list[Outcome] = []
    in_the_way: list[Path] = []
    for job in jobs:
        source, target = job.source, job.target
        if target is None or not os.path.lexists(target):
            to_do.append(job)
        elif source is not None and is_done(source, target):
            passed_over.append(Outcome(job=job, status="skipped", notes=("done before",)))
        elif existing == "skip":
            passed_over.append(Outcome(job=job, status="skipped", notes=("exists",)))
        else:
            in_the_way.append(target)
            to_do.append(job)
    if in_the_way and existing == "error":
        others = f" and {len(in_the_way) - 1} more" if len(in_the_way) > 1 else ""
        raise ConfigError(
            f"{in_the_way[0]}{others} would be replaced; add --existing overwrite to replace what exists, "
            "or --existing skip to keep it"
        )
    return to_do, passed_over


def make_folder(folder: Path) -> None:
    """Make the folder that receives results. Raises ConfigError if it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output: {folder} cannot be made ({error.strerror}); choose another folder"
        ) from error


def list_failures(failures: Sequence[tuple[str, Exception]]) -> int:
    """Say what failed, a line each; returns the exit code: 0, or the first failure's."""
    for name, error in failures:
        reason = describe(error)
        named = reason if name in reason else f"{name}: {reason}"
        errors_console().print(f"allosr2: error: {named}")
    if not failures:
        return 0
    first = failures[0][1]
    return first.exit_code if isinstance(first, AlloSR2Error) else 1


def for_each(pairs: Sequence[tuple[Path, Path]], work: Callable[[Path, Path], None]) -> int:
    """Make the targets' folder and run `work(source, target)` on every pair; list the failures at the end.

    Returns the exit code: 0, or the first failure's. Raises ConfigError if the folder cannot be made.
    """
    make_folder(pairs[0][1].parent)
    failures: list[tuple[str, Exception]] = []
    for source, target in pairs:
        try:
            work(source, target)
        except Exception as error:  # whatever one file does, the others are still wanted
            logger.debug("%s failed", source, exc_info=True)
            failures.append((str(source), error))
    exit_code = list_failures(failures)
    if failures and len(pairs) > 1:
        errors_console().print(f"allosr2: {len(pairs) - len(failures)} of {len(pairs)} images done")
    return exit_code


class _Candidate(NamedTuple):
    """A file that may be an input."""

    source: Path
    name: Path
    """Of its result in the folder of results."""
    searched: Path | None
    """The folder, resolved, in which it was found; None if it was named itself."""


def _names(
    inputs: Sequence[Path],
    naming: Naming,
    output: Path,
    source_of: Callable[[Path], Path | None],
) -> dict[Path, Path]:
    """Each source, and where its result goes in a folder; one named twice keeps its first place."""
    from allosr2.storage import located

    candidates: dict[Path, _Candidate] = {}
    for path in inputs:
        for candidate in _candidates(path, naming):
            candidates.setdefault(located(candidate.source), candidate)
    results = output.resolve()

    def is_result(place: Path, searched: Path | None) -> bool:
        made_from = source_of(place)
        if searched is None:  # it is asked for by name, unless a shell named everything
            return made_from in candidates
        inside = results != searched and results.is_relative_to(searched)
        return made_from is not None or (inside and place.resolve().is_relative_to(results))

    names = {
        candidate.source: candidate.name
        for place, candidate in candidates.items()
        if not is_result(place, candidate.searched)
    }
    if not names:
        raise ConfigError(
            f"{', '.join(map(str, inputs))}: nothing but results of earlier runs; "
            "name one of them to enlarge it again"
        )
    return names


def _candidates(path: Path, naming: Naming) -> list[_Candidate]:
    """What an input stands for: a folder for its images, a pattern for what it matches, a file for itself."""
    if path.is_dir():
        found = _images(path, naming, path)
        if not found:
            remedy = (
                "name a folder with images"
                if naming.recursive
                else "name another, or add -r for folders in it"
            )
            raise ConfigError(f"{path} holds no image; {remedy}")
        return found
    if not _is_pattern(path):
        named = Path("stdin.png") if path == STREAM else path
        return [_Candidate(path, Path(naming.name(named)), None)]

    matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))  # noqa: PTH207 - absolute ones too
    if not matches:
        raise ConfigError(f"{path} matches no file; check the pattern")
    searched = Path(*takewhile(lambda part: not glob.has_magic(part), path.parts))
    found: list[_Candidate] = []
    for match in matches:
        if match.is_dir():
            found += _images(match, naming, searched)
        elif _suffix_known(match):  # `photos/*` takes in what was not asked for by name
            found.append(_Candidate(match, Path(naming.name(match)), searched.resolve()))
    if not found:
        raise ConfigError(f"{path} matches no image; check the pattern")
    return found


def _images(folder: Path, naming: Naming, searched: Path) -> list[_Candidate]:
    """The images of a folder."""
    from allosr2.imaging.io import find_images

    return [
        _Candidate(
            image,
            image.relative_to(folder).with_name(naming.name(image)),
            searched.resolve(),
        )
        for image in find_images(folder, recursive=naming.recursive)
    ]


def _is_pattern(path: Path) -> bool:
    return glob.has_magic(str(path)) and not path.exists()


def _suffix_known(path: Path) -> bool:
    from allosr2.imaging.io import FORMAT_OF_SUFFIX

    return path.suffix.lower() in FORMAT_OF_SUFFIX


def _check_file(output: Path, naming: Naming) -> None:
    """Refuse what contradicts the name of a single target."""
    from allosr2.imaging.io import FORMAT_OF_SUFFIX

    if naming.suffix:
        raise ConfigError(
            f"--suffix is {naming.suffix}, but --output is the whole name {output}; leave --suffix out"
        )
    named, asked = FORMAT_OF_SUFFIX.get(output.suffix.lower()), naming.format
    if named is None and asked is None:
        if not output.suffix and not output.exists():
            raise ConfigError(
                f"--output: no folder {output}; make it, or name a file such as {output}.png"
            )
        raise ConfigError(
            f"--output is {output}: unknown suffix; use one of {', '.join(SUFFIX_OF_FORMAT.values())}"
        )
    if asked not in (None, "same") and named not in (None, asked.upper()):
        raise ConfigError(f"--format is {asked}, but --output is {output}; leave one of them out")


def _checked(targets: dict[Path, Path]) -> tuple[Job, ...]:
    """The jobs, if no result would take another's place or an input's."""
    inputs = {_identity(source): source for source in targets if source != STREAM}
    source_of: dict[str, Path] = {}
    for source, target in targets.items():
        if target.exists() and _identity(target) in inputs:
            raise ConfigError(
                f"--output: {target} would replace an input; choose another folder, or add --suffix _x4"
            )
        # many disks do not tell A.png from a.png
        first = source_of.setdefault(str(target).casefold(), source)
        if first != source:
            differ = first.suffix.casefold() != source.suffix.casefold()
            remedy = "add --format same" if differ else "give each a folder of results"
            raise ConfigError(
                f"{first} and {source} would both be written to {target}; rename one, or {remedy}"
            )
    return tuple(
        Job(source=_file_or_stream(source), target=target) for source, target in targets.items()
    )


def _identity(path: Path) -> tuple[int, int] | Path:
    """The same for two names of one file, however they are written."""
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino


def _file_or_stream(source: Path) -> Path | None:
    return None if source == STREAM else source
