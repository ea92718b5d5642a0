from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.pieces import NEWLINE_OR_WORD, num_words, pieces


@settings(deadline=None)
@given(st.text(max_size=200), st.integers(1, 30))
def test_pieces_give_the_text_back_and_stay_small(text: str, size: int) -> None:
    parts = list(pieces(text, size))
    assert "".join(parts) == text
    assert all(parts)
    assert max(map(len, parts), default=0) <= 2 * size


@settings(deadline=None)
@given(st.text("ab1 .\n", max_size=200), st.integers(1, 30))
def test_pieces_end_at_the_end_of_a_word_when_they_can(text: str, size: int) -> None:
    for part, following in zip(pieces(text, size), list(pieces(text, size))[1:], strict=False):
        if len(part) < 2 * size:
            assert part[-1].isalnum()
            assert following[0].isspace()
            assert len(part) >= size


def test_words_are_separated_by_unicode_white_space_only() -> None:
    assert num_words(" one\u2028two\u3000three\x85 f\x1cour\u200b\n") == 4
    assert NEWLINE_OR_WORD.findall("a b\n\n c\r\n") == ["a", "b", "\n", "\n", "c", "\n"]
