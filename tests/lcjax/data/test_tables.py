import json

import pyarrow
import pytest
from pyarrow import ipc, parquet

from lcjax.data import ChatTemplate, Document, read_documents
from lcjax.errors import InputError

RECORDS = [
    {"text": "one", "messages": None, "id": 1},
    {
        "text": None,
        "messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a", "name": None}],
        "id": 2,
    },
    {"text": None, "messages": None, "id": 3},
    {"text": "four\u2028", "messages": None, "id": 4},
]


def write_parquet(path, records):
    parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=2)


def write_stream(path, records):
    """Writes a stream as `datasets` does."""
    table = pyarrow.Table.from_pylist(records)
    with ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def write_file(path, records):
    table = pyarrow.Table.from_pylist(records)
    with ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)


def save_to_disk(folder, records, shards=2):
    """Writes what `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    size = -(-len(records) // shards)
    names = [f"data-{i:05}-of-{shards:05}.arrow" for i in range(shards)]
    for i, name in enumerate(names):
        write_stream(folder / name, records[i * size : (i + 1) * size])
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text("{}")


@pytest.mark.parametrize(
    ("name", "save"),
    [("a.parquet", write_parquet), ("a.arrow", write_stream), ("b.arrow", write_file), ("saved", save_to_disk)],
)
def test_every_table_gives_what_lines_of_json_give(tmp_path, smol_tokenizer, caplog, name, save):
    lines = tmp_path / "a.jsonl"
    lines.write_text("\n".join(json.dumps(record) for record in RECORDS))
    path = tmp_path / name
    save(path, RECORDS)
    template = ChatTemplate(smol_tokenizer)
    expected = [
        Document(document.name.replace(str(lines), str(path)), document.text, document.learned, document.is_rendered)
        for document in read_documents([lines], template)
    ]
    assert [document.name for document in expected] == [f"{path}:{row}" for row in (1, 2, 4)]
    assert read_documents([path], template) == expected
    assert f"skipped 1 bad records of 4 of {path}: {path}:3 has no field that is read (it has " in caplog.text


def test_a_saved_dataset_below_a_folder_is_one_table(tmp_path):
    save_to_disk(tmp_path / "more/saved", [{"text": "row"}] * 4)
    (tmp_path / "more/a.txt").write_text("file")
    assert [document.text for document in read_documents([tmp_path])] == ["file", *["row"] * 4]


def test_of_splits_train_is_read(tmp_path):
    for split in ("test", "train"):
        save_to_disk(tmp_path / "saved" / split, [{"text": split}] * 2)
    described = tmp_path / "saved/dataset_dict.json"
    described.write_text('{"splits": ["test", "train"]}')
    assert [document.text for document in read_documents([tmp_path / "saved"])] == ["train"] * 2
    described.write_text('{"splits": ["test"]}')
    assert [document.text for document in read_documents([tmp_path / "saved"])] == ["test"] * 2
    described.write_text('{"splits": ["a", "b"]}')
    with pytest.raises(InputError, match="has the splits a, b and no train; give one of these folders"):
        read_documents([tmp_path / "saved"])


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_file_that_is_no_table_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=f"{name} cannot be read as a table"):
        read_documents([tmp_path / name])


@pytest.mark.parametrize("content", ["[]", "{}", '{"_data_files": 5}', '{"_data_files": ["a.arrow"]}', "torn", "null"])
def test_a_saved_dataset_without_its_list_of_files_is_refused(tmp_path, content):
    save_to_disk(tmp_path / "saved", [{"text": "row"}] * 2)
    (tmp_path / "saved/state.json").write_text(content)
    with pytest.raises(InputError, match=r"state.json (lists no data files|is not JSON)"):
        read_documents([tmp_path / "saved"])
    save_to_disk(tmp_path / "more/train", [{"text": "row"}])
    (tmp_path / "more/dataset_dict.json").write_text(content)
    with pytest.raises(InputError, match=r"dataset_dict.json (lists no splits|is not JSON)"):
        read_documents([tmp_path / "more"])
