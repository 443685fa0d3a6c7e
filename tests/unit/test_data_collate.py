"""collate.py: rows stay whole, and masks come from lengths."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from sail.data.collate import RowCollator, pad_pairs

PAD = 2  # also the EOS in these tests


def test_rows_stay_whole():
    rows = [{"index": 7, "prompt_ids": [1]}, {"index": 3, "prompt_ids": [1, 2]}]
    batch = RowCollator()(rows)
    assert batch["index"].tolist() == [7, 3]
    assert batch["index"].dtype == torch.long
    assert batch["rows"].rows is rows


def test_pad_pairs_by_hand():
    batch = pad_pairs([([5], [6, 2]), ([5, 7, 8], [9, 2]), ([PAD], [])], PAD)
    assert batch["input_ids"].tolist() == [[5, 6, 2, 2, 2], [5, 7, 8, 9, 2], [2, 2, 2, 2, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]
    assert batch["response_mask"].int().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 0]]
    assert [batch[k].dtype for k in ("input_ids", "attention_mask", "response_mask")] == [
        torch.long,
        torch.long,
        torch.bool,
    ]


def test_no_sequences():
    assert {key: tuple(value.shape) for key, value in pad_pairs([], PAD).items()} == {
        "input_ids": (0, 0),
        "attention_mask": (0, 0),
        "response_mask": (0, 0),
    }


ids = st.lists(st.integers(0, 4), max_size=6)  # pad is among them


@given(st.lists(st.tuples(ids, ids), max_size=5))
def test_every_token_comes_back(sequences):
    batch = pad_pairs(sequences, PAD)
    for i, (prompt, response) in enumerate(sequences):
        attended, responding = batch["attention_mask"][i].bool(), batch["response_mask"][i]
        assert batch["input_ids"][i][attended].tolist() == prompt + response
        assert batch["input_ids"][i][responding].tolist() == response
        assert batch["input_ids"][i][attended & ~responding].tolist() == prompt
        assert (batch["input_ids"][i][~attended] == PAD).all()
    if sequences:
        assert batch["input_ids"].shape == (len(sequences), max(len(p) + len(r) for p, r in sequences))
