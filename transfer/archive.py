"""A zip archive, read in place and never unpacked to disk.

An archive may have been made to do harm: names that lead out of it, links, small files that unfold without end. What
its directory says is checked before anything is read; what it cannot be trusted to say is measured while reading.
"""

from __future__ import annotations

import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, NamedTuple, cast

from chatledger.transfer.content import HEAD_BYTES, JSON, kind_of
from chatledger.transfer.json_stream import ByteStream

MOST_ENTRIES = 100_000  # chosen: an export has a file for each picture, some thousands
MOST_BYTES = 8 * 1024**3  # chosen: of JSON; more than a person and all models write in years
# Chosen: JSON shrinks to a fifth or a tenth, to a fiftieth where it repeats itself; deflate ends at 1:1,032.
MOST_RATIO = 250
_RATIO_FROM = 64 * 1024**2  # chosen: what small files unfold to does no harm, however well they are compressed
_DIRECTORY_BYTES = 16 * 1024**2  # chosen: MOST_ENTRIES with 160 bytes each; zipfile reads it at once
_STEP = 1024**2  # chosen: a bomb is stopped within a step

_ENCRYPTED = 0x1 | 0x40 | 0x2000  # APPNOTE 4.4.4: encrypted, strongly encrypted, with a masked directory
_DRIVE = re.compile(r"[A-Za-z]:")
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGED = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)


class UnreadableSource(Exception):
    """A file, folder or archive that is not read. The text is one sentence, which may be shown."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class Entry(NamedTuple):
    """A file in an archive."""

    name: str
    kind: str
    """As `kind_of` says."""
    info: zipfile.ZipInfo


class Budget:
    """How many bytes may still be read, of an archive and of those in it."""

    def __init__(self, size: int = MOST_BYTES) -> None:
        self.left = self.size = size


class Archive:
    """An archive whose names and sizes have been checked, open until it is closed.

    Raises:
        UnreadableSource: it is damaged, encrypted, dangerous or too large. So does reading from it.
    """

    def __init__(self, file: IO[bytes], name: str, budget: Budget | None = None) -> None:
        self.name = name
        self.budget = budget or Budget()
        self._counted = _Counted(file)
        try:
            self._zip = zipfile.ZipFile(cast("IO[bytes]", self._counted))
        except _TooMany:
            raise self._refused(f"it has more than {MOST_ENTRIES:,} files, or names of extreme length") from None
        except _DAMAGED:
            raise self._refused("it is damaged or incomplete; download or copy it again") from None
        infos = self._zip.infolist()
        if len(infos) > MOST_ENTRIES:
            raise self._refused(f"it has {len(infos):,} files; the limit is {MOST_ENTRIES:,}")
        for info in infos:
            self._check(info)
        files = [info for info in infos if not info.is_dir()]
        if not files:
            raise self._refused("it is an archive without files")
        self.entries = [Entry(_plain(info.filename), self._kind(info), info) for info in files]
        claimed = sum(entry.info.file_size for entry in self.entries if entry.kind == JSON)
        if claimed > self.budget.left:
            raise self._refused(f"it holds {_gib(claimed)} of JSON; the limit is {_gib(self.budget.size)}")

    @contextmanager
    def open(self, entry: Entry) -> Iterator[ByteStream]:
        """The content of a file, to be read once from its start. One file at a time."""
        with self._open(entry.info) as file:
            yield _Measured(self, entry.info, file, self._counted.count)

    def read(self, info: zipfile.ZipInfo, file: IO[bytes], size: int) -> bytes:
        try:
            return file.read(size)
        except _DAMAGED as exc:
            raise self._damaged(info) from exc

    def close(self) -> None:
        self._zip.close()

    def spend(self, size: int, unfolded: int, read_before: int) -> None:
        """Count what was read; `unfolded` bytes came of this file since the archive had read `read_before`."""
        self.budget.left -= size
        if self.budget.left < 0:
            raise self._refused(f"it unfolds to more than {_gib(self.budget.size)}, the limit")
        if unfolded > _RATIO_FROM and unfolded > MOST_RATIO * (self._counted.count - read_before):
            raise self._refused(f"it unfolds to more than {MOST_RATIO} times its size, which no export does")

    def _check(self, info: zipfile.ZipInfo) -> None:
        original = info.orig_filename
        name = _plain(original)
        shown = _shown(original)
        mode = info.external_attr >> 16  # Unix; 0 elsewhere
        if info.flag_bits & _ENCRYPTED:
            raise self._refused(f"it is encrypted; decrypt it first ({shown})")
        if not name or "\x00" in name or name.startswith("/") or _DRIVE.match(name) or ".." in name.split("/"):
            raise self._refused(f"it has a file whose name leads out of the archive ({shown})")
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise self._refused(f"it has a link or a special file ({shown})")
        if info.compress_type not in _COMPRESSIONS and _should_be_json(name):
            raise self._refused(f"{shown} in it is compressed in a way that is not supported; pack it again with zip")

    def _kind(self, info: zipfile.ZipInfo) -> str:
        if info.compress_type not in _COMPRESSIONS:
            return "a file in an unknown compression"
        with self._open(info) as file:
            return kind_of(self.read(info, file, HEAD_BYTES))

    def _open(self, info: zipfile.ZipInfo) -> IO[bytes]:
        try:
            return self._zip.open(info)
        except _DAMAGED as exc:
            raise self._damaged(info) from exc

    def _damaged(self, info: zipfile.ZipInfo) -> UnreadableSource:
        return self._refused(f"{_shown(info.filename)} in it is damaged; download or copy it again")

    def _refused(self, reason: str) -> UnreadableSource:
        return UnreadableSource(self.name, reason)


class _Measured:
    """What comes out of an archive, counted while it is read."""

    def __init__(self, archive: Archive, info: zipfile.ZipInfo, file: IO[bytes], read_before: int) -> None:
        self._archive, self._info, self._file, self._read_before = archive, info, file, read_before
        self._unfolded = 0

    def read(self, size: int, /) -> bytes:
        steps = []
        while size > 0 and (step := self._archive.read(self._info, self._file, min(size, _STEP))):
            self._unfolded += len(step)
            self._archive.spend(len(step), self._unfolded, self._read_before)
            steps.append(step)
            size -= len(step)
        return b"".join(steps)


class _TooMany(Exception):
    pass


class _Counted:
    """The archive's file, which counts what is read of it: its directory may lie about sizes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1, /) -> bytes:
        # zipfile reads the directory at once; everything else that it asks for is small, even "all that is left".
        if size > _DIRECTORY_BYTES:
            raise _TooMany
        data = self._file.read(_DIRECTORY_BYTES if size < 0 else size)
        self.count += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _plain(name: str) -> str:
    """With the separators that the standard demands; some programs on Windows write others (APPNOTE 4.4.17.1)."""
    return name.replace("\\", "/")


def _should_be_json(name: str) -> bool:
    return name.lower().endswith((".json", ".jsonl", ".ndjson"))


def _shown(name: str) -> str:
    """For a terminal, which would obey some characters."""
    return "".join(char if char.isprintable() else "\ufffd" for char in name[:200])


def _gib(size: int) -> str:
    return f"{size / 1024**3:.1f} GiB"
