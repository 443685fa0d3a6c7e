"""What results.json says of the training file, which the report judges starvation by."""

from __future__ import annotations

from tiny import make_pairs, make_trainer

from sail.data.encode import EncodedDataset
from sail.results import distinct_prompts, final_results


def test_prompts_are_counted_once_however_many_pairs_they_have(tmp_path):
    pairs = make_pairs(8)
    repeated = [{**pair, "prompt": pairs[i % 3]["prompt"]} for i, pair in enumerate(pairs)]
    found = final_results(make_trainer(tmp_path, rows=repeated), {})
    assert (
        (found["train_rows"], found["train_prompts"])
        == (8, len({row["prompt"] for row in repeated}))
        == (8, 3)
    )


def test_conversations_are_told_apart_by_their_content():
    def said(*turns):
        return [{"role": role, "content": content} for role, content in turns]

    prompts = [said(("user", "a")), said(("user", "a")), said(("system", "a")), said(("user", "b")), "a", "a"]
    others = {"chosen_cut": False, "rejected_cut": False, "chosen_ids": None, "identical": False}
    assert distinct_prompts(EncodedDataset([{"prompt": prompt, **others} for prompt in prompts])) == 4
