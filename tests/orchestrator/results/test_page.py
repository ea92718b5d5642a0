"""The results page: its sections, what stays of an earlier one, what is hidden."""

from __future__ import annotations

import re
import struct
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.errors import CampaignError, StorageError
from orchestrator.method_search import TrialPlan
from orchestrator.records import ModelRecord
from orchestrator.results import NOTES, write_results
from orchestrator.results.plots import series
from orchestrator.results.ranks import Place, places
from orchestrator.results.text import free
from orchestrator.wording import without_places
from tests.orchestrator.results.pages import (
    TODAY,
    asked,
    read,
    section,
    tables,
    write,
)
from tests.orchestrator.results_factory import (
    FakeReader,
    make_spec,
)


class TestSections:
    def test_what_has_nothing_to_show_is_left_out(self, tmp_path: Path):
        search = {"density": [0.5], "methods": {"uniform": {"kind": "low-rank"}}}

        def bare(plan: TrialPlan, record: ModelRecord) -> ModelRecord:
            return replace(record, ranks={}, speed=[], projection={}, curve=record.curve[-1:])

        reader = FakeReader(make_spec(search=search), change=bare)
        reader.dense = reader.records[reader.dense.key] = replace(reader.dense, curve=[])
        page = write(read(reader), tmp_path)
        assert re.findall(r"^## (.*)", page, re.MULTILINE) == ["Setting", "Quality", "Cost"]
        assert sorted(p.name for p in (tmp_path / "page").iterdir()) == ["cost.png", "quality.png"]
        assert "speed" not in page

    def test_a_campaign_without_compared_methods(self, no_plots: None, tmp_path: Path):
        spec = make_spec(
            search={
                "density": [0.5],
                "trials_per_density": 3,
                "learning_rate": {"log_uniform": [0.01, 0.1]},
            }
        )
        page = write(read(FakeReader(spec)), tmp_path)
        assert tables(section(page, "Quality"))[0][0]["method"] == "adaptive"
        assert len(tables(section(page, "Tuning"))[0]) == 3
        assert "## Paired differences" not in page


class TestPage:
    def test_head(self, page: str):
        lines = page.splitlines()
        assert lines[0] == "# letters: methods compared"
        assert lines[2].startswith("2026-11-22. ")
        command = "jobs/specs/compare.yaml"
        assert f"    lowrank results {command} --task letters --out page.md" in lines
        assert f"    lowrank run {command}" in lines

    def test_commands_repeat_what_decides_results(self, tmp_path: Path):
        words = asked(
            tmp_path / "page.md",
            str(tmp_path / "compare.yaml"),
            "seed=3",
            f"storage={tmp_path}",
            "tracking.uri=http://secret",
            "tasks.letters.data={source: files, train: /data/ada/train.txt}",
        )
        changed = "'tasks.letters.data={source: files, train: …/train.txt}'"
        assert words.run == f"lowrank run compare.yaml --set seed=3 --set {changed}"
        assert words.results == (
            f"lowrank results compare.yaml --set seed=3 --set {changed} "
            "--task letters --out page.md"
        )

    def test_nothing_tells_where_it_was_made(self, page: str):
        assert "ada" not in re.sub("adaptive", "", page)
        assert "/home" not in page
        assert not re.search(r"(?<![\w.<…])/(?!notes)\w", page), "an absolute path"

    def test_every_plot_is_there_and_shown(self, page: str, folder: Path):
        shown = re.findall(r"!\[[^\]]+\]\((page/\w+\.png)\)", page)
        names = ("parent", "quality", "cost", "density", "lambda", "undecided", "ranks")
        assert shown == [f"page/{name}.png" for name in names]
        assert sorted(p.stem for p in (folder / "page").iterdir()) == sorted(names)
        for name in shown:
            head = (folder / name).read_bytes()[:24]
            assert head[:8] == b"\x89PNG\r\n\x1a\n"
            width, height = struct.unpack(">II", head[16:])
            assert width == 1200
            assert 400 <= height <= 1400

    def test_the_same_records_give_the_same_page(
        self, page: str, reader: FakeReader, tmp_path: Path
    ):
        assert write(read(reader), tmp_path) == page

    def test_notes_stay(self, no_plots: None, reader: FakeReader, tmp_path: Path):
        write(read(reader), tmp_path)
        path = tmp_path / "page.md"
        notes = f"{NOTES[0]}\n\nMine: *all* of it, \\1 and /too.\n  \n{NOTES[1]}"
        path.write_text(path.read_text().replace("\n".join(NOTES), notes) + "gone\n")
        again = write(read(reader), tmp_path)
        assert again.count(notes) == 1
        assert again.index("lowrank run") < again.index(notes) < again.index("## Setting")
        assert "gone" not in again
        assert write(read(reader), tmp_path) == again

    @pytest.mark.parametrize("text", ["# Mine\n", f"# Mine\n{NOTES[0]}\nnever closed\n"])
    def test_a_page_of_somebody_else_is_not_replaced(
        self, reader: FakeReader, tmp_path: Path, text: str
    ):
        (tmp_path / "page.md").write_text(text)
        with pytest.raises(CampaignError, match="is there without a block <!-- notes -->"):
            write(read(reader), tmp_path)
        assert (tmp_path / "page.md").read_text() == text
        assert not (tmp_path / "page").exists()

    def test_a_plot_of_an_earlier_page_goes_and_other_files_stay(self, tmp_path: Path):
        write(read(FakeReader(make_spec())), tmp_path)
        (tmp_path / "page" / "mine.png").write_text("mine")
        write(read(FakeReader(make_spec(), unfinished=["all"])), tmp_path)
        assert sorted(p.name for p in (tmp_path / "page").iterdir()) == ["mine.png", "parent.png"]

    def test_a_folder_that_cannot_be_made(self, reader: FakeReader, tmp_path: Path):
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match="is a file, not a folder"):
            write_results([read(reader)], asked(tmp_path / "file" / "page.md"), TODAY)


class TestPieces:
    @pytest.mark.parametrize(
        ("text", "hidden"),
        [
            ("in /home/ada/x.txt now", "in …/x.txt now"),
            ("sqlite:////srv/ada/mlflow.db", "…/mlflow.db"),
            ("file:///srv/x", "…/x"),
            ("~/x/y.yaml", "…/y.yaml"),
            ("{train: /a/b.txt, test: /c.txt}", "{train: …/b.txt, test: …/c.txt}"),
            ("http://ada:pw@host:5000/x failed", "… failed"),
            ("15 / steps, and/or 1/2", "15 / steps, and/or 1/2"),
            ("jobs/specs/demo.yaml ./x Salesforce/wikitext", None),
        ],
    )
    def test_places_are_hidden(self, text: str, hidden: str | None):
        assert without_places(text) == (text if hidden is None else hidden)

    def test_free_texts_are_no_markup(self):
        assert free("a|b\n*c* _d_ n_e `f` <g>") == r"a\|b \*c\* \_d\_ n_e \`f\` \<g>"

    @pytest.mark.parametrize(
        ("names", "found"),
        [
            (["transformer.h.3.attn.c_attn"], [("3", "attn.c_attn")]),
            (["model.layers.0.experts.7.w1"], [("0", "experts.*.w1")]),
            (["fc"], [("", "fc")]),
            (["0.fc", "11.fc"], [("0", "fc"), ("11", "fc")]),
            (
                ["encoder.block.0.wi", "decoder.block.0.wi", "head"],
                [("encoder.0", "wi"), ("decoder.0", "wi"), ("", "head")],
            ),
            (["m.enc.0.w", "m.dec.0.w"], [("m.enc.0", "w"), ("m.dec.0", "w")]),
        ],
    )
    def test_places_of_matrices(self, names: list[str], found: list[tuple[str, str]]):
        assert list(places(names).values()) == [Place(*each) for each in found]

    def test_a_multiplier_begins_when_it_moves(self, reader: FakeReader):
        curve = next(iter(read(reader).finished.values())).curve
        curve = [replace(curve[0], lambda_linear=0.0), *curve[1:]]
        steps, values = series(curve, "lambda_linear")
        assert steps[0] == curve[1].step
        told = [point for point in curve if point.lambda_linear is not None]
        assert len(steps) == len(values) == len(told) - 1 > 5
