"""Sampling: the policy's own distribution, reproducible row by row, and where a response ends."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from tiny import EOS, PAD, make_model, make_tokenizer
from transformers import LlamaForCausalLM, LogitsProcessor

from sail.errors import SailError
from sail.generation import Sampled, SamplingSettings, TransformersGenerator
from sail.generation.scoring import score_sequences
from sail.generation.transformers import left_pad

PROMPTS = [[5, 6], [7, 8, 9, 10, 11], [12], [3, 4, 5, 6], [20, 21, 22]]
KEYS = [(7, "sample", 0, index, 0) for index in range(len(PROMPTS))]


def speaker(dtype: torch.dtype = torch.float64, **changes: Any) -> Any:
    """A model with opinions, which likes to end what it says."""
    model = make_model(dtype, scale=0.3, **changes)
    likes = 3.0 * (torch.arange(32) == EOS)
    model.lm_head.register_forward_hook(lambda module, arguments, logits: logits + likes.to(logits.dtype))
    return model


def generator(model: Any = None, tokenizer: Any = None, **options: Any) -> TransformersGenerator:
    model = speaker() if model is None else model
    settings = SamplingSettings(
        **{"max_new_tokens": 8, "eos_ids": (EOS,), "pad_id": PAD, **options}  # type: ignore[arg-type]
    )
    return TransformersGenerator(
        lambda: model, make_tokenizer() if tokenizer is None else tokenizer, settings
    )


def next_token(model: Any, ids: list[int], temperature: float) -> np.ndarray:
    """The model's distribution of the token after `ids`."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    return torch.softmax(logits / temperature, -1).numpy()


# ---- the distribution


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_samples_follow_the_softmax(temperature: float) -> None:
    """Chi-square over all pairs of first and second token: 36 cells of a vocabulary of 6."""
    count, vocabulary, prompt = 4000, 6, [3, 4]
    model = make_model(vocabulary=vocabulary, scale=0.4)
    one = generator(model, max_new_tokens=2, temperature=temperature, eos_ids=())
    sampled = one.sample([prompt] * count, [(1, "chi", number) for number in range(count)])
    seen = np.zeros((vocabulary, vocabulary))
    for row in sampled:
        seen[row.ids] += 1
    first = next_token(model, prompt, temperature)
    expected = np.stack(
        [first[token] * next_token(model, [*prompt, token], temperature) for token in range(vocabulary)]
    )
    assert stats.chisquare(seen.ravel(), count * expected.ravel()).pvalue > 1e-3
    # The test can tell: against the other temperature it fails.
    other = next_token(model, prompt, 1.7 - temperature)
    assert stats.chisquare(seen.sum(1), count * other).pvalue < 1e-6


def test_a_certain_policy_says_what_it_is_certain_of() -> None:
    model = make_model()
    model.lm_head.register_forward_hook(lambda m, a, logits: logits + 1e4 * (torch.arange(32) == 9))
    for row in generator(model).sample(PROMPTS, KEYS):
        assert row.ids == (9,) * 8
        assert row.log_prob == 0.0
        assert row.cut


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_recorded_log_prob_is_the_scored_one(temperature: float, dtype: torch.dtype) -> None:
    """At temperature 1, whatever the temperature of sampling, the EOS included. `generate` hands over scores in float32."""
    model = speaker(dtype)
    rows = generator(model, temperature=temperature).sample(
        PROMPTS * 8, [(1, number) for number in range(40)]
    )
    assert any(row.ids[-1] == EOS for row in rows)
    assert any(row.cut for row in rows)
    sequences = [(prompt, list(row.ids)) for prompt, row in zip(PROMPTS * 8, rows, strict=True)]
    scores = score_sequences(model, sequences, pad_id=PAD, batch_size=7)
    assert [row.log_prob for row in rows] == pytest.approx(
        scores, abs=2e-6 if dtype == torch.float64 else 2e-5
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_recorded_sampling_log_prob_is_that_of_the_tempered_policy(temperature: float) -> None:
    """The sum over tokens of log softmax(logits / T), each from a forward pass of its own."""
    model = speaker()
    for prompt, row in zip(
        PROMPTS, generator(model, temperature=temperature).sample(PROMPTS, KEYS), strict=True
    ):
        total = 0.0
        for place, token in enumerate(row.ids):
            total += np.log(next_token(model, [*prompt, *row.ids[:place]], temperature)[token])
        assert row.sampling_log_prob == pytest.approx(total, abs=1e-4)
        assert (row.sampling_log_prob == row.log_prob) == (temperature == 1.0)


# ---- what a sample depends on


def test_a_row_depends_on_its_key_alone() -> None:
    """Not on the other rows, nor on their order (in float64: padding changes the last bits of a forward pass)."""
    together = generator().sample(PROMPTS, KEYS)
    order = [3, 0, 4, 2, 1]
    shuffled = generator().sample([PROMPTS[i] for i in order], [KEYS[i] for i in order])
    for place, row in enumerate(order):
        assert shuffled[place].ids == together[row].ids
    for prompt, key, expected in zip(PROMPTS, KEYS, together, strict=True):
        alone = generator().sample([prompt], [key])[0]
        assert alone.ids == expected.ids
        assert alone.log_prob == pytest.approx(expected.log_prob, abs=1e-11)
    other = generator().sample(PROMPTS, [(8, *key[1:]) for key in KEYS])
    assert [row.ids for row in other] != [row.ids for row in together]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 50])
def test_splitting_into_calls_changes_nothing(size: int) -> None:
    whole = generator().sample(PROMPTS, KEYS)
    split = generator(batch_size=size).sample(PROMPTS, KEYS)
    assert [(row.ids, row.text, row.cut) for row in split] == [(row.ids, row.text, row.cut) for row in whole]
    assert [row.log_prob for row in split] == pytest.approx([row.log_prob for row in whole], abs=1e-11)


def test_a_lower_limit_gives_the_beginning_of_the_same_response() -> None:
    long = generator(max_new_tokens=8).sample(PROMPTS, KEYS)
    short = generator(max_new_tokens=3).sample(PROMPTS, KEYS)
    assert [row.ids for row in short] == [row.ids[:3] for row in long]


def test_equal_keys_give_equal_samples_and_different_ones_do_not() -> None:
    first, again, other = generator().sample([PROMPTS[0]] * 3, [(1, 0), (1, 0), (1, 1)])
    assert first == again
    assert first.ids != other.ids


def test_no_prompts_no_call() -> None:
    assert generator(model=object()).sample([], []) == []


# ---- what it leaves alone


def test_global_random_state_is_untouched() -> None:
    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()  # noqa: NPY002

    before = states()
    generator().sample(PROMPTS, KEYS)
    assert states() == before


@pytest.mark.parametrize("training", [True, False])
def test_mode_and_generation_config_are_restored(training: bool) -> None:
    model = make_model().train(training)
    model.generation_config.top_k = 3
    config = model.generation_config
    generator(model).sample(PROMPTS, KEYS)
    assert model.training is training
    assert model.generation_config is config
    assert config.top_k == 3
    assert all(value.grad is None for value in model.parameters())

    def fail(*arguments: Any) -> None:
        raise RuntimeError("in the middle")

    model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        generator(model).sample(PROMPTS, KEYS)
    assert model.training is training
    assert model.generation_config is config


def test_dropout_is_off_while_sampling() -> None:
    rows = [generator(speaker(attention_dropout=p).train()).sample(PROMPTS, KEYS) for p in (0.0, 0.9)]
    assert rows[0] == rows[1]


def test_the_models_own_sampling_settings_do_not_leak() -> None:
    plain = generator().sample(PROMPTS, KEYS)
    model = speaker()
    model.generation_config.update(
        do_sample=True, temperature=0.2, top_k=1, top_p=0.1, repetition_penalty=5.0, min_new_tokens=8,
        suppress_tokens=[4, 5, 6], max_new_tokens=1, num_beams=3, no_repeat_ngram_size=1,
    )  # fmt: skip
    assert generator(model).sample(PROMPTS, KEYS) == plain


class Forbid(LogitsProcessor):
    def __init__(self, in_place: bool) -> None:
        self.in_place = in_place

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        scores = scores if self.in_place else scores.clone()
        scores[:, 4] = -1e9
        return scores


class Meddling(LlamaForCausalLM):
    """A model whose own generate() changes the scores."""

    in_place = False

    def generate(self, **options: Any) -> Any:
        options["logits_processor"].insert(0, Forbid(self.in_place))
        return super().generate(**options)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_that_changes_its_scores_is_refused(in_place: bool) -> None:
    model = Meddling(make_model().config)
    model.in_place = in_place
    with pytest.raises(SailError, match="logits processor of its own"):
        generator(model).sample(PROMPTS, KEYS)


def test_tied_scores_and_log_probs_are_those_of_the_moment() -> None:
    """The callable is asked every time, so that the newest weights speak."""
    model = speaker()
    one = generator(model)
    before = one.sample(PROMPTS, KEYS)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(1.5)
    assert one.sample(PROMPTS, KEYS) != before


# ---- where a response ends


def ends_well(row: Sampled, ends: tuple[int, ...], limit: int) -> None:
    """An end id only as the last one, exactly where one was emitted; cut exactly if there is none."""
    assert not set(row.ids[:-1]) & set(ends)
    assert row.cut == (row.ids[-1] not in ends)
    assert len(row.ids) == limit if row.cut else len(row.ids) <= limit


@pytest.mark.parametrize("pad", [PAD, EOS])
@pytest.mark.parametrize("ends", [(EOS,), (EOS, 4, 9), ()])
def test_every_eos_ends_a_response(ends: tuple[int, ...], pad: int) -> None:
    """Also where the pad token is the EOS: an end is noticed, never inferred from padding."""
    rows = generator(eos_ids=ends, pad_id=pad).sample(PROMPTS * 10, [(2, number) for number in range(50)])
    for row in rows:
        ends_well(row, ends, 8)
    if ends:
        assert len({len(row.ids) for row in rows}) > 3
        assert {row.ids[-1] for row in rows if not row.cut} == set(ends)
    # The ids do not depend on what fills the rows that have ended.
    again = generator(eos_ids=ends, pad_id=PAD).sample(PROMPTS * 10, [(2, number) for number in range(50)])
    assert [row.ids for row in rows] == [row.ids for row in again]


def test_an_eos_in_the_prompt_ends_nothing() -> None:
    rows = generator().sample([[EOS, 5, EOS], [5]], KEYS[:2])
    assert len(rows[0].ids) > 1 or rows[0].ids == (EOS,)
    ends_well(rows[0], (EOS,), 8)


def test_the_text_has_no_special_tokens() -> None:
    tokenizer = make_tokenizer()
    for row in generator(tokenizer=tokenizer).sample(PROMPTS * 4, [(3, number) for number in range(20)]):
        assert "<eos>" not in row.text
        assert row.text == tokenizer.decode(list(row.ids), skip_special_tokens=True)


def test_an_immediate_eos_is_an_empty_response() -> None:
    model = make_model()
    model.lm_head.register_forward_hook(lambda m, a, logits: logits + 1e4 * (torch.arange(32) == EOS))
    for row in generator(model).sample(PROMPTS, KEYS):
        assert (row.ids, row.text, row.log_prob, row.cut) == ((EOS,), "", 0.0, False)


def test_a_limit_of_one_token() -> None:
    rows = generator(max_new_tokens=1).sample(PROMPTS * 20, [(4, number) for number in range(100)])
    assert all(len(row.ids) == 1 for row in rows)
    assert {row.cut for row in rows} == {True, False}


def test_an_eos_at_the_limit_is_not_cut() -> None:
    rows = generator(max_new_tokens=2).sample(PROMPTS * 40, [(5, number) for number in range(200)])
    last = [row for row in rows if len(row.ids) == 2 and row.ids[-1] == EOS]
    assert last
    assert not any(row.cut for row in last)


def test_stop_strings_end_a_response() -> None:
    """The stop string stays in the response: it was sampled, so it is trained."""
    plain = generator().sample(PROMPTS * 10, [(6, number) for number in range(50)])
    stopped = generator(stop_strings=("w5",)).sample(PROMPTS * 10, [(6, number) for number in range(50)])
    token = make_tokenizer().convert_tokens_to_ids("w5")
    found = 0
    for before, row in zip(plain, stopped, strict=True):
        if token in before.ids:
            found += 1
            assert row.ids == before.ids[: before.ids.index(token) + 1]
            assert not row.cut
            assert row.text.endswith("w5")
        else:
            assert row.ids == before.ids
    assert found > 3


def test_left_pad() -> None:
    ids, mask = left_pad([[5], [6, 7, 8]], 0, torch.device("cpu"))
    assert ids.tolist() == [[0, 0, 5], [6, 7, 8]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1]]


def test_stop_strings_of_several_tokens_begin_in_the_response() -> None:
    """A stop string whose first half is the prompt's end has not been said."""
    tokenizer = make_tokenizer()
    words = tokenizer.convert_tokens_to_ids(["w5", "w6", "w7"])
    model = make_model()
    # w6 follows w5, w7 follows w6, w5 follows w7, with certainty.
    follows = dict(zip(words, [*words[1:], words[0]], strict=True))

    def chain(module: Any, arguments: Any, options: Any, output: Any) -> Any:
        for row, last in enumerate(options["input_ids"][:, -1].tolist()):
            output.logits[row, -1] = -1e4
            output.logits[row, -1, follows.get(last, words[0])] = 1e4
        return output

    model.register_forward_hook(chain, with_kwargs=True)
    row = generator(model, tokenizer, stop_strings=("w5 w6",)).sample([[words[0]]], [(1, 0)])[0]
    assert row.text == "w6 w7 w5 w6"
    assert not row.cut
