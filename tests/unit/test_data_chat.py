"""encode.py on conversations, with ChatML-like templates of many habits, and against TRL's own tokenisation."""

from types import SimpleNamespace

import pytest
from test_data_tokenizers import ASK, CHATML, byte_bpe, chat_tokenizer, spelled

from sail.data.encode import encode_prompt, encode_response, encode_rows, eos_ids
from sail.data.formats import Row, parse_row
from sail.errors import DataError

TEXT_ROW = Row("The sky is", " blue", " green", "pairs.jsonl row 0")
CHAT_ROW = Row(ASK, "It is blue.", "It is green.", "pairs.jsonl row 1")


def encode(rows, tokenizer, **options):
    return encode_rows(rows, tokenizer, **{"max_length": None, "max_prompt_length": None, **options})


class TestConversations:
    def test_chatml_by_hand(self):
        tokenizer = chat_tokenizer()
        start, end = "<|im_start|>", "<|im_end|>"
        assert encode_prompt(tokenizer, ASK) == spelled(
            tokenizer, start, "user\nWhat colour is the sky?", end, "\n", start, "assistant\n"
        )
        # Up to the end of the turn; the line break behind it is never generated.
        assert encode_response(tokenizer, ASK, "It is blue.") == spelled(tokenizer, "It is blue.", end)

    def test_prompt_ids_do_not_depend_on_the_response(self):
        tokenizer = chat_tokenizer()
        whole = tokenizer.apply_chat_template(
            [*ASK, {"role": "assistant", "content": "It is"}], tokenize=False
        )
        ours = encode_prompt(tokenizer, ASK) + encode_response(tokenizer, ASK, "It is")
        assert tokenizer.decode(ours) + "\n" == whole

    def test_template_writes_bos_once(self):
        tokenizer = chat_tokenizer("<s>" + CHATML, add_eos=True)
        ids = encode_prompt(tokenizer, ASK)
        assert ids[0] == 1
        assert ids.count(1) == 1
        assert 2 not in ids

    def test_end_of_turn_known_to_the_generation_config_only(self):
        tokenizer = chat_tokenizer(eos_token="</s>")
        eos = eos_ids(tokenizer, SimpleNamespace(eos_token_id=[2, 4]))
        assert encode_response(tokenizer, ASK, "It is blue.", eos) == spelled(
            tokenizer, "It is blue.", "<|im_end|>"
        )

    def test_end_of_turn_that_is_no_eos_gets_one(self):
        tokenizer = chat_tokenizer(eos_token="</s>")
        expected = spelled(tokenizer, "It is blue.", "<|im_end|>", "\n", "</s>")
        assert encode_response(tokenizer, ASK, "It is blue.") == expected

    def test_template_that_closes_no_turn(self):
        plain = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
        tokenizer = chat_tokenizer(plain)
        assert encode_response(tokenizer, ASK, "It is blue.") == spelled(
            tokenizer, "It is blue. ", "<|im_end|>"
        )

    def test_template_that_writes_on_after_the_end(self):
        tokenizer = chat_tokenizer(CHATML.replace("<|im_end|>\n", "<|im_end|></s>\n"))
        assert encode_response(tokenizer, ASK, "It is blue.") == spelled(
            tokenizer, "It is blue.", "<|im_end|>"
        )

    def test_text_that_the_template_puts_before_the_answer_is_part_of_it(self):
        # As templates of reasoning models do: the policy has to write it.
        thought = CHATML.replace(
            "{{ m['content'] }}", "{% if m['role'] == 'assistant' %}<t></t>{% endif %}{{ m['content'] }}"
        )
        tokenizer = chat_tokenizer(thought)
        expected = spelled(tokenizer, "<t></t>It is blue.", "<|im_end|>")
        assert encode_response(tokenizer, ASK, "It is blue.") == expected

    def test_open_turn_that_the_answered_prompt_lacks(self):
        # The rendered prompt is no prefix here: the plain response is used, and no id of the prompt is lost.
        tokenizer = chat_tokenizer(CHATML.replace("assistant\n{% endif", "assistant\n<t>{% endif"))
        assert tokenizer.decode(encode_prompt(tokenizer, ASK)).endswith("assistant\n<t>")
        assert encode_response(tokenizer, ASK, "It is blue.") == spelled(
            tokenizer, "It is blue.", "<|im_end|>"
        )

    def test_template_that_trims(self):
        tokenizer = chat_tokenizer(CHATML.replace("m['content']", "m['content'] | trim"))
        assert encode_response(tokenizer, ASK, " It is blue. ") == spelled(
            tokenizer, "It is blue.", "<|im_end|>"
        )

    def test_no_template(self):
        way_out = r"no chat template\. Set tokenizer\.chat_template, use a model that has one, or write"
        for call in (lambda t: encode_prompt(t, ASK), lambda t: encode_response(t, ASK, "It is blue.")):
            with pytest.raises(DataError, match=way_out):
                call(byte_bpe())
        # Skipping would leave out every conversation: refused, whatever else is in the data.
        with pytest.raises(DataError, match=rf"pairs\.jsonl row 1: .*{way_out}"):
            encode([TEXT_ROW, CHAT_ROW], byte_bpe(), bad_rows="skip")

    def test_template_that_refuses(self):
        tokenizer = chat_tokenizer("{{ raise_exception('no system role') }}")
        with pytest.raises(
            DataError, match=r"chat template refuses the messages \(no system role\)\. Change"
        ):
            encode_prompt(tokenizer, ASK)
        with pytest.raises(
            DataError, match=r"pairs\.jsonl row 1: field 'prompt': the tokenizer's chat template"
        ):
            encode([CHAT_ROW], tokenizer)


class TestAgainstTrl:
    """The ids of trl.DPOTrainer's own processed dataset, where no token merges across the boundary."""

    def processed(self, records, tokenizer, folder):
        trl = pytest.importorskip("trl")
        datasets = pytest.importorskip("datasets")
        from transformers import LlamaConfig, LlamaForCausalLM

        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=8,
            intermediate_size=8,
            num_hidden_layers=1,
            num_attention_heads=1,
        )
        args = trl.DPOConfig(folder, report_to=[], use_cpu=True, bf16=False, max_length=None)
        trainer = trl.DPOTrainer(
            LlamaForCausalLM(config),
            LlamaForCausalLM(config),
            args=args,
            train_dataset=datasets.Dataset.from_list(records),
            processing_class=tokenizer,
        )
        return trainer.train_dataset

    def test_standard(self, tmp_path):
        tokenizer = byte_bpe(add_eos=False, pad_token="<pad>", bos_token="<s>")
        records = [
            {"prompt": "The sky is", "chosen": " blue.", "rejected": " green. It is"},
            {"prompt": "What colour?\n", "chosen": "hello", "rejected": "there hello"},
        ]
        theirs = self.processed(records, tokenizer, tmp_path)
        ours = encode([parse_row(record, "") for record in records], tokenizer)
        for i in range(len(records)):
            for key in ("prompt_ids", "chosen_ids", "rejected_ids"):
                assert ours[i][key] == theirs[i][key]

    def test_conversational(self, tmp_path):
        tokenizer = chat_tokenizer(pad_token="<pad>")
        answers = [[{"role": "assistant", "content": text}] for text in ("It is blue.", "It is green.")]
        records = [
            {"prompt": ASK, "chosen": answers[0], "rejected": answers[1]},
            {"prompt": [*ASK, *answers[0], *ASK], "chosen": answers[1], "rejected": answers[0]},
        ]
        theirs = self.processed(records, tokenizer, tmp_path)
        ours = encode([parse_row(record, "") for record in records], tokenizer)
        line_break = spelled(tokenizer, "\n")
        for i in range(len(records)):
            assert ours[i]["prompt_ids"] == theirs[i]["prompt_ids"]
            for key in ("chosen_ids", "rejected_ids"):
                # TRL also trains on the line break after the end of turn, which is never generated.
                assert ours[i][key] + line_break == theirs[i][key]
