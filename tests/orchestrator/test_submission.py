"""What needs no cluster; the rest is tests/integration/test_submission.py, on a real head."""

from __future__ import annotations

from orchestrator.submission import _Followed


def test_a_log_that_is_read_again_is_shown_once():
    shown: list[str] = []
    text = _Followed(shown.append)
    for parts in (["one\n", "two\n"], ["one\ntwo\nth"], ["o"], ["one\ntwo\nthree\n", "four\n"]):
        text.begin()
        for part in parts:
            text.take(part)
    assert "".join(shown) == "one\ntwo\nthree\nfour\n"
    assert "" not in shown
