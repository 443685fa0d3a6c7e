"""The mistakes seen in other implementations of online alignment, one named test for each that a training step can make."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import test_monte_carlo as enumerable
import torch
from peft import LoraConfig
from tiny import EOS, PAD, UNK, make_model, make_pairs, make_prompts, make_tokenizer, make_trainer, reward
from torch import Tensor
from transformers import GenerationConfig, GPT2Config, GPT2LMHeadModel

from sail.data.collate import RowCollator
from sail.generation import response_scores
from sail.trainer import SAILTrainer
from sail.training.step import Step

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning"
)  # PEFT uses names that transformers has deprecated

DPR = {"dpr": {"weight": 1.0, "coefficient": 1.0}}
HALF = {"data": {"weight": 0.5}, "dpr": {"weight": 0.5, "coefficient": 1.0}}
MIX = {"data": 0.25, **{name: {"weight": 0.25, "coefficient": 0.5} for name in ("ddp", "dpp", "dpr")}}


def trainer_for(folder: Path, routes: dict[str, Any] = DPR, **options: Any) -> SAILTrainer:
    """A trainer whose steps are looked at rather than taken."""
    options = {"model": make_model(scale=0.1), "record_pairs": False, **options}
    return make_trainer(folder, routes=routes, **options)


def prepare(
    trainer: SAILTrainer, positions: Iterable[int] = range(16), micro: int = 1
) -> tuple[Step, list[dict[str, Any]]]:
    """The step that get_batch_samples makes of these dataset rows, with its tensors."""
    rows = [trainer.train_dataset[position] for position in positions]
    size = len(rows) // micro
    chunks = [RowCollator()(rows[start : start + size]) for start in range(0, len(rows), size)]
    steps: list[Step] = []
    real = trainer.maker.make

    def kept(*given: Any) -> Step:
        steps.append(real(*given))
        return steps[-1]

    trainer.maker.make = kept
    batches, _ = trainer.get_batch_samples(iter(chunks), micro, trainer.args.device)
    trainer.maker.make = real
    return steps[0], batches


def gradient(trainer: SAILTrainer, loss: Tensor) -> Tensor:
    """Of the trainable weights, as one vector."""
    weights = [weight for weight in trainer.model.parameters() if weight.requires_grad]
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, weights)])


def trained_ids(batch: dict[str, Any], line: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a line of the batch holds before the response, and as response."""
    ids, mask = batch["input_ids"][line], batch["response_mask"][line].bool()
    real = batch["attention_mask"][line].bool()
    return tuple(ids[real & ~mask].tolist()), tuple(ids[mask].tolist())


def sampled(step: Step) -> list[Any]:
    """All responses of the on-policy rows."""
    return [response for example, _ in step.online for response in example.responses]


# ---- rows


def test_prompts_shuffled_against_responses(tmp_path: Path) -> None:
    """Every response of a shuffled run is the one that its own prompt gives alone, with the row's own random numbers."""
    trainer = trainer_for(tmp_path, HALF, model=make_model(torch.float64, scale=0.3), max_steps=6)
    real, checked = trainer.maker.make, []

    def checking(micro_batches: Any, step: int, device: Any, *progress: float) -> Step:
        made = real(micro_batches, step, device, *progress)
        for batch in made.batches:
            for place, example in enumerate(batch["examples"]):
                row = trainer.train_dataset[example.index]
                if example.share.route.name == "dpr":
                    keys = [(trainer.args.seed, "sample", step, example.index, sample) for sample in (0, 1)]
                    alone = [trainer.generator.sample([row["prompt_ids"]], [key])[0].ids for key in keys]
                else:
                    alone = [tuple(row["chosen_ids"]), tuple(row["rejected_ids"])]
                for side, response in enumerate(alone):
                    line = place + side * len(batch["examples"])
                    assert trained_ids(batch, line) == (tuple(row["prompt_ids"]), response)
                checked.append(example.index)
        return made

    trainer.maker.make = checking
    trainer.train()
    assert len(checked) == 6 * 8
    assert checked != sorted(checked), "the rows were not shuffled, so nothing was shown"


def test_prompts_are_not_starved(tmp_path: Path) -> None:
    """In one epoch every row's prompt is answered once; the distinct ones are counted from the rows, not assumed."""
    trainer = trainer_for(tmp_path, rows=make_pairs(40), max_steps=-1, num_train_epochs=1, record_pairs=True)
    trainer.train()
    lines = gzip.decompress((tmp_path / "pairs.jsonl.gz").read_bytes()).splitlines()
    pairs = [json.loads(line) for line in lines]
    assert sorted(pair["index"] for pair in pairs) == list(range(40))
    assert len({pair["prompt"] for pair in pairs}) == 40
    assert [line["online/prompts"] for line in trainer.state.log_history if "loss" in line] == [
        8,
        16,
        24,
        32,
        40,
    ]


def test_corrections_never_reach_dataset_rows(tmp_path: Path) -> None:
    """The gradient of the data rows of a mixed batch is that of DPO on them, whatever the coefficient of the others."""
    found = []
    for c in (0.0, 1.0):
        routes = {"data": {"weight": 0.5}, "dpr": {"weight": 0.5, "coefficient": c}}
        own = {"ref_model": make_model(torch.float64, seed=3, scale=0.1)}
        model = make_model(torch.float64, scale=0.1)
        trainer = trainer_for(tmp_path, routes, model=model, trainer_options=own, kl_policy_ref=0.1)
        step, (batch,) = prepare(trainer)
        places = [place for place, one in enumerate(step.examples) if one.share.route.name == "data"]
        assert 2 < len(places) < 14
        found.append(gradient(trainer, trainer.row_losses(model, batch).loss[places].sum()))
    assert torch.equal(*found)
    by_hand = torch.zeros((), dtype=torch.float64)
    for place in places:
        row = step.examples[place].row
        ratios = [
            log_prob(model, row["prompt_ids"], row[name])
            - log_prob(own["ref_model"], row["prompt_ids"], row[name])
            for name in ("chosen_ids", "rejected_ids")
        ]
        by_hand = by_hand - torch.nn.functional.logsigmoid(0.1 * (ratios[0] - ratios[1])) / 16
    assert (gradient(trainer, by_hand) - found[0]).norm() < 1e-6 * found[0].norm()


def log_prob(model: Any, prompt: Sequence[int], response: Sequence[int], shift: int = 1) -> Tensor:
    """log pi(y|x) of one sequence without padding; shift 0 is the mistake of scoring a token at its own position."""
    steps = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].log_softmax(dim=-1)
    return sum(steps[len(prompt) - shift + place, token] for place, token in enumerate(response))


def test_gradient_does_not_grow_with_accumulation(tmp_path: Path) -> None:
    """16 rows as 1, 2 and 16 micro-batches: one gradient, corrections and KL penalty included."""
    found = []
    for micro in (1, 2, 16):
        trainer = trainer_for(
            tmp_path, MIX, model=make_model(torch.float64, scale=0.1), kl_policy_ref=0.1, nll=0.01
        )
        _, batches = prepare(trainer, micro=micro)
        assert len(batches) == micro
        losses = [trainer.compute_loss(trainer.model, batch) for batch in batches]
        found.append(gradient(trainer, torch.stack(losses).sum()))
    assert found[0].norm() > 1e-3
    assert all((other - found[0]).norm() < 1e-10 * found[0].norm() for other in found[1:])


# ---- responses


def test_sampled_ids_are_trained_as_they_are(tmp_path: Path) -> None:
    """Never decoded and tokenised again: <unk> and <pad> can be sampled, and their text would give other ids."""
    trainer = trainer_for(tmp_path)
    step, (batch,) = prepare(trainer)
    drawn = sampled(step)
    for place, example in enumerate(step.examples):
        for side, response in enumerate(example.responses):
            assert trained_ids(batch, place + 16 * side)[1] == response.ids
    again = [
        tuple(trainer.processing_class(one.text, add_special_tokens=False)["input_ids"]) for one in drawn
    ]
    changed = sum(
        one.ids[: len(one.ids) - (not one.cut)] != ids for one, ids in zip(drawn, again, strict=True)
    )
    assert changed > 0, "re-tokenisation would have gone unnoticed"
    assert any({PAD, UNK} & set(one.ids) for one in drawn)


def test_responses_are_not_cut_by_characters(tmp_path: Path) -> None:
    """The oracle reads the whole response and nothing of the prompt, also where the prompt's text is not its tokens'."""
    heard: list[tuple[str, str]] = []

    def listening(prompts: list[str], responses: list[str]) -> list[float]:
        heard.extend(zip(prompts, responses, strict=True))
        return reward(prompts, responses)

    rows = [{**row, "prompt": f"  {row['prompt']}   Überraschung "} for row in make_pairs(16)]
    trainer = trainer_for(tmp_path, rows=rows, oracle=listening)
    step, _ = prepare(trainer)
    expected = {
        (
            rows[example.index]["prompt"],
            trainer.processing_class.decode(list(one.ids), skip_special_tokens=True),
        )
        for example, _ in step.online
        for one in example.responses
    }
    assert set(heard) == expected


def test_cut_responses_get_no_eos(tmp_path: Path) -> None:
    """An EOS exactly where the policy emitted one, for sampled responses; none after dataset responses that are cut either."""
    trainer = trainer_for(tmp_path, HALF, max_new_tokens=4, max_prompt_length=6, max_length=10)
    step, (batch,) = prepare(trainer, range(64))
    kinds = set()
    for place, example in enumerate(step.examples):
        for side, response in enumerate(example.responses):
            ids = trained_ids(batch, place + 64 * side)[1]
            assert ids == response.ids
            assert ids.count(EOS) == (not response.cut)
            assert response.cut or ids[-1] == EOS
            kinds.add((example.share.route.name, response.cut))
    assert kinds == {("data", False), ("data", True), ("dpr", False), ("dpr", True)}


@pytest.mark.parametrize("name", ["dpp", "dpr", "mix"])
def test_log_prob_zero_is_no_nan(tmp_path: Path, name: str) -> None:
    """A policy that is certain: log pi(y|x) = 0 exactly, so that F / log pi would be infinite."""
    model = make_model(scale=0.3, tie_word_embeddings=False)
    with torch.no_grad():
        model.lm_head.weight *= 1e4
    routes = MIX if name == "mix" else {name: {"weight": 1.0, "coefficient": 1.0}}
    own = {"ref_model": make_model(seed=3, scale=0.1)}
    trainer = trainer_for(tmp_path, routes, model=model, trainer_options=own, kl_policy_ref=0.1, max_steps=3)
    step, (batch,) = prepare(trainer)
    assert any(response.log_prob == 0.0 for response in sampled(step))
    assert gradient(trainer, trainer.compute_loss(model, batch)).isfinite().all()
    trainer.train()
    assert all(weight.isfinite().all() for weight in model.parameters())
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert all(torch.tensor([line["loss"], line["grad_norm"]]).isfinite().all() for line in lines)


def test_kl_is_scored_on_shifted_labels(tmp_path: Path) -> None:
    """The logged KL is the enumerated one within 4 of its own standard errors; scored unshifted it would be far off."""
    case = enumerable.Case({"dpr": {"weight": 1.0, "coefficient": 0.0}})
    log = enumerable.run(tmp_path, case, steps=16).state.log_history[0]
    models = [enumerable.make_model(seed) for seed in (enumerable.POLICY, enumerable.REFERENCE)]
    responses, exact, unshifted = enumerable.all_responses(), 0.0, 0.0
    with torch.no_grad():
        for prompt in map(enumerable.ids_of, enumerable.PROMPTS):
            right, wrong = (
                [torch.stack([log_prob(model, prompt, one, shift) for one in responses]) for model in models]
                for shift in (1, 0)
            )
            exact += (right[0].exp() * (right[0] - right[1])).sum().item() / 3
            unshifted += (right[0].exp() * (wrong[0] - wrong[1])).sum().item() / 3
    error = log["kl/policy_ref_se"]
    assert error < 0.05 * exact
    assert abs(log["kl/policy_ref"] - exact) < 4 * error
    assert abs(unshifted - exact) > 8 * error


# ---- labels


@pytest.mark.parametrize("oracle_label", ["soft", "sampled", "argmax"])
def test_ties_are_not_trained_as_wins(tmp_path: Path, oracle_label: str) -> None:
    """Identical responses have p = 1/2, also under an oracle that always prefers the first, and it is not asked about them."""
    asked: list[bool] = []

    def first_wins(prompts: list[str], first: list[str], second: list[str]) -> list[float]:
        asked.extend(one == other for one, other in zip(first, second, strict=True))
        return [1.0] * len(prompts)

    trainer = trainer_for(tmp_path, oracle=first_wins, oracle_label=oracle_label, max_new_tokens=1)
    step, (batch,) = prepare(trainer, range(64))
    same = [one.responses[0].text == one.responses[1].text for one in step.examples]
    assert 0 < sum(same) < 64
    assert len(asked) == step.oracle_calls == 64 - sum(same)
    assert not any(asked)
    for place, (example, tied) in enumerate(zip(step.examples, same, strict=True)):
        assert example.preference.first_wins == (0.5 if tied else 1.0)
        if tied and oracle_label == "argmax":
            assert batch["pair_weight"][place] == 0.0
        elif tied and oracle_label == "soft":
            assert batch["label"][place] == 0.5
        assert example.active == (not tied or oracle_label != "argmax")
    # The weights are a mean over the rows that have a label.
    assert batch["pair_weight"].sum().item() == pytest.approx(1.0)


# ---- sampling


def speakers() -> dict[str, Any]:
    """Rotary and absolute positions: only the second breaks when left padding shifts them."""
    torch.manual_seed(0)
    shape = {
        "vocab_size": 32,
        "n_positions": 64,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "initializer_range": 0.2,
    }
    gpt2 = GPT2Config(**shape, eos_token_id=EOS, bos_token_id=None)
    return {"llama": make_model(scale=0.2), "gpt2": GPT2LMHeadModel(gpt2), "lora": make_model(scale=0.2)}


def assert_scored_as_sampled(trainer: SAILTrainer, step: Step, batch: dict[str, Any]) -> None:
    """log pi recorded while sampling (left padded, cached, in one call) is that of the training forward; 1e-5 nats a token."""
    scores = response_scores(trainer.model, batch)[0].detach().tolist()
    for place, example in enumerate(step.examples):
        for side, response in enumerate(example.responses):
            here = scores[place + side * len(step.examples)]
            assert here == pytest.approx(response.log_prob, abs=1e-5 * len(response.ids))


@pytest.mark.parametrize("name", ["llama", "gpt2", "lora"])
def test_sampling_matches_scoring(tmp_path: Path, name: str) -> None:
    """Prompts of 2 to 6 tokens in one call, on models with opinions; the adapter speaks in both or in neither."""
    own = {}
    if name == "lora":
        own["peft_config"] = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    trainer = trainer_for(tmp_path, model=speakers()[name], trainer_options=own)
    if name == "lora":
        with torch.no_grad():
            for key, weight in trainer.model.named_parameters():
                weight += 0.3 * torch.randn_like(weight) * ("lora_B" in key)
    step, (batch,) = prepare(trainer)
    assert len({len(example.row["prompt_ids"]) for example in step.examples}) > 3
    assert_scored_as_sampled(trainer, step, batch)
    if name == "lora":
        policy = response_scores(trainer.model, batch)[0]
        assert (policy - batch["ref_logps"]).abs().max() > 0.1, (
            "the adapter was not switched off for the reference"
        )


def test_generation_config_of_the_model_does_not_leak(tmp_path: Path) -> None:
    """top_k, temperature, penalties and lengths that a model brings along change no sample, and stay with the model."""
    drawn = []
    for given in (
        {},
        {"do_sample": True, "top_k": 1, "temperature": 0.1, "repetition_penalty": 5.0, "min_new_tokens": 8},
    ):
        model = make_model(scale=0.2)
        model.generation_config = GenerationConfig(eos_token_id=EOS, pad_token_id=PAD, **given)
        trainer = trainer_for(tmp_path, model=model)
        step, (batch,) = prepare(trainer)
        assert_scored_as_sampled(trainer, step, batch)
        drawn.append([one.ids for one in sampled(step)])
        assert all(getattr(model.generation_config, name) == value for name, value in given.items())
    assert drawn[0] == drawn[1]


def test_several_eos_ids(tmp_path: Path) -> None:
    """A response ends at any of them, which is trained, and nowhere else."""
    model = make_model(scale=0.1)
    model.generation_config.eos_token_id = [EOS, 7, 9]
    trainer = trainer_for(tmp_path, model=model, rows=[{"prompt": prompt} for prompt in make_prompts(64)])
    step, (batch,) = prepare(trainer, range(64))
    ends = {one.ids[-1] for one in sampled(step) if not one.cut}
    assert ends == {EOS, 7, 9}
    for one in sampled(step):
        assert not {EOS, 7, 9} & set(one.ids[:-1])
        assert one.cut == (one.ids[-1] not in ends)
    assert_scored_as_sampled(trainer, step, batch)


def test_pad_equal_to_eos(tmp_path: Path) -> None:
    """A tokenizer without pad: the EOS at the end of a response is trained, the same id behind it is not."""
    model = make_model(scale=0.1, pad_token_id=None)
    trainer = trainer_for(tmp_path, MIX, model=model, tokenizer=make_tokenizer(pad_is_eos=True))
    assert trainer.processing_class.pad_token_id == EOS
    step, (batch,) = prepare(trainer, range(64))
    assert batch["attention_mask"].sum(dim=1).min() < batch["input_ids"].shape[1]
    for place, example in enumerate(step.examples):
        for side, response in enumerate(example.responses):
            assert trained_ids(batch, place + 64 * side) == (tuple(example.row["prompt_ids"]), response.ids)
            assert response.cut or response.ids[-1] == EOS
    trainer.train()


def test_stop_strings(tmp_path: Path) -> None:
    """A response ends with the stop string's last token, without an EOS after it, and does not count as cut."""
    trainer = trainer_for(tmp_path, stop_strings=["w5"])
    stop = trainer.processing_class.convert_tokens_to_ids("w5")
    step, (batch,) = prepare(trainer, range(64))
    finished = [one for one in sampled(step) if not one.cut]
    assert {one.ids[-1] for one in finished} == {EOS, stop}
    assert all(stop not in one.ids[:-1] and EOS not in one.ids[:-1] for one in sampled(step))
    for place, example in enumerate(step.examples):
        assert trained_ids(batch, place)[1] == example.responses[0].ids
    assert_scored_as_sampled(trainer, step, batch)
