"""sources.py and bad_rows.py: kinds of files and datasets, and what happens to bad rows."""

import gzip
import json
import sys

import pytest

from sail.data.sources import load_rows, load_sft_rows, read_records
from sail.errors import ConfigError, DataError, MissingExtraError

PAIRS = [{"prompt": f"p{i}", "chosen": " a", "rejected": " b"} for i in range(3)]


def write(path, records, lines=None):
    """Records as JSONL, or the given lines as they are."""
    lines = lines or [json.dumps(record) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def prompts(source, **options):
    return [row.prompt for row in load_rows(source, **options).rows]


class TestKindsOfSource:
    def test_jsonl_as_path_and_as_text(self, tmp_path):
        path = write(tmp_path / "pairs.jsonl", PAIRS)
        assert prompts(path) == prompts(str(path)) == ["p0", "p1", "p2"]
        assert [origin for _, origin in read_records(path)] == [f"{path} row {i}" for i in (1, 2, 3)]

    def test_relative_names_stay_as_given(self, tmp_path, monkeypatch):
        write(tmp_path / "pairs.jsonl", PAIRS)
        monkeypatch.chdir(tmp_path)
        assert load_rows("pairs.jsonl").rows[1].origin == "pairs.jsonl row 2"

    def test_blank_lines_are_no_rows_and_the_line_is_named(self, tmp_path):
        path = write(tmp_path / "pairs.jsonl", [], ["", json.dumps(PAIRS[0]), "  ", json.dumps(PAIRS[1])])
        assert [origin for _, origin in read_records(path)] == [
            f"{path} row 1 (line 2)",
            f"{path} row 2 (line 4)",
        ]

    def test_other_line_ends_inside_a_text(self, tmp_path):
        path = tmp_path / "pairs.jsonl"
        path.write_bytes(json.dumps({"prompt": "a\u2028b\x85c"}, ensure_ascii=False).encode() + b"\r\n")
        assert prompts(path) == ["a\u2028b\x85c"]

    def test_byte_order_mark(self, tmp_path):
        path = tmp_path / "pairs.jsonl"
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(PAIRS[0]).encode())
        assert prompts(path) == ["p0"]

    def test_gzip(self, tmp_path):
        path = tmp_path / "pairs.jsonl.gz"
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, PAIRS)).encode()))
        assert prompts(path) == ["p0", "p1", "p2"]

    def test_broken_gzip(self, tmp_path):
        path = tmp_path / "pairs.jsonl.gz"
        for data in (gzip.compress(json.dumps(PAIRS[0]).encode())[:-9], b"plain text"):
            path.write_bytes(data)
            with pytest.raises(DataError, match=r"pairs\.jsonl\.gz: broken gzip data after row \d"):
                load_rows(path)

    def test_json_list(self, tmp_path):
        path = tmp_path / "pairs.json"
        path.write_text(json.dumps(PAIRS))
        assert prompts(path) == ["p0", "p1", "p2"]
        path.write_text(json.dumps({"data": PAIRS}))
        with pytest.raises(DataError, match=r"holds a dict, not a list of rows\. Wrap"):
            load_rows(path)
        path.write_text("[{]")
        with pytest.raises(DataError, match=r"pairs\.json: broken JSON .*one object per line is \.jsonl"):
            load_rows(path)

    def test_parquet(self, tmp_path):
        datasets = pytest.importorskip("datasets")
        path = tmp_path / "pairs.parquet"
        datasets.Dataset.from_list(PAIRS).to_parquet(path)
        assert prompts(path) == ["p0", "p1", "p2"]
        assert [origin for _, origin in read_records(path)][-1] == f"{path} row 3"
        path.write_bytes(b"no parquet")
        with pytest.raises(DataError, match="not a parquet file"):
            load_rows(path)

    def test_parquet_without_pyarrow(self, tmp_path, monkeypatch):
        (tmp_path / "pairs.parquet").write_bytes(b"")
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'sail-align\[sft\]'"):
            load_rows(tmp_path / "pairs.parquet")

    def test_list_generator_and_dataset(self):
        assert prompts(PAIRS) == prompts(iter(PAIRS)) == ["p0", "p1", "p2"]
        assert load_rows(PAIRS).rows[2].origin == "dataset[2]"
        datasets = pytest.importorskip("datasets")
        table = datasets.Dataset.from_list(PAIRS)
        assert prompts(table) == prompts(table.to_iterable_dataset()) == ["p0", "p1", "p2"]

    def test_dataset_of_conversations(self):
        datasets = pytest.importorskip("datasets")
        ask, tell = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}
        # The key that only one message has is filled with null in the others.
        record = {"prompt": [ask], "chosen": [{**tell, "name": "Ann"}], "rejected": [tell]}
        row = load_rows(datasets.Dataset.from_list([record, record])).rows[1]
        assert (row.prompt, row.chosen, row.rejected) == ([ask], "yo", "yo")

    def test_a_split_must_be_named(self):
        datasets = pytest.importorskip("datasets")
        splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(PAIRS)})
        with pytest.raises(DataError, match=r"mapping with keys train, not rows.*dataset\['train'\]"):
            load_rows(splits)

    def test_no_such_file(self, tmp_path):
        with pytest.raises(DataError, match=r"gone\.jsonl: there is no such file \(looked in .*load_dataset"):
            load_rows(tmp_path / "gone.jsonl")
        with pytest.raises(DataError, match=r"is a folder.*load_from_disk"):
            load_rows(tmp_path)
        with pytest.raises(DataError, match=r"unknown kind of file.*\.jsonl, \.jsonl\.gz, \.json, \.parquet"):
            load_rows(write(tmp_path / "pairs.csv", PAIRS))


class TestBadRows:
    @pytest.fixture
    def mixed(self, tmp_path):
        good = json.dumps(PAIRS[0])
        lines = [good, '{"prompt": 3}', "", '{"prompt": "a"', "[1]", good, '{"prompt": ""}']
        return write(tmp_path / "mixed.jsonl", [], lines)

    def test_error_lists_all_of_them_and_the_way_out(self, mixed):
        with pytest.raises(DataError) as caught:
            load_rows(mixed)
        first, *listed, last = str(caught.value).split("\n")
        assert first == f"{mixed}: 4 of 6 rows cannot be used:"
        assert [line.split(": ")[0] for line in listed] == [
            f"  {mixed} row 2",
            f"  {mixed} row 3 (line 4)",
            f"  {mixed} row 4 (line 5)",
            f"  {mixed} row 6 (line 7)",
        ]
        assert "field 'prompt' is the int 3, not text" in listed[0]
        assert (
            "broken JSON (Expecting ',' delimiter, column 15). Write one whole JSON object per line."
            in listed[1]
        )
        assert "field '(whole row)' is of type list" in listed[2]
        assert last == "Mend them, or set data.bad_rows: skip to leave such rows out and count them."

    def test_skip_leaves_them_out_and_keeps_the_reasons(self, mixed):
        rows = load_rows(mixed, bad_rows="skip")
        assert [row.prompt for row in rows.rows] == ["p0", "p0"]
        assert len(rows.skipped) == 4
        assert rows.skipped[0].startswith(f"{mixed} row 2: field 'prompt'")

    def test_only_the_first_five_are_listed(self):
        with pytest.raises(DataError) as caught:
            load_rows([{"prompt": i} for i in range(7)] + PAIRS)
        message = str(caught.value)
        assert message.startswith("dataset: 7 of 10 rows cannot be used, the first 5:\n  dataset[0]: ")
        assert "dataset[4]" in message
        assert "dataset[5]" not in message

    def test_not_utf8_is_a_bad_row(self, tmp_path):
        path = tmp_path / "latin.jsonl"
        path.write_bytes(b'{"prompt": "caf\xe9"}\n' + json.dumps(PAIRS[0]).encode())
        assert prompts(path, bad_rows="skip") == ["p0"]
        with pytest.raises(
            DataError, match=r"latin\.jsonl row 1: .*not UTF-8 at byte 15\. Save the file as UTF-8"
        ):
            load_rows(path)

    def test_nested_without_end_is_a_bad_row(self, tmp_path):
        path = write(tmp_path / "deep.jsonl", [], ["[" * 200_000, json.dumps(PAIRS[0])])
        assert prompts(path, bad_rows="skip") == ["p0"]

    def test_nothing_left(self, tmp_path):
        path = tmp_path / "empty.jsonl"
        path.write_text("\n\n")
        for policy in ("error", "skip"):
            with pytest.raises(DataError, match=r"empty\.jsonl: there is not one row in it"):
                load_rows(path, bad_rows=policy)
        with pytest.raises(
            DataError, match=r"dataset: all 1 rows are bad, none is left:\n  dataset\[0\]: field"
        ):
            load_rows([{"prompt": 1}], bad_rows="skip")

    def test_unknown_policy(self):
        with pytest.raises(ConfigError, match=r"data\.bad_rows is 'ignore'\. Set it to error .* or skip"):
            load_rows(PAIRS, bad_rows="ignore")

    def test_need_pairs(self):
        records = [PAIRS[0], {"prompt": "alone"}]
        assert prompts(records) == ["p0", "alone"]
        assert prompts(records, need_pairs=True, bad_rows="skip") == ["p0"]
        with pytest.raises(
            DataError, match=r"dataset\[1\]: fields 'chosen' and 'rejected' are missing.*data\.prompts"
        ):
            load_rows(records, need_pairs=True)

    def test_identical_responses_are_kept_and_counted(self):
        rows = load_rows([*PAIRS, {"prompt": "p", "chosen": " a", "rejected": " a"}])
        assert (len(rows.rows), rows.identical, rows.skipped) == (4, 1, [])


def test_sft_rows():
    records = [PAIRS[0], {"prompt": "q", "completion": " c"}, {"prompt": "q"}]
    rows = load_sft_rows(records, bad_rows="skip")
    assert rows.rows == [("p0", " a"), ("q", " c")]
    assert len(rows.skipped) == 1
    with pytest.raises(DataError, match=r"dataset\[2\]: field 'completion' is missing"):
        load_sft_rows(records)
