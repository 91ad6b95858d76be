"""Damaged photographs: each is said and listed once, and too many stop the run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from allosr2.data.pairs import Batch
from allosr2.data.photos import BadPhoto, HRImages
from allosr2.errors import DataError

logger = logging.getLogger(__name__)

ENOUGH = 200
"""Photographs to be opened before their damaged part tells of all: where 10% are, chance makes it 20% in
fewer than one of 10,000 runs."""


class Quarantine:
    """The list of a run's damaged photographs.

    It is a text file, a JSON object a line, that a run which is resumed goes on with. Processes that train
    together write into the same file, and each passes over what it finds there; only of two that meet a
    photograph at the same moment both may list it. What all find at the start the leader alone lists.
    """

    def __init__(
        self, path: Path, images: HRImages, bad_fraction: float, *, leads: bool = True
    ) -> None:
        """List the photographs whose headers cannot be read.

        Args:
            path: the list, whose folder exists.
            images: what the run trains on.
            bad_fraction: fraction of the photographs that may be damaged, in [0, 1].
            leads: whether this process is the one that lists them.

        Raises:
            DataError: if more are.
        """
        self._path = path
        self._bad_fraction = bad_fraction
        self._unreadable = images.folder.unreadable if images.folder else ()
        self._readable = len(images.folder.photos) if images.folder else 0
        self._opened: set[str] = set()
        self._bad: set[str] = set()
        """Of those opened."""
        self._listed: set[str] = set()
        self._read = 0
        """Bytes of the list that were read."""
        if leads:
            self._list(self._unreadable)
        self._check()

    def note(self, batch: Batch) -> None:
        """Take down what a batch opened.

        Raises DataError if too many photographs are damaged: more than the fraction of all of them, or of the
        `ENOUGH` or more that this process has opened (with those of unreadable headers counted in).
        """
        self._opened.update(batch.photos)
        self._bad.update(bad.photo for bad in batch.bad)
        if batch.bad:
            self._list(batch.bad)
            self._check()

    def _check(self) -> None:
        unreadable, opened, bad = len(self._unreadable), len(self._opened), len(self._bad)
        photographs = self._readable + unreadable
        allowed = self._bad_fraction * photographs
        expected = unreadable + (self._readable * bad / opened if opened >= ENOUGH else bad)
        if expected <= allowed:
            return
        found = [f"{unreadable} of {photographs} have unreadable headers"] if unreadable else []
        found += [f"{bad} of {opened} opened so far are damaged"] if bad else []
        names = [bad.photo for bad in self._unreadable] + sorted(self._bad)
        raise DataError(
            f"too many damaged photographs: {' and '.join(found)} ({', '.join(names[:3])}"
            f"{', ...' if len(names) > 3 else ''}), more than {self._bad_fraction:.0%}; {self._path} lists "
            "them: put whole ones in their places, or raise --bad-fraction"
        )

    def _list(self, found: Sequence[BadPhoto]) -> None:
        """Add to the list, and say, what is not there yet."""
        if not found:
            return
        torn = self._read_list()
        lines: list[str] = []
        for bad in found:
            if bad.photo not in self._listed:
                self._listed.add(bad.photo)
                logger.warning("%s; others take its place", bad.reason)
                lines.append(json.dumps({"photograph": bad.photo, "reason": bad.reason}) + "\n")
        if not lines:
            return
        text = ("\n" if torn else "") + "".join(lines)
        # all in one call, which other processes' calls do not interrupt
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)

    def _read_list(self) -> bool:
        """Read what was added to the list; returns whether its last line was cut off by a kill."""
        if not self._path.exists():
            return False
        with self._path.open("rb") as file:
            file.seek(self._read)
            *lines, rest = file.read().split(b"\n")
        self._read += sum(len(line) + 1 for line in lines)
        for line in lines:
            try:
                self._listed.add(json.loads(line)["photograph"])
            except (ValueError, KeyError, TypeError):
                continue  # the beginning of a line
        return bool(rest)
