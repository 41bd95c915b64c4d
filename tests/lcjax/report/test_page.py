"""report.html loads nothing, escapes all text, and shows what a run has recorded."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lcjax.report.curves import draw
from lcjax.report.page import page, write_report
from lcjax.report.records import RunRecords

EVIL = "<script>alert(\"x\")</script> & 'quotes'"
RECORD = {
    "started": "2026-01-01T00:00:00+00:00",
    "arguments": {"model": f"models/{EVIL.replace('/', '')}", "lora_r": 8, "max_seq_length": 64, "data": [EVIL] * 30},
    "resolved": {"dtype": EVIL},
    "data": {"documents": 3, "tokens": 500, "training_rows": 4, "held_out_rows": 1},
}
STEPS = [{"step": n, "loss": 4.0 / n, "grad_norm": 1.0, "learning_rate": 0.1, "tokens": 5} for n in range(1, 9)]
EVALUATIONS = [
    {"step": n, "eval_loss": 3.0 - n / 10, "eval_loss_by_position": {"0": 3.5, "16": 2.5 - n / 10}} for n in (0, 8)
]


class Checker(HTMLParser):
    """Collects the elements, and checks that they are closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.names: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page(tmp_path):
    (tmp_path / "samples.jsonl").write_text(
        json.dumps({"step": 4, "prompt": EVIL, "text": EVIL}) + "\n"
        + json.dumps({"step": 8, "prompt": [{"role": "user", "content": EVIL}], "text": "plain"}) + "\n"
    )  # fmt: skip
    results = {
        "position": {
            "base": [{"start": 0, "loss": 3.0}, {"start": 16, "loss": 2.0}],
            EVIL: [{"start": 0, "loss": 2.5}],
        },
        "needle": {
            "adapter": [{"task": "passkey", "depth": 0.5, "length": 1024, "retrieved": share} for share in (0.75,)],
        },
    }
    (tmp_path / "evaluation-20260101-000000").mkdir()
    (tmp_path / "evaluation-20260101-000000" / "results.json").write_text(json.dumps(results))
    text = page(RunRecords(tmp_path, RECORD, STEPS, EVALUATIONS))
    found = Checker(text)
    assert "script" not in found.names
    assert "<script" not in text
    assert [address for address in found.addresses if not address.startswith("#")] == []
    assert not re.search(r"url\((?!#)", text)
    assert text.count("<svg") == 5
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(svg)
    for shown in ("passkey retrieved, adapter", "75%", "1,024", "and 10 more", "&lt;script&gt;", "Learning rate"):
        assert shown in text
    assert text == page(RunRecords(tmp_path, RECORD, STEPS, EVALUATIONS))


def test_a_run_that_has_recorded_little(tmp_path):
    found = Checker(page(RunRecords(tmp_path, RECORD, [], [])))
    assert "svg" not in found.names
    (tmp_path / "evaluation-x").mkdir()
    (tmp_path / "evaluation-x" / "results.json").write_text("damaged")
    assert "Evaluation" not in page(RunRecords(Path(tmp_path), RECORD, STEPS[:1], []))


def test_a_failed_write_leaves_the_former_page(tmp_path):
    (tmp_path / "report.html").write_text("former")
    try:
        write_report(tmp_path)
    except ValueError:
        pass
    else:
        raise AssertionError("there is no record of a run")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "former"


def points_of(svg: str) -> list[list[tuple[float, float]]]:
    """Returns the points of each curve in the picture."""
    return [
        [(float(x), float(y)) for x, y in (point.split(",") for point in points.split())]
        for points in re.findall(r'<polyline points="([^"]*)"', svg)
    ]


def labels_of(svg: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", svg)


def test_a_curve_is_in_its_place():
    """Equal steps are equally far apart, larger values are higher, and labels are round numbers."""
    [points] = points_of(draw([("loss", [0, 50, 100], [2.0, 1.0, 1.5])], "step", "nats"))
    (x0, y0), (x1, y1), (x2, y2) = points
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 < y2 < y1
    assert y2 - y0 == pytest.approx(y1 - y2, abs=0.2)
    assert labels_of(draw([("loss", [0, 50, 100], [2.0, 1.0, 1.5])], "step", "nats")) == [
        "0", "25", "50", "75", "100", "1", "1.25", "1.5", "1.75", "2", "step", "nats",
    ]  # fmt: skip
    for x, y in points:
        assert 0 < x < 560
        assert 0 < y < 270


@pytest.mark.parametrize("value", [0.0, 1e-9, -3.0, 1e12])
def test_a_constant_curve_is_drawn(value):
    [points] = points_of(draw([("x", [7], [value])], "step", "y"))
    assert len(points) == 1
    assert all(0 < coordinate < 560 for coordinate in points[0])


def test_positions_are_spread_by_powers_of_two():
    svg = draw([("a", [0, 16, 32, 1024], [4, 3, 2, 1]), ("b", [0, 16], [3, 2])], "position", "nats", by_powers=True)
    first, second = points_of(svg)
    assert [label for label in labels_of(svg) if label in ("0", "16", "32", "1,024", "a", "b")] == [
        "0", "16", "32", "1,024", "a", "b",
    ]  # fmt: skip
    assert first[0][0] == second[0][0]
    assert first[1][0] - first[0][0] > (first[3][0] - first[0][0]) / 10
