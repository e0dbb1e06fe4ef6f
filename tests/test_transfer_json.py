"""A file of JSON comes out record by record, whatever its size and shape; what is no JSON costs only itself."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from chatledger.transfer.json_stream import read_json
from chatledger.transfer.records import Malformed, Record

MANY = settings(max_examples=100, deadline=None, database=None)

# What confuses a reader that looks for brackets and quotes.
AWKWARD = ['"', "\\", '\\"', "[{", "}]", ",", ":", "\x00", "\n", "é", "\U0001f389", "\ud83d", "\udc00", "12"]
TEXTS = st.one_of(st.text(max_size=8), st.lists(st.sampled_from(AWKWARD), max_size=6).map("".join))
SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXTS)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=12
)
# Twice through JSON, so that two halves of a pair are one character.
OBJECTS = st.dictionaries(TEXTS, VALUES, max_size=4).map(json.dumps).map(json.loads)
LAYOUTS = st.fixed_dictionaries({"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 0, 2, "\t"])})
SIZES = st.integers(1, 40)


class Trickle:
    """A stream that gives at most so many bytes at once, whatever is asked for."""

    def __init__(self, data: bytes, size: int) -> None:
        self._data, self._size = io.BytesIO(data), size

    def read(self, size: int, /) -> bytes:
        return self._data.read(min(size, self._size))


def records(text: str | bytes, size: int = 1 << 20, *, record_chars: int = 1 << 20) -> list[Record]:
    data = text.encode("utf-8", "replace") if isinstance(text, str) else text
    return list(read_json(Trickle(data, size), buffer_bytes=size, record_chars=record_chars))


def values(text: str | bytes, size: int = 1 << 20) -> list[Any]:
    return [record.value for record in records(text, size)]


def places(text: str | bytes) -> list[str]:
    return [record.place for record in records(text)]


def good(found: list[Record]) -> list[Any]:
    return [record.value for record in found if not isinstance(record.value, Malformed)]


def written(value: Any, layout: dict[str, Any]) -> str:
    """As JSON. Half a surrogate pair cannot be written but as an escape."""
    text = json.dumps(value, **layout)
    return json.dumps(value, indent=layout["indent"]) if any("\ud800" <= char <= "\udfff" for char in text) else text


# ---- what is JSON --------------------------------------------------------------------------------------------------


@MANY
@example([1.5e300, -0.25, 12], {"ensure_ascii": True, "indent": None}, 3)
@example(["\ud83d", "\ud83d\ude00", "a\\"], {"ensure_ascii": True, "indent": None}, 1)
@given(st.lists(VALUES, max_size=6), LAYOUTS, SIZES)
def test_an_array_gives_its_elements_however_it_is_laid_out_and_cut(
    elements: list[Any], layout: dict[str, Any], size: int
) -> None:
    text = written(elements, layout)
    found = records(text, size)
    assert [record.value for record in found] == json.loads(text)
    assert [record.place for record in found] == [f"element {n}" for n in range(1, len(elements) + 1)]


@MANY
@given(st.lists(OBJECTS, min_size=2, max_size=6), st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]), SIZES)
def test_lines_give_a_value_each_and_empty_ones_only_count(objects: list[Any], between: str, size: int) -> None:
    found = records(between.join(json.dumps(each) for each in objects), size)
    assert [record.value for record in found] == objects
    step = between.count("\n")
    assert [record.place for record in found] == [f"line {1 + n * step}" for n in range(len(objects))]


@MANY
@given(st.lists(OBJECTS, min_size=1, max_size=4), LAYOUTS, SIZES)
def test_documents_after_one_another_give_a_value_each(objects: list[Any], layout: dict[str, Any], size: int) -> None:
    text = "".join(written(each, layout) for each in objects)
    assert values(text, size) == [json.loads(written(each, layout)) for each in objects]


@MANY
@given(st.lists(OBJECTS, max_size=4), st.sampled_from(["utf-8-sig", "utf-16"]), st.booleans(), SIZES)
def test_a_byte_order_mark_tells_the_encoding(objects: list[Any], encoding: str, lines: bool, size: int) -> None:
    written = [json.dumps(each, ensure_ascii=False) for each in objects]
    text = "\n".join(written) if lines else f"[{','.join(written)}]"
    data = text.encode(encoding, "replace")
    assert values(data, size) == values(data.decode(encoding).encode(), size)


def test_a_value_by_itself_is_the_document() -> None:
    assert places('{"a": 1}') == places('\n {"a":\n 1}\n') == places('{"a": 1}\n\n') == ["document"]
    assert places('{"a":1}{"a":2}') == ["document 1", "document 2"]
    assert places('{\n"a":1}\n{"a":2}') == ["document 1", "document 2"]
    assert places('\n\n{"a":1}\n{"a":2}') == ["line 3", "line 4"]
    assert places("") == places(" \n ") == places("[]") == places("\ufeff[ ]") == []
    assert values("[1, 2]\n[3]") == [1, 2, 3]


def test_characters_that_cannot_be_stored_reach_the_importer() -> None:
    assert values('["a\\u0000", "\\ud83d", "\\udc00x", "\\ud83d\\ude00"]') == [
        "a\x00",
        "\ud83d",
        "\udc00x",
        "\U0001f600",
    ]
    assert values(b'["a\x00\n"]') == ["a\x00\n"]
    assert values(b'["\xff", 1]') == ["\ufffd", 1]
    assert values("[NaN, -Infinity]") == ["NaN", "-Infinity"]


# ---- what is not ---------------------------------------------------------------------------------------------------


@MANY
@given(
    st.lists(OBJECTS, min_size=1, max_size=4),
    st.integers(0, 4),
    SIZES,
    st.sampled_from(['{"a": ]}', "{'a': 1}", '{"a": 1,}', '{"a" 1}', "nul", '{"\\"a" "}]"}', "}"]),
)
def test_a_malformed_element_costs_only_itself(objects: list[Any], where: int, size: int, bad: str) -> None:
    pieces = [json.dumps(each) for each in objects]
    pieces.insert(where := min(where, len(pieces)), bad)
    found = records(f"[{', '.join(pieces)}]", size)
    assert good(found) == objects
    assert [record.place for record in found if isinstance(record.value, Malformed)] == [f"element {where + 1}"]


@MANY
@given(
    st.lists(OBJECTS, min_size=1, max_size=4),
    st.integers(0, 4),
    SIZES,
    st.sampled_from(['{"a": "torn', '{"a": {', "}", "\x00\x00", "log: started"]),
)
def test_a_torn_line_costs_only_itself(objects: list[Any], where: int, size: int, bad: str) -> None:
    pieces = [json.dumps(each) for each in objects]
    pieces.insert(where := min(where, len(pieces)), bad)
    found = records("\n".join(pieces), size)
    assert good(found) == objects
    assert [record.place for record in found if isinstance(record.value, Malformed)] == [f"line {where + 1}"]


@MANY
@given(st.lists(OBJECTS, min_size=1, max_size=3), st.integers(1, 60), SIZES)
def test_an_array_that_is_cut_off_keeps_what_is_whole_and_says_so(objects: list[Any], kept: int, size: int) -> None:
    text = json.dumps(objects)
    found = records(text[: min(kept, len(text) - 1)], size)
    assert isinstance(found[-1].value, Malformed)
    assert "cut off" in found[-1].value.reason
    assert good(found) == objects[: len(found) - 1]


def test_it_says_what_is_wrong_and_where() -> None:
    assert records('[{"a": 1}, {"a" 2}]')[1] == (
        "element 2", Malformed("is not valid JSON: Expecting ':' delimiter at its character 6"))  # fmt: skip
    assert records('{"a":1}\n{"a" 2}')[1].value == Malformed(
        "is not valid JSON: Expecting ':' delimiter at its character 6"
    )
    assert records('[{"a": 1}] and so on')[1] == ("after the array", Malformed("stands text that belongs to nothing"))
    assert records('[{"a": 1},')[1] == ("the end", Malformed("is cut off: the file is incomplete"))


@pytest.mark.parametrize("bracket", ["[", '{"a":', "[{"])
def test_depth_is_no_danger(bracket: str) -> None:
    deep = bracket * 100_000
    closed = deep + "1" + "".join("]" if each == "[" else "}" for each in reversed(deep) if each in "[{")
    assert isinstance(values(f"[{closed}, 7]")[0], Malformed)
    assert values(f"[{closed}, 7]")[1] == 7
    assert isinstance(values(f'{{"a":1}}\n{closed}\n{{"b":1}}')[1], Malformed)
    assert isinstance(records(deep)[0].value, Malformed)


def test_a_number_of_too_many_digits_costs_only_itself() -> None:
    assert values(f"[{'9' * 5_000}, 7]") == [Malformed("has a number of too many digits"), 7]


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_a_record_over_the_limit_is_passed_without_being_held(size: int) -> None:
    long = json.dumps({"a": "x" * 900, "b": [1, 2, '"]']})
    too_long = Malformed("is longer than 500 characters")

    def found(text: str) -> list[Any]:
        return [each.value for each in records(text, size if size < 1 << 20 else 100, record_chars=500)]

    assert found(f'[{{"a":1}}, {long}, {{"b":2}}]') == [{"a": 1}, too_long, {"b": 2}]
    assert found(f'{{"a":1}}\n{long}\n{{"b":2}}') == [{"a": 1}, too_long, {"b": 2}]
    assert found(f'{long}\n{{"b":2}}') == [too_long, {"b": 2}]
    assert found(long) == [too_long]


@pytest.mark.parametrize("size", range(1, 40))
def test_the_way_out_of_what_is_malformed_heeds_escapes_wherever_it_is_cut(size: int) -> None:
    found = records(r'[{"a" 1, "b\"]": ["c\\", "\\\"}"], "d": "\u0022"}, 7]', size)
    assert [isinstance(each.value, Malformed) for each in found] == [True, False]
    assert found[1].value == 7


def test_a_long_record_is_read_in_ever_larger_steps() -> None:
    class Counted(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            return super().read(size)

    stream = Counted(json.dumps({"a": "x" * 1_000_000}).encode())
    assert len(list(read_json(stream, buffer_bytes=1_000))) == 1
    assert stream.reads < 30


def test_a_string_that_never_ends_is_not_held_beyond_the_limit() -> None:
    class Endless:
        asked = 0

        def read(self, size: int, /) -> bytes:
            self.asked = max(self.asked, size)
            self.given = getattr(self, "given", 0) + size
            return b"" if self.given > 50_000_000 else (b'["' if self.given == size else b"x" * size)

    stream = Endless()
    found = list(read_json(stream, buffer_bytes=1_000, record_chars=100_000))
    assert found == [("element 1", Malformed("is cut off: the file is incomplete"))]
    assert stream.asked < 300_000
