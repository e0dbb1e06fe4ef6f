"""From what a user names to the files that may hold conversations: single files, folders, zip archives."""

from __future__ import annotations

import errno
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from chatledger.transfer.archive import Archive, Budget, Entry, UnreadableSource
from chatledger.transfer.content import EMPTY, HEAD_BYTES, ZIP, kind_of
from chatledger.transfer.json_stream import ByteStream, read_json
from chatledger.transfer.records import Origin, Record

# Chosen: an archive in an archive is held in memory, as it is compressed.
_INNER_BYTES = 128 * 1024 * 1024

_STEP = 1024 * 1024  # chosen: few calls, little memory
_SPACE = b" \t\r\n\x00\xef\xbb\xbf\xff\xfe"  # white space and the marks and zeros of the encodings

_REASONS = {
    errno.ENOENT: "there is no such file or folder",
    errno.EACCES: "it cannot be read: permission denied",
}

__all__ = ["Source", "UnreadableSource", "open_sources"]


@dataclass(frozen=True, slots=True)
class Source:
    """A file, to be read before the next one is asked for."""

    given: Path
    """What the user named: the file itself, or the folder or archive that it is in."""
    name: str
    """For a report, fit for a terminal."""
    alone: bool
    """The user named this very file."""
    origin: Origin
    """`assets` are the names of all files of its archive or folder, itself among them."""
    kind: str
    """As `kind_of` says, or why it was not looked into."""
    open: Callable[[], AbstractContextManager[ByteStream]]
    size: int
    """In bytes, as its folder or archive says."""

    def records(self, told: Callable[[int], object] | None = None) -> Iterator[Record]:
        """As `read_json` gives them, from the start of the file at each call. `told` is told of all bytes read so far.

        Raises:
            UnreadableSource: while it is read: the disk failed, or the archive is damaged or made to do harm.
        """
        with self.open() as stream:
            yield from read_json(stream if told is None else _Counted(stream, told))

    def is_cut_off(self) -> bool:
        """Whether it is an array that does not end. Reads all of the file, as nothing of such a one is imported.

        Raises:
            UnreadableSource: as `records`; an archive's checksums are compared on the way.
        """
        first, last = b"", b""
        with self.open() as stream:
            while data := stream.read(_STEP):
                text = data.strip(_SPACE)
                first, last = first or text[:1], text[-1:] or last
        return first == b"[" and last != b"]"


class _Counted:
    def __init__(self, stream: ByteStream, told: Callable[[int], object]) -> None:
        self._stream, self._told, self._read = stream, told, 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self._read += len(data)
        self._told(self._read)
        return data


@contextmanager
def open_sources(paths: Iterable[Path]) -> Iterator[Iterator[Source | UnreadableSource]]:
    """The files in what was named, in its order and sorted inside folders and archives, of whatever kind.

    Folders are walked with all below them, without following links. Archives in a folder are looked into, and so are
    those in an archive, one level deep. What cannot be read in a folder comes as the reason for that.

    Raises:
        UnreadableSource: a path is not there, cannot be read or has no files, or an archive among them is refused. All
            is checked that can be without reading the files; only then comes the first one.
    """
    with ExitStack() as opened:
        found = [_look(Path(path), opened) for path in paths]
        with closing(source for sources in found for source in sources) as each:
            yield each


def _look(path: Path, opened: ExitStack) -> Iterator[Source | UnreadableSource]:
    name = _shown(str(path))
    with _explained(name):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            files = sorted(_walk(path))
            if not files:
                raise UnreadableSource(name, "it is a folder without files")
            return _in_folder(path, files)
        if not stat.S_ISREG(mode):
            raise UnreadableSource(name, "it is neither a file nor a folder")
        kind = _kind(path)
        if kind == EMPTY:
            raise UnreadableSource(name, "it is empty")
        if kind == ZIP:
            archive = opened.enter_context(_opened_archive(path))
            return _in_archive(path, archive)
    size = path.stat().st_size
    return iter([Source(path, name, True, Origin(path.name), kind, lambda: _opened(path), size)])


def _walk(folder: Path) -> Iterator[tuple[str, ...]]:
    """The files below a folder, as the names on the way to each: sorted so, a folder's files stand together."""

    def failed(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=failed):
        for name in names:
            file = Path(parent, name)
            if stat.S_ISREG(file.lstat().st_mode):
                yield file.relative_to(folder).parts


def _in_folder(folder: Path, files: list[tuple[str, ...]]) -> Iterator[Source | UnreadableSource]:
    assets = tuple("/".join(parts) for parts in files)
    for parts in files:
        path = folder.joinpath(*parts)
        name = _shown(str(path))
        try:
            with _explained(name):
                kind = _kind(path)
            if kind == ZIP:
                with _opened_archive(path) as archive:
                    yield from _in_archive(folder, archive)
            else:
                size = path.stat().st_size
                yield Source(folder, name, False, Origin(path.name, assets), kind, _opener(path), size)
        except UnreadableSource as exc:
            yield exc


def _in_archive(given: Path, archive: Archive, *, inner: bool = False) -> Iterator[Source]:
    assets = tuple(entry.name for entry in archive.entries)
    for entry in sorted(archive.entries, key=lambda entry: entry.name.split("/")):
        name = f"{archive.name}: {_shown(entry.name)}"
        kind = entry.kind
        if kind == ZIP:
            if inner:
                kind = f"{ZIP} two levels deep, which is not read"
            else:
                try:
                    held = _held(archive, entry, name)
                except UnreadableSource as exc:
                    kind = f"{ZIP} that is not read: {exc.reason}"
                else:
                    with closing(held):
                        yield from _in_archive(given, held, inner=True)
                    continue
        origin = Origin(PurePosixPath(entry.name).name, assets)
        yield Source(given, name, False, origin, kind, _entry_opener(archive, entry), entry.info.file_size)


def _held(archive: Archive, entry: Entry, name: str) -> Archive:
    """An archive in an archive, in memory: in place, each step back in it would unfold it from its start."""
    with archive.open(entry) as stream:
        data = stream.read(_INNER_BYTES + 1)
    if len(data) > _INNER_BYTES:
        raise UnreadableSource(name, "it is too large to be read inside another; take it out first")
    return Archive(io.BytesIO(data), name, archive.budget)


@contextmanager
def _opened_archive(path: Path) -> Iterator[Archive]:
    with path.open("rb") as file, closing(Archive(file, _shown(str(path)), Budget())) as archive:
        yield archive


@contextmanager
def _opened(path: Path) -> Iterator[ByteStream]:
    with _explained(_shown(str(path))), path.open("rb") as file:
        yield file


def _opener(path: Path) -> Callable[[], AbstractContextManager[ByteStream]]:
    return lambda: _opened(path)


def _entry_opener(archive: Archive, entry: Entry) -> Callable[[], AbstractContextManager[ByteStream]]:
    return lambda: archive.open(entry)


def _kind(path: Path) -> str:
    with path.open("rb") as file:
        return kind_of(file.read(HEAD_BYTES))


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turns what the system says into a sentence."""
    try:
        yield
    except OSError as exc:
        reason = _REASONS.get(exc.errno or 0) or f"it cannot be read: {exc.strerror or exc}"
        raise UnreadableSource(_shown(exc.filename) if isinstance(exc.filename, str) else name, reason) from exc


def _shown(name: str) -> str:
    """For a terminal, which would obey some characters."""
    return "".join(char if char.isprintable() else "\ufffd" for char in name)
