"""What a user names is read in place, sorted and bounded; what could do harm is refused in one sentence."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from chatledger.transfer import archive as archive_module
from chatledger.transfer import files
from chatledger.transfer.archive import Archive, Budget
from chatledger.transfer.content import HEAD_BYTES, JSON, ZIP, kind_of
from chatledger.transfer.files import Source, UnreadableSource, open_sources
from chatledger.transfer.json_stream import read_json
from chatledger.transfer.records import Record


def zipped(entries: dict[str, bytes | str], **about: int) -> bytes:
    """An archive; `about` sets fields of every entry."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as made:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            for field, value in about.items():
                setattr(info, field, value)
            made.writestr(info, content)
    return held.getvalue()


def found(path: Path) -> list[tuple[str, str, list[Record]]]:
    """The name from the path's folder on, the kind and the records of every file."""
    told = []
    with open_sources([path]) as sources:
        for each in sources:
            assert isinstance(each, Source), each
            records = list(each.records()) if each.kind == JSON else []
            told.append((each.name.removeprefix(f"{path.parent}/"), each.kind, records))
    return told


def refusal(path: Path) -> str:
    """Why it is refused before there is any file; the name is told beside it."""
    with pytest.raises(UnreadableSource) as refused, open_sources([path]):
        pass
    assert refused.value.name == str(path)
    assert str(refused.value) == f"{path}: {refused.value.reason}"
    return refused.value.reason


@pytest.fixture
def place(tmp_path: Path) -> Callable[[str, bytes | str], Path]:
    def put(name: str, content: bytes | str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return put


Place = Callable[[str, bytes | str], Path]


# ---- what is read --------------------------------------------------------------------------------------------------


def test_a_file_is_its_own_source(place: Place) -> None:
    path = place("x.bin", '[{"a": 1}]')
    assert found(path) == [("x.bin", JSON, [Record("element 1", {"a": 1})])]
    with open_sources([path]) as sources:
        (source,) = sources
        assert isinstance(source, Source)
        assert (source.given, source.alone, source.origin) == (path, True, ("x.bin", ()))
        assert list(source.records()) == list(source.records())


def test_a_folder_is_walked_sorted_and_without_links(place: Place, tmp_path: Path) -> None:
    place("all/b.json", "[1]")
    place("all/b/a.jsonl", '{"a":1}\n{"a":2}')
    place("all/a.png", b"\x89PNG\r\n\x1a\n")
    place("all/empty.json", "")
    place("elsewhere/secret.json", "[2]")
    (tmp_path / "all/link.json").symlink_to(tmp_path / "elsewhere/secret.json")
    (tmp_path / "all/linked").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "all/pipe.json")
    names = [(name, kind) for name, kind, _ in found(tmp_path / "all")]
    assert names == [
        ("all/a.png", "a PNG image"),
        ("all/b/a.jsonl", JSON),
        ("all/b.json", JSON),
        ("all/empty.json", "an empty file"),
    ]
    with open_sources([tmp_path / "all"]) as sources:
        each = next(sources)
        assert isinstance(each, Source)
        assert each.origin == ("a.png", ("a.png", "b/a.jsonl", "b.json", "empty.json"))
        assert not each.alone


def test_an_archive_is_known_by_its_content_and_read_in_place(place: Place) -> None:
    path = place(
        "export.json", zipped({"b/conversations.json": '[{"a":1},{"a":2}]', "b/": "", "a.png": b"\x89PNG\r\n\x1a\n"})
    )
    assert found(path) == [
        ("export.json: a.png", "a PNG image", []),
        ("export.json: b/conversations.json", JSON, [Record("element 1", {"a": 1}), Record("element 2", {"a": 2})]),
    ]
    with open_sources([path]) as sources:
        last = list(sources)[-1]
        assert isinstance(last, Source)
        assert last.origin == ("conversations.json", ("b/conversations.json", "a.png"))


def test_archives_are_looked_into_in_folders_and_one_level_deep_in_archives(place: Place, tmp_path: Path) -> None:
    inner = zipped({"c.json": "[1]", "deep.zip": zipped({"d.json": "[2]"})})
    place("all/export.zip", zipped({"conversations-000.zip": inner, "a.json": "[0]"}))
    place("all/z.json", "[3]")
    told = found(tmp_path / "all")
    assert [(name, [record.value for record in records]) for name, _, records in told] == [
        ("all/export.zip: a.json", [0]),
        ("all/export.zip: conversations-000.zip: c.json", [1]),
        ("all/export.zip: conversations-000.zip: deep.zip", []),
        ("all/z.json", [3]),
    ]
    assert told[2][1] == "a zip archive two levels deep, which is not read"


def test_separators_of_windows_are_accepted(place: Place) -> None:
    path = place("w.zip", zipped({"Takeout\\Gemini\\a.json": "[1]"}))
    assert [kind for _, kind, _ in found(path)] == [JSON]


def test_names_come_out_fit_for_a_terminal(place: Place) -> None:
    path = place("x\x1b[31m.zip", zipped({"a\x1b[0m.json": "[1]"}))
    ((name, _, _),) = found(path)
    assert name == "x\ufffd[31m.zip: a\ufffd[0m.json"


def test_records_come_while_the_file_is_read(place: Place) -> None:
    """Of a large file in an archive only a buffer's worth is unfolded for the first record."""
    elements = ", ".join(json.dumps({"n": n, "text": os.urandom(500).hex()}) for n in range(8_000))
    budget = Budget()
    opened = Archive(io.BytesIO(zipped({"a.json": f"[{elements}]"})), "x", budget)
    with opened.open(opened.entries[0]) as stream:
        records = read_json(stream)
        assert next(records).value["n"] == 0
        assert budget.size - budget.left <= 2 * 1024**2
        assert sum(1 for _ in records) == 7_999
    opened.close()
    assert budget.size - budget.left == len(f"[{elements}]")


# ---- what is refused -----------------------------------------------------------------------------------------------


def test_what_is_not_there_or_has_nothing_is_refused(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert refusal(tmp_path / "nowhere") == "there is no such file or folder"
    assert refusal(place("empty.json", "")) == "it is empty"
    (tmp_path / "folder/inner").mkdir(parents=True)
    assert refusal(tmp_path / "folder") == "it is a folder without files"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "it is neither a file nor a folder"
    path = place("locked.json", "[1]")

    def refuse(self: Path, *_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    assert refusal(path) == "it cannot be read: permission denied"


def test_one_path_that_is_refused_is_refused_before_any_other_is_read(place: Place, tmp_path: Path) -> None:
    with pytest.raises(UnreadableSource), open_sources([place("a.json", "[1]"), tmp_path / "nowhere"]):
        raise AssertionError("a file was given out")


def test_in_a_folder_what_cannot_be_read_is_told_and_the_rest_is_read(place: Place, tmp_path: Path) -> None:
    place("all/a.zip", zipped({"a.json": "[1]"})[:-30])
    place("all/b.json", "[2]")
    with open_sources([tmp_path / "all"]) as sources:
        broken, good = sources
    assert isinstance(broken, UnreadableSource)
    assert (broken.name, broken.reason) == (
        f"{tmp_path}/all/a.zip",
        "it is damaged or incomplete; download or copy it again",
    )
    assert isinstance(good, Source)


@pytest.mark.parametrize(
    "name",
    [
        "/etc/x.json",
        "../x.json",
        "a/../../x.json",
        "a\\..\\x.json",
        "C:\\x.json",
        "C:x.json",
        "\\\\host\\x.json",
        "a/..",
    ],
)
def test_names_that_lead_out_of_an_archive_are_refused(place: Place, name: str) -> None:
    path = place("x.zip", zipped({"good.json": "[1]", name: "[1]"}))
    assert "leads out of the archive" in refusal(path)


def test_a_name_with_a_null_character_is_refused(place: Place) -> None:
    assert "leads out" in refusal(place("x.zip", zipped({"a~b.json": "[1]"}).replace(b"a~b", b"a\x00b")))


@pytest.mark.parametrize("mode", [0o120777, 0o010644, 0o020644, 0o060644, 0o140644])
def test_links_and_special_files_are_refused(place: Place, mode: int) -> None:
    path = place("x.zip", zipped({"a.json": "/etc/passwd"}, external_attr=mode << 16))
    assert refusal(path) == "it has a link or a special file (a.json)"


def with_flag(data: bytes, flag: int) -> bytes:
    """The archive with a bit set in the flags of every entry, both where it stands and in the directory."""
    changed = bytearray(data)
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = changed.find(mark)
        while at >= 0:
            (flags,) = struct.unpack_from("<H", changed, at + offset)
            struct.pack_into("<H", changed, at + offset, flags | flag)
            at = changed.find(mark, at + 1)
    return bytes(changed)


@pytest.mark.parametrize("flag", [0x1, 0x40, 0x2000])
def test_encrypted_archives_are_refused(place: Place, flag: int) -> None:
    assert (
        refusal(place("x.zip", with_flag(zipped({"a.json": "[1]"}), flag)))
        == "it is encrypted; decrypt it first (a.json)"
    )


def test_compressions_that_are_rare_are_refused_where_they_may_hide_conversations(place: Place) -> None:
    rare = {"compress_type": zipfile.ZIP_LZMA}
    assert "compressed in a way that is not supported" in refusal(place("x.zip", zipped({"a.json": "[1]"}, **rare)))
    assert found(place("y.zip", zipped({"a.mov": "[1]"}, **rare)))[0][1] == "a file in an unknown compression"


def test_damage_is_told(place: Place) -> None:
    text = json.dumps([os.urandom(2_000).hex()])
    data = zipped({"a.json": text})
    again = "it is damaged or incomplete; download or copy it again"
    assert refusal(place("half.zip", data[: len(data) // 2])) == again
    assert refusal(place("none.zip", zipped({}))) == "it is an archive without files"
    middle = len(data) // 2
    path = place("flipped.zip", data[:middle] + bytes([data[middle] ^ 0xFF]) + data[middle + 1 :])
    with pytest.raises(UnreadableSource, match=r"a\.json in it is damaged; download or copy it again"):
        found(path)
    assert refusal(place("overwritten.zip", b"PK\x03\x04" + b"x" * 40 + data[44:])).endswith(
        "download or copy it again"
    )


def test_an_archive_of_too_many_files_is_refused_before_they_are_listed(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place("x.zip", zipped({f"{n}.json": "[1]" for n in range(5)}))
    monkeypatch.setattr(archive_module, "MOST_ENTRIES", 4)
    assert refusal(path) == "it has 5 files; the limit is 4"
    monkeypatch.setattr(archive_module, "_DIRECTORY_BYTES", 200)
    assert refusal(path) == "it has more than 4 files, or names of extreme length"


def test_more_json_than_the_limit_is_refused_by_what_the_archive_says_and_by_what_is_read() -> None:
    data = zipped({"a.json": f"[{'1, ' * 1_000}1]", "b.png": b"\x89PNG\r\n\x1a\n" + os.urandom(9_000)})
    with pytest.raises(UnreadableSource, match=r"^x: it holds 0\.0 GiB of JSON; the limit is 0\.0 GiB$"):
        Archive(io.BytesIO(data), "x", Budget(3_000))
    opened = Archive(io.BytesIO(data), "x", Budget(5_000))
    with opened.open(opened.entries[0]) as stream:
        assert len(stream.read(1_000_000)) == 3_003
    with (
        opened.open(opened.entries[0]) as stream,
        pytest.raises(UnreadableSource, match=r"unfolds to more than .*, the limit"),
    ):
        stream.read(1_000_000)


def test_a_bomb_is_stopped_while_it_unfolds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_module, "_RATIO_FROM", 1_000_000)
    budget = Budget()
    opened = Archive(io.BytesIO(zipped({"a.json": b'["' + b"a" * 20_000_000 + b'"]'})), "x", budget)
    with (
        opened.open(opened.entries[0]) as stream,
        pytest.raises(UnreadableSource, match="unfolds to more than 250 times its size"),
    ):
        list(read_json(stream))
    assert budget.size - budget.left < 8_000_000


@pytest.mark.parametrize("claimed", [100, 10_000])
def test_an_archive_that_understates_a_file_gives_no_more_than_it_states(claimed: int) -> None:
    text = b'["' + b"a" * 5_000_000 + b'"]'
    data = zipped({"a.json": text}).replace(struct.pack("<I", len(text)), struct.pack("<I", claimed))
    budget = Budget()
    with pytest.raises(UnreadableSource, match=r"a\.json in it is damaged"):  # noqa: PT012 - sooner or later
        opened = Archive(io.BytesIO(data), "x", budget)
        with opened.open(opened.entries[0]) as stream:
            stream.read(1_000_000)
    assert budget.size - budget.left <= claimed


def test_archives_in_an_archive_share_its_bounds(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = zipped({"a.json": json.dumps([os.urandom(3_000).hex()])})
    path = place("x.zip", zipped({"inner.zip": inner}))
    monkeypatch.setattr(files, "_INNER_BYTES", 1_000)
    too_large = "it is too large to be read inside another; take it out first"
    assert found(path)[0][1] == f"a zip archive that is not read: {too_large}"
    monkeypatch.setattr(files, "_INNER_BYTES", 100_000)
    monkeypatch.setattr(files, "Budget", lambda: Budget(7_000))
    assert found(path)[0][1] == "a zip archive that is not read: it holds 0.0 GiB of JSON; the limit is 0.0 GiB"


# ---- what a file is ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "kind"),
    [
        (b"", "an empty file"),
        (b" \n", "a file of white space"),
        (b'{"a": 1}', JSON),
        (b"\xef\xbb\xbf \n[", JSON),
        ("[1]".encode("utf-16"), JSON),
        (b'[\n  {\n "a"', JSON),
        (b"[NaN]", JSON),
        (b'rn","b":1}\n{"a":1}\n{"b', JSON),
        (b'null\n{"a":1}', JSON),
        (b'some text\n{"a":1} is JSON\nfor example', "plain text"),
        (b"# Title\n\n[link](x)", "plain text"),
        (b"[link](x)", "plain text"),
        (b"{% if %}", "plain text"),
        (b"<!DOCTYPE html>\n<html>", "an HTML page"),
        (b"\x1f\x8b\x08", "a gzip archive"),
        (b"PK\x03\x04", ZIP),
        (b"RIFF0000WEBPVP8", "an image in WebP"),
        (b"\x00\x01\x02\x03" * 9, "a file of unknown kind"),
        (("é" * HEAD_BYTES).encode()[: HEAD_BYTES - 1], "plain text"),
    ],
)
def test_a_file_is_known_by_how_it_begins(head: bytes, kind: str) -> None:
    assert kind_of(head) == kind
