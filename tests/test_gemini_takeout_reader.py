"""A row of Gemini's activity becomes a prompt and its answer; rows about something else are skipped."""

from __future__ import annotations

from typing import Any

from chatledger.transfer.html_text import html_text
from chatledger.transfer.records import ReadConversation, Rejected
from tests.foreign_files import conversation, outcomes, sample, spoken

ROW = {"header": "Gemini Apps", "products": ["Gemini Apps"], "time": "2026-10-02T08:15:30.123Z"}


def row(title: Any, html: str | None = None, **more: Any) -> dict[str, Any]:
    answered = {} if html is None else {"safeHtmlItem": [{"html": html}]}
    return {**ROW, "title": title, **answered, **more}


def test_the_sample_is_two_conversations_and_a_skipped_row() -> None:
    first, second, third = outcomes("gemini_takeout", *sample("gemini_takeout_MyActivity.json"))
    assert isinstance(first, ReadConversation)
    assert spoken(first.messages) == [
        ("user", "Why is the sky blue?"),
        ("assistant", "Because of Rayleigh scattering.\n\n- short waves scatter more"),
    ]
    assert first.created_at == first.messages[1].created_at is not None
    assert isinstance(second, ReadConversation)
    assert second.messages[0].parts == [
        {"subtitles": [{"name": "Attached 1 file."}, {"name": "-  IMG_1.jpg", "url": "IMG_1.jpg"}]},
        {"imageFile": "IMG_1.jpg"},
    ]
    assert isinstance(third, Rejected)
    assert (third.failed, third.reason, third.title) == (False, "no prompt", "Created Gemini Canvas titled Demo")


def test_a_known_prefix_is_cut_and_an_unknown_one_is_kept() -> None:
    for title, prompt in (
        ("Prompted  Prompted x ", " Prompted x "),
        ("Eingegebener Prompt: wie spät?", "wie spät?"),
        ("Запрос: x", "Запрос: x"),
    ):
        assert conversation("gemini_takeout", row(title, "<p>a</p>")).messages[0].content == prompt


def test_a_prompt_without_an_answer_is_a_conversation() -> None:
    assert spoken(conversation("gemini_takeout", row("Prompted hm")).messages) == [("user", "hm")]
    assert isinstance(outcomes("gemini_takeout", row("Used an app"))[0], Rejected)


def test_the_same_row_has_the_same_id_in_every_export() -> None:
    ids = [conversation("gemini_takeout", row(title, answer)).external_id for title, answer in (("a", "1"), ("a", "2"))]
    assert ids[0] == ids[1]
    assert conversation("gemini_takeout", row("b", "1")).external_id != ids[0]
    assert conversation("gemini_takeout", row("a", "1", time="2026-10-02T08:15:31Z")).external_id != ids[0]


def test_an_answer_that_is_no_html_is_a_part() -> None:
    found = conversation("gemini_takeout", row("Prompted x", safeHtmlItem=[{"html": "a"}, {"video": 1}, {"html": "b"}]))
    assert (found.messages[1].content, found.messages[1].parts) == ("a\n\nb", [{"video": 1}])


def test_html_is_the_text_that_a_reader_sees() -> None:
    for html, text in (
        ("<h2>T</h2><p>a<br>b&nbsp;&amp; <i>c</i></p>\n<p>d</p>", "T\n\na\nb\xa0& c\n\nd"),
        ("<ol><li>x<ul><li>y</li></ul></li><li><p>z</p></li></ol>end", "1. x\n  - y\n2. z\n\nend"),
        ("<pre><code>if a:\n   b &lt; c\n</code></pre>", "```\nif a:\n   b < c\n```"),
        ("<table><tr><th>a</th><th>b</th></tr><tr><td>1</td><td>2</td></tr></table>", "a | b\n1 | 2"),
        ("a<script>x</script><style>y</style>b", "ab"),
        ("<div>a</div><div>b</div>", "a\nb"),
        ("a &lt;b&gt; <unknown>c", "a <b> c"),
        ("<![x[ a <b>b</b>", "<![x[ a b"),
        ("<p>unclosed <b>bold", "unclosed bold"),
        ("</ul></li></pre></script>a", "a"),
        ("", ""),
    ):
        assert html_text(html) == text
