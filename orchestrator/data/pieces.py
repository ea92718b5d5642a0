"""Long texts in words and in pieces, by the rules that the tokenizers follow as well."""

from __future__ import annotations

import re
from collections.abc import Iterator

PIECE = 1 << 16
"""Characters per piece: small enough to spread over threads, large enough to cut rarely."""

# White_Space of Unicode, as Rust and so `tokenizers` has it. Python's \s adds \x1c to \x1f.
_SPACE = r"\t\n\v\f\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"

WORD = re.compile(f"[^{_SPACE}]+")

NEWLINE_OR_WORD = re.compile(f"\n|[^{_SPACE}]+")

_WORD_END = re.compile(rf"[^\W_](?=[{_SPACE}])")


def pieces(text: str, size: int = PIECE) -> Iterator[str]:
    """Cut a text after a letter or digit that white space follows, once `size` is reached.

    Tokenizers that split at white space first (GPT-2 and what descends from it, BERT) never have
    a token across such a place, so the tokens of the pieces are those of the whole text. Text
    without such a place is cut at twice the size.
    """
    start = 0
    while start < len(text):
        found = _WORD_END.search(text, start + size - 1, start + 2 * size)
        end = found.end() if found else start + 2 * size
        yield text[start:end]
        start = end


def num_words(text: str) -> int:
    """Words between white space; line breaks do not count."""
    return sum(1 for _ in WORD.finditer(text))
