"""A reward model as an oracle: scores are those of the model alone, whatever is in the batch; what cannot score is refused."""

from __future__ import annotations

import json
import logging
import math
import random
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from tiny_classifiers import WORDS, chat_tokenizer, save_bert, save_llama
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sail.errors import ConfigError, OracleError
from sail.oracles.reward_model import RewardModel
from sail.types import Pair, Prompt


def texts(count: int = 40, seed: int = 3) -> tuple[list[Prompt], list[str]]:
    """Prompts and responses of very different lengths."""
    chance = random.Random(seed)

    def words(most: int) -> str:
        return " ".join(chance.choice(WORDS) for _ in range(chance.randint(1, most)))

    return [words(6) for _ in range(count)], [words(24) for _ in range(count)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert"))


def alone(folder: Path, ids: list[int], **more: list[int]) -> float:
    """What the model itself says about one text, without padding and mask."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return float(
            model(torch.tensor([ids]), **{key: torch.tensor([one]) for key, one in more.items()}).logits
        )


# --- Scores ---------------------------------------------------------------------------------------------------


def test_a_decoder_scores_each_text_as_it_does_alone(llama: Path) -> None:
    prompts, responses = texts()
    scores = RewardModel(str(llama), batch_size=7).score(prompts, responses)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    expected = [
        alone(
            llama,
            [
                *tokenizer(prompt)["input_ids"],
                *tokenizer(text, add_special_tokens=False)["input_ids"],
                tiny.EOS,
            ],
        )
        for prompt, text in zip(prompts, responses, strict=True)
    ]
    assert scores == pytest.approx(expected, abs=1e-5)
    assert max(scores) - min(scores) > 0.5


def test_an_encoder_gets_two_texts_with_their_segments(bert: Path) -> None:
    prompts, responses = texts(12)
    scores = RewardModel(str(bert), batch_size=5).score(prompts, responses)
    tokenizer = AutoTokenizer.from_pretrained(bert)
    for place in range(12):
        made = tokenizer(prompts[place], responses[place])
        assert sum(made["token_type_ids"]) > 0
        expected = alone(bert, made["input_ids"], token_type_ids=made["token_type_ids"])
        assert scores[place] == pytest.approx(expected, abs=1e-5)
        assert alone(bert, made["input_ids"]) != pytest.approx(expected, abs=1e-3)


def test_a_conversation_is_written_by_the_reward_models_own_template(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "chat", chat_tokenizer())
    prompt: Prompt = [{"role": "system", "content": "w1"}, {"role": "user", "content": "w2 w3"}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "<|system|> w1 <|end|> <|user|> w2 w3 <|end|> <|assistant|> w4 <|end|>"
    expected = alone(folder, tokenizer(text)["input_ids"])
    assert RewardModel(str(folder)).score([prompt], ["w4"]) == pytest.approx([expected], abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 16, 1000])
@pytest.mark.parametrize("side", ["left", "right"])
def test_batching_order_and_padding_side_change_nothing(llama: Path, batch_size: int, side: str) -> None:
    prompts, responses = texts()
    oracle = RewardModel(str(llama), batch_size=batch_size)
    oracle.tokenizer.padding_side = side
    scores = oracle.score(prompts, responses)
    singly = [
        oracle.score([one], [two])[0] for one, two in zip(prompts, responses, strict=True)
    ]  # nothing to pad
    assert scores == pytest.approx(singly, abs=1e-5)
    assert oracle.score(prompts[::-1], responses[::-1]) == pytest.approx(scores[::-1], abs=1e-5)


def test_another_tokenizer_would_change_the_scores_and_is_not_used(llama: Path, tmp_path: Path) -> None:
    """The policy's tokenizer has other ids for the same words: scores are of the reward model's own."""
    prompts, responses = texts(8)
    own = RewardModel(str(llama)).score(prompts, responses)
    shuffled = tmp_path / "policy"
    tiny.make_tokenizer(WORDS[::-1]).save_pretrained(shuffled)
    asked_otherwise = RewardModel(str(llama), tokenizer=str(shuffled)).score(prompts, responses)
    assert asked_otherwise != pytest.approx(own, abs=1e-2)
    # Through a trainer, whose tokenizer is the shuffled one.
    oracle = RewardModel(str(llama))
    trainer = tiny.make_trainer(
        tmp_path / "run", tokenizer=tiny.make_tokenizer(WORDS[::-1]), oracle=oracle, max_steps=1
    )
    trainer.train()
    assert oracle.counts["scored"] > 0
    assert trainer.oracle.score(prompts, responses) == pytest.approx(own, abs=1e-6)


# --- Where a decoder's score is read ----------------------------------------------------------------------------


def test_a_pad_id_in_the_config_decides_where_the_score_is_read(tmp_path: Path) -> None:
    """With the pad id equal to EOS the model reads before the EOS, alone and in a batch."""
    folder = save_llama(tmp_path / "m", tiny.make_tokenizer(pad_is_eos=True), pad_token_id=tiny.EOS)
    prompts, responses = texts(10)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    expected = [
        alone(folder, [*tokenizer(f"{one} {two}")["input_ids"], tiny.EOS])
        for one, two in zip(prompts, responses, strict=True)
    ]
    assert RewardModel(str(folder)).score(prompts, responses) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("pad_is_eos", [False, True])
def test_without_one_the_score_is_read_at_the_last_token(tmp_path: Path, pad_is_eos: bool) -> None:
    """Also where the tokenizer's pad token is its EOS, with which every text ends."""
    tokenizer = tiny.make_tokenizer(pad_is_eos=pad_is_eos)
    if pad_is_eos:
        tokenizer.pad_token = tokenizer.eos_token
    folder = save_llama(tmp_path / "m", tokenizer, pad_token_id=None)
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.pad_token_id is None
    prompts, responses = texts(10)
    expected = [
        alone(folder, [*tokenizer(f"{one} {two}")["input_ids"], tiny.EOS])
        for one, two in zip(prompts, responses, strict=True)
    ]
    assert RewardModel(str(folder)).score(prompts, responses) == pytest.approx(expected, abs=1e-5)


# --- Preferences ------------------------------------------------------------------------------------------------


def test_bradley_terry_with_temperature_and_sign(llama: Path) -> None:
    first, second = RewardModel(str(llama)).score(["w1", "w1"], ["w2 w3", "w9"])
    pair = Pair("w1", "w2 w3", "w9")
    for temperature, lower, sign in ((1.0, False, 1), (2.5, False, 1), (0.5, True, -1)):
        oracle = RewardModel(str(llama), temperature=temperature, lower_is_better=lower)
        expected = 1 / (1 + math.exp(-sign * (first - second) / temperature))
        assert oracle.compare([pair])[0].first_wins == pytest.approx(expected, abs=1e-6)
        assert oracle.compare([pair.swap()])[0].first_wins == pytest.approx(1 - expected, abs=1e-6)
        assert oracle.score(["w1"], ["w2 w3"]) == pytest.approx([sign * first], abs=1e-6)


def test_an_empty_response_is_judged_like_any_other(llama: Path, bert: Path) -> None:
    for folder in (llama, bert):
        (given,) = RewardModel(str(folder)).compare([Pair("w1 w2", "", "w3")])
        assert given.first_wins is not None


def test_a_row_that_its_tokenizer_cannot_read_costs_that_row_only(tmp_path: Path) -> None:
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
        + tokenizer.chat_template
    )
    oracle = RewardModel(str(save_llama(tmp_path / "m", tokenizer)))
    good = Pair([{"role": "user", "content": "w1"}], "w2", "w3")
    bad = Pair([{"role": "tool", "content": "w1"}], "w2", "w3")
    given = oracle.compare([good, bad, good])
    assert given[1].first_wins is None
    assert "no tools" in (given[1].reason or "")
    assert given[0] == given[2] == oracle.compare([good])[0]
    assert oracle.report()["reward_model"]["unreadable"] == 1
    scores = oracle.score([good.prompt, bad.prompt, good.prompt], ["w2", "w2", "w3"])
    assert scores[1] is None
    alone = [oracle.score([good.prompt], [text])[0] for text in ("w2", "w3")]
    assert scores[::2] == pytest.approx(alone, abs=1e-6)
    assert oracle.report()["reward_model"]["unreadable"] == 2


# --- Too long -----------------------------------------------------------------------------------------------------


def test_what_is_too_long_loses_the_left_of_its_prompt_and_is_counted(
    llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    oracle = RewardModel(str(llama), max_length=8)
    with caplog.at_level(logging.WARNING):
        scores = oracle.score(["w1 w2 w3 w4 w5 w6", "w1", "w1"], ["w7 w8", "w7 w8", " ".join(["w5"] * 20)])
    # 8 tokens: five of the prompt, two of the response and the EOS.
    kept = RewardModel(str(llama)).score(["w2 w3 w4 w5 w6"], ["w7 w8"])
    assert scores[0] == pytest.approx(kept[0], abs=1e-6)
    assert oracle.report()["reward_model"] == {
        "scored": 3,
        "cut": 2,
        "responses_cut": 1,
        "unreadable": 0,
        "max_length": 8,
    }
    assert caplog.text.count("at most 8 tokens") == 1


def test_an_encoders_opening_token_stays_and_segments_go_with_their_tokens(bert: Path) -> None:
    # [CLS] w3 w4 [SEP] w5 w6 [SEP] are 7 tokens.
    cut = RewardModel(str(bert), max_length=7).score(["w1 w2 w3 w4"], ["w5 w6"])
    assert cut == pytest.approx(RewardModel(str(bert)).score(["w3 w4"], ["w5 w6"]), abs=1e-6)


def test_its_limit_is_the_models_and_not_above_it(llama: Path) -> None:
    assert RewardModel(str(llama)).max_length == 64
    with pytest.raises(ConfigError, match="can take 64 tokens"):
        RewardModel(str(llama), max_length=65)


# --- What is refused ------------------------------------------------------------------------------------------------


def refusal(folder: Path | str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        RewardModel(str(folder), **options)
    return str(caught.value)


def test_models_that_cannot_score_are_refused_with_the_way_out(tmp_path: Path) -> None:
    assert "has 3 outputs" in refusal(save_llama(tmp_path / "three", labels=3))
    tiny.make_model().save_pretrained(tmp_path / "lm")
    tiny.make_tokenizer().save_pretrained(tmp_path / "lm")
    assert "LlamaForCausalLM" in refusal(tmp_path / "lm")
    assert "sail train-reward" in refusal(tmp_path / "lm")
    assert "There is no folder" in refusal(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "not a model folder" in refusal(tmp_path / "empty")


def test_a_classifier_without_its_head_is_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "m")
    tiny.make_model().save_pretrained(tmp_path / "lm")
    (tmp_path / "lm" / "model.safetensors").replace(folder / "model.safetensors")
    assert "score.weight" in refusal(folder)
    assert "random" in refusal(folder)


def test_weights_that_can_run_code_and_code_are_refused(tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "pickled")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert "no safetensors" in refusal(folder)
    folder = save_llama(tmp_path / "remote")
    (folder / "evil.py").write_text("open('ran', 'w')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForSequenceClassification": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    assert "code of its own" in refusal(folder)
    config |= {"model_type": "unheard-of", "auto_map": {"AutoConfig": "evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    assert "could not be loaded" in refusal(folder)
    assert not Path("ran").exists()


def test_a_missing_tokenizer_template_and_pad_token(llama: Path, tmp_path: Path) -> None:
    folder = save_llama(tmp_path / "bare")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert "holds no tokenizer" in refusal(folder)
    with pytest.raises(OracleError, match="no chat template"):
        RewardModel(str(llama)).compare([Pair([{"role": "user", "content": "w1"}], "w2", "w3")])
    tokenizer = tiny.make_tokenizer(pad_is_eos=True)
    tokenizer.eos_token = None
    assert "pad token" in refusal(save_llama(tmp_path / "padless", tokenizer, pad_token_id=None))


def test_other_refusals(llama: Path, tmp_path: Path) -> None:
    assert "temperature must be above 0" in refusal(llama, temperature=0)
    assert "is no device" in refusal(llama, device="gpu:one")
    more = tiny.make_tokenizer([*WORDS, "w99"])
    more.save_pretrained(tmp_path / "more")
    with pytest.raises(OracleError, match="has no token"):
        RewardModel(str(llama), tokenizer=str(tmp_path / "more")).score(["w99"], ["w1"])


def test_scores_that_are_no_numbers_are_an_error(llama: Path) -> None:
    oracle = RewardModel(str(llama))
    oracle.model.score.weight.data.fill_(float("nan"))
    with pytest.raises(OracleError, match="nan for 1 of 1"):
        oracle.score(["w1"], ["w2"])


# --- Identity, precision, place ------------------------------------------------------------------------------------------


def test_a_copy_is_the_same_oracle_and_other_weights_are_another(llama: Path, tmp_path: Path) -> None:
    settings = RewardModel(str(llama)).settings()
    assert RewardModel(str(save_llama(tmp_path / "copy"))).settings() == settings
    assert RewardModel(str(save_llama(tmp_path / "other", seed=1))).settings() != settings
    assert RewardModel(str(llama), temperature=2).settings() != settings
    assert RewardModel(str(llama), lower_is_better=True).settings() != settings
    assert RewardModel(str(llama), max_length=10).settings() != settings
    assert RewardModel(str(llama), batch_size=2, offload=True).settings() == settings
    oracle = RewardModel(str(llama))
    oracle.score(*texts(5))
    assert oracle.settings() == settings


def test_it_scores_in_its_own_precision_under_the_trainers_autocast(llama: Path) -> None:
    prompts, responses = texts(8)
    oracle = RewardModel(str(llama))
    plain = oracle.score(prompts, responses)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert oracle.score(prompts, responses) == plain
    half = RewardModel(str(llama), dtype="bfloat16")
    assert half.model.dtype == torch.bfloat16
    assert half.score(prompts, responses) == pytest.approx(plain, abs=0.2)
    assert half.score(prompts, responses) != plain


def test_equal_texts_are_scored_once_and_the_random_state_is_left_alone(llama: Path) -> None:
    before = torch.get_rng_state()
    oracle = RewardModel(str(llama), offload=True)
    oracle.compare([Pair("w1", "w2", "w3"), Pair("w1", "w3", "w2"), Pair("w1", "w2", "w4")])
    assert oracle.counts["scored"] == 3
    assert torch.equal(torch.get_rng_state(), before)
    assert oracle.model.device.type == "cpu"
    assert oracle.compare([]) == []
