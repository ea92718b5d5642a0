"""The card of a task's registered model, as part of the page."""

from __future__ import annotations

from collections.abc import Iterable

from markdown_it import MarkdownIt

from orchestrator.campaign_records import TaskResult
from orchestrator.layout import Layout

FENCE = "---\n"
"""Around the front matter."""
DEEPER = 3
"""Levels that a card's headings go down: the page has its own above them."""


def kept_cards(layout: Layout, tasks: Iterable[TaskResult]) -> dict[str, str]:
    """The cards in a campaign's folder, by task, of models that went to the registry.

    A task without one had no choice, or its result is of a version that wrote none.
    """
    paths = {task.task: layout.card(task.task) for task in tasks if task.promotion is not None}
    return {
        name: path.read_text(encoding="utf-8")
        for name, path in paths.items()
        if layout.mirror.fetch_file(path)
    }


def card_view(card: str | None) -> str | None:
    """A card's Markdown as HTML that is safe in any page: tags are text, nothing is fetched."""
    if not card:
        return None
    if card.startswith(FENCE):
        matter, _, body = card.removeprefix(FENCE).partition(f"\n{FENCE}")
        card = f"{body}\n\nFor the Hugging Face hub:\n\n```yaml\n{matter}\n```\n"
    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.disable(["image", "link", "autolink", "reference"]).parse(card)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1:]) + DEEPER)}"
    return str(markdown.renderer.render(tokens, markdown.options, {}))
