"""The card of a model in the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from orchestrator.layout import Layout
from orchestrator.report import write_report
from orchestrator.report_card import card_view, kept_cards
from tests.orchestrator.record_factory import make_campaign
from tests.orchestrator.test_report import task_result

CARD = """---
license: apache-2.0
---

# small

A model, compressed to 20% & less.

| | dense | this model |
|---|---|---|
| accuracy | 0.9 | 0.8 |

## Use

```python
import lowrank.auto
```
"""


def test_markdown_becomes_a_part_of_the_page() -> None:
    shown = card_view(CARD)
    assert shown is not None
    for part in (
        "<h4>small</h4>",
        "<h5>Use</h5>",
        "20% &amp; less",
        "<td>0.8</td>",
        '<code class="language-python">import lowrank.auto',
        "license: apache-2.0",
    ):
        assert part in shown
    assert "<hr" not in shown, "the front matter is no text"


def test_nothing_in_a_card_is_fetched_or_run() -> None:
    shown = card_view(
        "# <img src=x onerror=y>\n\n![a](http://a.b/c.png) [d](http://e.f) <http://g.h>\n\n"
        "[i]: http://j.k\n\n[i]\n\n<script>l()</script>\n"
    )
    assert shown is not None
    assert not any(tag in shown for tag in ("<img", "<a ", "<script", "href=", 'src="'))
    assert "&lt;script&gt;" in shown
    assert card_view(None) is card_view("") is None


def test_cards_of_registered_models_are_found_and_shown(tmp_path: Path) -> None:
    lm, other = task_result(), replace(task_result(), task="other")
    layout = Layout(tmp_path, "small-fleet")
    layout.create()
    assert kept_cards(layout, [lm, other]) == {}
    layout.card("docs-lm").write_text(CARD)
    # of a task that chose nothing this time, a card is an earlier one's
    layout.card("other").write_text(CARD)
    cards = kept_cards(layout, [lm, replace(other, promotion=None)])
    assert cards == {"docs-lm": CARD}
    page = write_report(make_campaign([lm, other]), layout.report, cards=cards).read_text()
    assert page.count('<details class="card">') == 1
    assert "<h4>small</h4>" in page
    assert "small-fleet-docs-lm</code>, version 3" in page
