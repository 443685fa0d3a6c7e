"""encode.py on rows: lengths, cuts, bad rows, indices and fingerprint."""

import pytest
from test_data_tokenizers import ASK, byte_bpe, chat_tokenizer, word_level

from sail.data.encode import EncodedDataset, concatenate, encode_rows
from sail.data.formats import Row
from sail.data.sources import RowSet, load_rows
from sail.errors import DataError


def pair(prompt="The sky is", chosen=" blue", rejected=" green", origin="pairs.jsonl row 1"):
    return Row(prompt, chosen, rejected, origin)


def encode(rows, tokenizer, **options):
    return encode_rows(rows, tokenizer, **{"max_length": None, "max_prompt_length": None, **options})


class TestRows:
    def test_items(self):
        tokenizer = word_level()
        rows = [pair(), Row("The sky", None, None, "x"), pair(rejected=" blue")]
        data = encode(rows, tokenizer, first_index=10)
        assert len(data) == 3
        assert data[0] == {
            "index": 10,
            "prompt_ids": [5, 6, 7],
            "chosen_ids": [8, 2],
            "rejected_ids": [9, 2],
            "prompt": "The sky is",
            "chosen": " blue",
            "rejected": " green",
            "chosen_cut": False,
            "rejected_cut": False,
            "identical": False,
        }
        assert (data[1]["index"], data[1]["chosen_ids"], data[1]["rejected_ids"]) == (11, None, None)
        assert data[2]["identical"]
        assert not data[1]["identical"]
        assert (data.prompt_only, data.identical, data.cut, data.skipped) == (1, 1, 0, [])

    @pytest.mark.parametrize(
        ("max_length", "chosen", "cut"),
        [(7, [8, 9, 10, 2], False), (6, [8, 9, 10], True), (5, [8, 9], True), (4, [8], True)],
    )
    def test_long_response_is_cut_at_its_end_and_counted(self, max_length, chosen, cut):
        data = encode([pair(chosen=" blue green .", rejected=" is")], word_level(), max_length=max_length)
        assert data[0]["chosen_ids"] == chosen
        assert data[0]["chosen_cut"] is cut
        assert data[0]["chosen"] == " blue green ."
        assert data.cut == cut + data[0]["rejected_cut"]
        assert data[0]["rejected_cut"] is (max_length == 4)  # its EOS alone does not fit

    def test_responses_that_differ_behind_the_cut_are_identical_to_the_model(self):
        data = encode([pair(chosen=" is blue", rejected=" is green")], word_level(), max_length=4)
        assert data[0]["identical"]
        assert (data.identical, data.cut) == (1, 2)

    def test_long_prompt_is_a_bad_row(self):
        rows = [pair(), pair("The sky is is", origin="pairs.jsonl row 2")]
        with pytest.raises(DataError) as caught:
            encode(rows, word_level(), max_length=9, max_prompt_length=3)
        assert str(caught.value) == (
            "tokenising the data: 1 of 2 rows cannot be used:\n"
            "  pairs.jsonl row 2: field 'prompt' has 4 tokens, above max_prompt_length (3). "
            "Raise max_prompt_length, or leave such rows out (data.bad_rows: skip).\n"
            "Mend them, or set data.bad_rows: skip to leave such rows out and count them."
        )
        data = encode(rows, word_level(), max_length=9, max_prompt_length=3, bad_rows="skip")
        assert len(data) == 1
        assert len(data.skipped) == 1

    @pytest.mark.parametrize("row", [pair(), Row("The sky is", None, None, "prompts.jsonl row 1")])
    def test_no_room_for_a_response_is_a_bad_row(self, row):
        with pytest.raises(
            DataError, match=r"'prompt' has 3 tokens, no room for an answer in max_length \(3\)"
        ):
            encode([row], word_level(), max_length=3)

    def test_bad_responses_name_row_and_field(self):
        with pytest.raises(
            DataError, match=r"pairs\.jsonl row 1: field 'rejected': the response goes on after"
        ):
            encode([pair(rejected=" is</s> green")], byte_bpe())
        with pytest.raises(DataError, match=r"pairs\.jsonl row 1: field 'chosen': the tokenizer cannot read"):
            encode([pair(chosen="xyz")], word_level())

    def test_indices_have_no_holes_and_skipped_rows_add_up(self):
        loaded = load_rows(
            [{"prompt": 1}, {"prompt": "The"}, {"prompt": "xyz"}, {"prompt": "sky"}], bad_rows="skip"
        )
        data = encode(loaded, word_level(), bad_rows="skip")
        assert [(row["index"], row["prompt"]) for row in data] == [(0, "The"), (1, "sky")]
        assert [message.split(": ")[0] for message in data.skipped] == ["dataset[0]", "dataset[2]"]

    def test_nothing_left(self):
        with pytest.raises(DataError, match="all 1 rows are bad, none is left"):
            encode([pair("xyz")], word_level(), bad_rows="skip")
        with pytest.raises(DataError, match="there is not one row in it"):
            encode(RowSet([]), word_level())

    def test_concatenate(self):
        pairs = encode([pair(), pair(rejected=" blue")], word_level(), max_length=4, first_index=5)
        prompts = encode([Row("sky", None, None, "x")], word_level())
        pairs.skipped, prompts.skipped = ["a"], ["b"]
        both = concatenate(pairs, prompts)
        assert [row["index"] for row in both] == [5, 6, 7]
        assert [row["index"] for row in prompts] == [0]  # the originals stay as they were
        assert (both.cut, both.prompt_only, both.identical, both.skipped) == (4, 1, 1, ["a", "b"])
        assert concatenate(EncodedDataset([]), prompts)[0] == prompts[0]

    def test_fingerprint(self):
        # sha256 of the little-endian 64-bit integers 3 5 6 7, 2 8 2, 2 9 2, by hashlib and struct.
        data = encode([pair()], word_level())
        assert data.fingerprint == "8bc460b832291a7fb5e76cc71f998c951205bcdb5b0f8ef95ad9ef695d3a1eea"
        assert encode([pair(origin="y")], word_level(), first_index=4).fingerprint == data.fingerprint
        others = [
            pair(chosen=" green", rejected=" blue"),
            pair("The sky", " is blue"),
            Row("The sky is", None, None, ""),
        ]
        assert len({data.fingerprint, *(encode([row], word_level()).fingerprint for row in others)}) == 4

    def test_items_go_through_a_data_loader(self):
        from torch.utils.data import DataLoader

        from sail.data.collate import RowCollator

        data = encode([pair(), Row(ASK, "It is blue.", "It is green.", "x")], chat_tokenizer())
        batches = list(DataLoader(data, batch_size=2, collate_fn=RowCollator()))
        assert batches[0]["index"].tolist() == [0, 1]
        assert batches[0]["rows"].rows == [data[0], data[1]]

    def test_nobody_looks_for_tensors_in_token_ids(self):
        import torch
        from accelerate.utils import send_to_device

        from sail.data.collate import RowCollator

        data = encode([pair()], chat_tokenizer())
        batch = RowCollator()([data[0]])
        moved = send_to_device(batch, torch.device("meta"))
        assert moved["index"].is_meta
        assert moved["rows"] is batch["rows"]
