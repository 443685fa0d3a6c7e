"""encode.py on text: tokenizers with and without pad, EOS and BOS, and what text becomes.

The tokenizers are real ones, built here for all tests of encode.py. Expected ids are spelled from tokens by hand.
"""

from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from sail.data.encode import (
    encode_prompt,
    encode_response,
    eos_ids,
    prepare_tokenizer,
)
from sail.errors import DataError

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEXTS = [
    "What colour is the sky? It is blue. It is green.",
    "user assistant system The sky is blue",
    "hello there",
]
ASK = [{"role": "user", "content": "What colour is the sky?"}]
WORDS = ["The", "sky", "is", "blue", "green", "."]


def byte_bpe(texts=TEXTS, add_eos=False, size=400, **options):
    """A byte-level BPE as GPT-2's or Llama 3's, trained on a few sentences."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    if add_eos:
        ends = [("<s>", inner.token_to_id("<s>")), ("</s>", inner.token_to_id("</s>"))]
        inner.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{"eos_token": "</s>", **options})


def word_level(**options):
    """One token per word; for want of an unknown token it refuses any other."""
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **{"eos_token": "</s>", **options})


def letters(known="The sky is"):
    """One token per known letter, none for any other."""
    inner = Tokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate([*SPECIAL, *sorted(set(known))])}, merges=[])
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>")


def sentencepiece_like(**options):
    """A BPE that writes a word start before every text, as Llama 2's, with byte fallback."""
    texts = ["▁What▁colour▁is▁the▁sky?", "▁It▁is▁blue.", "▁Paris"]
    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence([decoders.Metaspace(prepend_scheme="never"), decoders.ByteFallback()])
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<unk>", *SPECIAL, *bytes_], show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, **{"eos_token": "</s>", "unk_token": "<unk>", **options}
    )


def chat_tokenizer(template=CHATML, **options):
    tokenizer = byte_bpe(**{"eos_token": "<|im_end|>", **options})
    tokenizer.chat_template = template
    return tokenizer


def spelled(tokenizer, *pieces):
    """The ids of texts and of special tokens, put together by hand."""
    return [i for piece in pieces for i in tokenizer(piece, add_special_tokens=False)["input_ids"]]


class TestTokenizer:
    def test_missing_pad_becomes_eos(self):
        tokenizer = byte_bpe()
        prepare_tokenizer(tokenizer)
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2

    @pytest.mark.parametrize("pad", ["<pad>", "</s>"])
    def test_given_pad_is_kept(self, pad):
        tokenizer = byte_bpe(pad_token=pad)
        prepare_tokenizer(tokenizer)
        assert tokenizer.pad_token == pad

    def test_neither_pad_nor_eos(self):
        with pytest.raises(DataError, match=r"neither a pad nor an EOS token\. Set tokenizer\.eos_token"):
            prepare_tokenizer(byte_bpe(eos_token=None))

    @pytest.mark.parametrize(
        ("listed", "expected"), [(None, (2,)), (4, (2, 4)), ([4, 2], (2, 4)), ((9, 4, 9), (2, 4, 9))]
    )
    def test_eos_ids_of_tokenizer_and_generation_config(self, listed, expected):
        assert eos_ids(byte_bpe(), SimpleNamespace(eos_token_id=listed)) == expected

    def test_eos_ids_of_one_of_them(self):
        assert eos_ids(byte_bpe()) == (2,)
        assert eos_ids(byte_bpe(eos_token=None), SimpleNamespace(eos_token_id=4)) == (4,)

    @pytest.mark.parametrize("config", [None, SimpleNamespace(eos_token_id=None)])
    def test_no_eos_at_all(self, config):
        with pytest.raises(
            DataError, match=r"has an EOS id: no response could end\. Set tokenizer\.eos_token"
        ):
            eos_ids(byte_bpe(eos_token=None), config)


class TestStandardText:
    def test_word_level_by_hand(self):
        tokenizer = word_level()
        assert encode_prompt(tokenizer, "The sky is") == [5, 6, 7]
        assert encode_response(tokenizer, "The sky is", " blue .") == [8, 10, 2]

    def test_added_bos_stays_and_added_eos_goes(self):
        tokenizer = byte_bpe(add_eos=True)
        assert tokenizer("The sky is")["input_ids"] == [1, *spelled(tokenizer, "The sky is"), 2]
        assert encode_prompt(tokenizer, "The sky is") == [1, *spelled(tokenizer, "The sky is")]
        assert encode_response(tokenizer, "The sky is", " blue") == spelled(tokenizer, " blue", "</s>")

    def test_an_eos_that_the_prompt_itself_holds_stays(self):
        tokenizer = byte_bpe()
        assert encode_prompt(tokenizer, "hello</s>") == [*spelled(tokenizer, "hello"), 2]

    def test_eos_written_in_the_data_is_not_doubled(self):
        tokenizer = byte_bpe()
        assert encode_response(tokenizer, "a", " blue</s>") == encode_response(tokenizer, "a", " blue")
        assert encode_response(tokenizer, "a", " blue</s>\n") == encode_response(tokenizer, "a", " blue")
        # Another EOS of the model ends it as well.
        assert encode_response(tokenizer, "a", " blue<|im_end|>", (2, 4)) == spelled(
            tokenizer, " blue", "<|im_end|>"
        )

    def test_nothing_follows_an_eos(self):
        with pytest.raises(
            DataError, match=r"goes on after the end-of-text token '</s>'\. Remove that token"
        ):
            encode_response(byte_bpe(), "a", " blue</s> and green")

    def test_no_token_left(self):
        with pytest.raises(DataError, match=r"makes no token of the prompt\. Reword it"):
            encode_prompt(letters(), "abc")
        with pytest.raises(DataError, match=r"makes no token of the response\. Reword it"):
            encode_response(letters(), "The", "abc")

    def test_text_that_the_tokenizer_refuses(self):
        with pytest.raises(
            DataError, match=r"cannot read the text \(WordLevel error: Missing \[UNK\].*Reword it"
        ):
            encode_prompt(word_level(), "xyz")

    def test_eos_of_the_generation_config_alone(self):
        tokenizer = byte_bpe(eos_token=None)
        assert encode_response(tokenizer, "a", " blue", (4,)) == [*spelled(tokenizer, " blue"), 4]

    @pytest.mark.parametrize(("prompt", "response"), [("ab", "cd"), ("hello ", "there")])
    def test_merges_across_the_boundary_lose_no_token(self, prompt, response):
        # Trained so that the two texts together are one token, which is a token of neither.
        tokenizer = byte_bpe([prompt + response] * 20, size=500)
        joined = spelled(tokenizer, prompt + response)
        prompt_ids, response_ids = (
            encode_prompt(tokenizer, prompt),
            encode_response(tokenizer, prompt, response),
        )
        assert joined[: len(prompt_ids)] != prompt_ids
        assert prompt_ids == spelled(tokenizer, prompt)
        assert response_ids == spelled(tokenizer, response, "</s>")
        assert tokenizer.decode(prompt_ids + response_ids[:-1]) == prompt + response

    def test_no_space_is_invented_before_a_response(self):
        tokenizer = sentencepiece_like()
        tokens = tokenizer.convert_ids_to_tokens
        assert tokens(spelled(tokenizer, "Paris")) == ["▁Paris"]  # alone, a word start is added
        for response in ("Paris", " Paris"):
            prompt = "What colour is the sky?"
            ids = encode_prompt(tokenizer, prompt) + encode_response(tokenizer, prompt, response)
            assert ids[:-1] == spelled(tokenizer, prompt + response)
            assert tokenizer.decode(ids[:-1]).lstrip() == prompt + response

    def test_line_breaks_need_not_be_tokens(self):
        # A tokenizer that cannot read a line break, or has no token for it: not the response's fault.
        one_word = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"</s>": 0, "blue": 1})), eos_token="</s>"
        )
        assert encode_response(one_word, "blue", "blue") == [1, 0]
        unknown = PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer(models.WordLevel({"</s>": 0, "blue": 1, "?": 2}, unk_token="?")),
            eos_token="</s>",
            unk_token="?",
        )
        assert encode_response(unknown, "blue", "blue") == [1, 0]
        assert encode_response(unknown, "blue", "green") == [2, 0]

    @pytest.mark.parametrize("response", ["\n", "\n\nblue", " \n blue", "blue\n"])
    def test_line_breaks_of_the_response_are_kept(self, response):
        for tokenizer in (byte_bpe(), byte_bpe(["\n\n\n", " \n"] * 9), sentencepiece_like()):
            ids = encode_response(tokenizer, "The sky is", "." + response)
            assert tokenizer.decode(ids[:-1]).lstrip() == "." + response
            assert tokenizer.decode(encode_response(tokenizer, "a", response)[:-1]) == response
