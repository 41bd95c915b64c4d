"""--columns: which columns of the data are read as which fields of a record."""

import json

import pyarrow
import pytest
from pyarrow import parquet

from lcjax.data import read_documents
from lcjax.errors import InputError
from tests.support.chats import write

ROWS = [{"question": "2+2?", "answer": "4", "id": 1}, {"question": "3+3?", "answer": "6", "id": 2}]
COLUMNS = ("prompt=question", "completion=answer")


def saved(folder, kind):
    path = folder / f"a.{kind}"
    if kind == "jsonl":
        return write(path, ROWS)
    if kind == "json":
        path.write_text(json.dumps(ROWS))
    elif kind == "csv":
        path.write_text("question,answer,id\n2+2?,4,1\n3+3?,6,2\n")
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    else:
        table = pyarrow.Table.from_pylist(ROWS)
        with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(table)
    return path


@pytest.mark.parametrize("columns", [COLUMNS, (",".join(COLUMNS),)])
@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_columns_are_read_as_fields_in_every_format(tmp_path, caplog, kind, columns):
    documents = read_documents([saved(tmp_path, kind)], columns=columns)
    assert [(document.text, document.learned) for document in documents] == [
        ("2+2?4", ((4, 5),)),
        ("3+3?6", ((4, 5),)),
    ]
    assert caplog.messages == [f"fields of records of {tmp_path / f'a.{kind}'} that are not read: id (of 2)"]


def test_a_form_with_a_named_column_precedes_others_and_replaces_the_field(tmp_path):
    record = {"prompt": "p", "completion": "c", "text": "own", "body": "named"}
    path = write(tmp_path / "a.jsonl", [record])
    assert read_documents([path])[0].text == "pc"
    assert read_documents([path], columns=["text=body"])[0].text == "named"
    # Two columns can be exchanged.
    assert read_documents([path], columns=["prompt=completion", "completion=prompt"])[0].text == "cp"


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["text=bodi"], "--columns text=bodi: no record has a column bodi; check its spelling"),
        (["text"], "--columns 'text' is not field=column"),
        (["=a"], "is not field=column"),
        (["tekst=a"], "did you mean text or tools?"),
        (["text=a,text=b"], "--columns names text twice"),
        (["text=a", "output=a"], "--columns names a twice"),
    ],
)
def test_columns_that_cannot_be_read_are_refused(tmp_path, columns, said):
    path = write(tmp_path / "a.jsonl", [{"text": "t", "body": "b"}])
    with pytest.raises(InputError) as caught:
        read_documents([path], columns=columns)
    assert said in str(caught.value)
