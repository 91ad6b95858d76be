"""Many files through one function: where each result goes, and one bad file never stops the rest."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from allosr2.cli.console import describe, errors_console
from allosr2.errors import AlloSR2Error, ConfigError

logger = logging.getLogger(__name__)


def plan(inputs: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """Pair each input file with its target.

    One file goes to the file `output`, or under its own name into `output` if that is a folder. Several
    files, or the images of one folder, go into the folder `output` as PNG.

    Raises ConfigError if two results would share a name or one would replace an input, ImageError for
    a folder that cannot be read.
    """
    from allosr2.imaging.io import FORMAT_OF_SUFFIX, find_images

    folders = [path for path in inputs if path.is_dir()]
    if folders and len(inputs) > 1:
        raise ConfigError(f"{folders[0]} is a folder: name one folder alone, or files")
    sources = find_images(folders[0]) if folders else list(inputs)
    if not sources:
        raise ConfigError(f"{inputs[0]} holds no image; name a folder with images")
    if not folders and len(sources) == 1 and not output.is_dir():
        pairs = [(sources[0], output)]
    elif output.suffix.lower() in FORMAT_OF_SUFFIX and not output.is_dir():
        raise ConfigError(f"--output is {output}: {_count(sources)} need a folder; name one")
    else:
        pairs = [(source, output / f"{source.stem}.png") for source in sources]
    _refuse_collisions(pairs)
    return pairs


def for_each(pairs: Sequence[tuple[Path, Path]], work: Callable[[Path, Path], None]) -> int:
    """Make the targets' folder and run `work(source, target)` on every pair; list the failures at the end.

    Returns the exit code: 0, or the first failure's. Raises ConfigError if the folder cannot be made.
    """
    folder = pairs[0][1].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--output: {folder} cannot be made ({error.strerror}); choose another folder"
        ) from error
    failures: list[tuple[Path, Exception]] = []
    for source, target in pairs:
        try:
            work(source, target)
        except Exception as error:  # whatever one file does, the others are still wanted
            logger.debug("%s failed", source, exc_info=True)
            failures.append((source, error))
    if not failures:
        return 0
    for source, error in failures:
        reason = describe(error)
        named = reason if str(source) in reason else f"{source}: {reason}"
        errors_console().print(f"allosr2: error: {named}")
    if len(pairs) > 1:
        errors_console().print(f"allosr2: {len(pairs) - len(failures)} of {len(pairs)} images done")
    first = failures[0][1]
    return first.exit_code if isinstance(first, AlloSR2Error) else 1


def _refuse_collisions(pairs: Sequence[tuple[Path, Path]]) -> None:
    inputs = {source.resolve() for source, _ in pairs}
    source_of: dict[Path, Path] = {}
    for source, target in pairs:
        if target.resolve() in inputs:
            raise ConfigError(f"--output: {target} would replace an input; choose another folder")
        if target in source_of:
            raise ConfigError(
                f"{source_of[target]} and {source} would both be written to {target}; "
                "rename one or enlarge them one by one"
            )
        source_of[target] = source


def _count(sources: Sequence[Path]) -> str:
    return "the images of a folder" if len(sources) == 1 else f"{len(sources)} images"
