"""`sail eval`: what a model does on held-out prompts and benchmark questions, with intervals, resumable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sail.build import make_tokenizer
from sail.build_oracle import oracle_of_run
from sail.config import RunConfig
from sail.data.encode import EncodedRow, encode_prompt, encode_rows, eos_ids
from sail.data.sources import load_rows
from sail.data_config import parse_source
from sail.errors import ConfigError
from sail.evaluation.files import write_json
from sail.evaluation.fingerprint import file_fingerprint, model_fingerprint
from sail.evaluation.journal import Journal
from sail.evaluation.measure import DATASET, REFERENCE, Evaluation, Setup, Voice
from sail.evaluation.questions import Question, Score, load_questions
from sail.evaluation.responses import Questions, Speaker, prompt_key
from sail.evaluation.show import print_evaluation
from sail.evaluation.stats import rate_interval
from sail.generation import SamplingSettings
from sail.oracle_config import FunctionOracle
from sail.oracles import Oracle, as_oracle, load_callable
from sail.oracles.ledger import hash_of
from sail.subject import (
    Subject,
    check_room,
    checkpoint_subjects,
    find_subject,
    generation_config,
    stored_type,
)

PROMPTS = 512
PLAYGROUND = "playground"
SEED = 42
"""transformers.TrainingArguments' default: what a run without train.seed was trained and closed with."""
TAKEN = (DATASET, REFERENCE, "policy")
RESULTS, ANSWERS, JUDGEMENTS = "results.json", "answers.jsonl", "judgements.jsonl"


@dataclass(frozen=True)
class EvalOptions:
    """The arguments of `sail eval`; None: taken from the run, or its default."""

    subject: str
    data: str | None = None
    oracle: str | None = None
    against: tuple[str, ...] = ()
    reference: str | None = None
    prompts: int = PROMPTS
    samples: int = 1
    questions: str | None = None
    scorer: str | None = None
    seed: int | None = None
    temperature: float | None = None
    max_new_tokens: int | None = None
    batch_size: int = 64
    out: str | None = None
    checkpoints: bool = False
    overwrite: bool = False


def evaluate(options: EvalOptions) -> dict[str, Any]:
    """Evaluate, print the table and write OUT/results.json; returns what it holds. A killed evaluation continues.

    Raises SailError where the subject, the data or an oracle cannot be used, or if OUT holds one with other settings.
    """
    plan = Plan(options)
    setup, header = plan.setup(), plan.header()
    asked = {"oracle": plan.oracle_fingerprint, "scorer": plan.scorer_fingerprint}
    answers, judgements = plan.out / ANSWERS, plan.out / JUDGEMENTS
    with (
        Journal(answers, header, overwrite=options.overwrite) as spoken,
        Journal(judgements, {**header, **asked}, overwrite=options.overwrite) as judged,
    ):
        evaluation = Evaluation(setup, spoken, judged)
        evaluation.left_out.update(plan.left_out)
        evaluation.speak()
        evaluation.ask()
        found = evaluation.results()
        found["metrics"].update(refusals(found["samples"]))
        results = {
            "subject": options.subject,
            "run": None if plan.subject.run is None else str(plan.subject.run),
            "steps": plan.subject.step,
            "settings": {**header, **asked, "beta": setup.beta},
            **found,
            "notes": [*plan.subject.notes, *plan.notes, *found["notes"]],
        }
        # While the journals are locked, so that no other evaluation writes it too.
        write_json(plan.out / RESULTS, results)
    print_evaluation(results, plan.out / RESULTS)
    return results


def refusals(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """refusal_harmful and refusal_harmless: share of refusals, where all prompts are questions of the playground world."""
    from sail.playground.gold import is_refusal
    from sail.playground.world import all_requests

    known = all_requests()
    asked = [
        known.get(" ".join(one["prompt"].split())) if isinstance(one["prompt"], str) else None
        for one in samples
    ]
    if not samples or None in asked:
        return {}
    numbers = {}
    for name, harmful in (("refusal_harmful", True), ("refusal_harmless", False)):
        chosen = [
            one
            for one, request in zip(samples, asked, strict=True)
            if request is not None and request.harmful == harmful
        ]
        shares = [float(is_refusal(one["response"])) for one in chosen]
        if chosen:
            numbers[name] = asdict(rate_interval(shares, [one["prompt"] for one in chosen]))
    return numbers


class Plan:
    """The arguments and the run's own settings, made into a Setup. `left_out` says which metrics cannot be had, and why."""

    def __init__(self, options: EvalOptions) -> None:
        if options.prompts < 1 or options.samples < 1 or options.batch_size < 1:
            raise ConfigError("--prompts, --samples and --batch-size must be at least 1.")
        self.options = options
        self.subject = find_subject(options.subject)
        self.config: RunConfig | None = self.subject.config
        self.left_out: dict[str, str] = {}
        self.notes: list[str] = []
        self.tokenizer = make_tokenizer(self._tokenizer_name())
        self.seed = self._of_train(options.seed, "seed", SEED)
        self.temperature = float(self._of_train(options.temperature, "temperature", 1.0))
        if not self.temperature > 0:
            raise ConfigError(f"--temperature must be above 0; it is {self.temperature:g}.")
        self.max_new_tokens = int(self._of_train(options.max_new_tokens, "max_new_tokens", 256))
        self.rows, self.fingerprint = self._rows()
        self.oracle, self.oracle_fingerprint = self._oracle()
        self.reference = self._reference()
        self.against, self.rivals = self._against()
        self.benchmark, self.judge, self.scorer_fingerprint, self.questions_fingerprint = self._benchmark()
        self.checkpoints = self._checkpoints()
        self.out = self._out()

    def _tokenizer_name(self) -> str:
        if self.config is not None and self.config.tokenizer is not None:
            return self.config.tokenizer
        return self.subject.model if self.subject.base is None else self.subject.base

    def _of_train(self, given: Any, key: str, default: Any) -> Any:
        if given is not None:
            return given
        value = None if self.config is None else self.config.trainer_kwargs.get(key)
        return default if value is None else value

    def _rows(self) -> tuple[list[EncodedRow], str | None]:
        """The rows of the first distinct prompts, and their fingerprint."""
        config = self.config
        source = parse_source(self.options.data, held_out=True) or (
            None if config is None else config.data.eval
        )
        if source is None:
            if self.options.questions is None:
                why = "The run has no data.eval" if config is not None else "A bare model brings no prompts"
                raise ConfigError(f"{why}: give a file with --data, or benchmark questions with --questions.")
            self.left_out["everything on held-out prompts"] = "there is no data.eval; give --data"
            return [], None
        found = encode_rows(
            load_rows(source, bad_rows="error" if config is None else config.data.bad_rows),
            self.tokenizer,
            max_length=None if config is None else config.alignment.max_length,
            max_prompt_length=None if config is None else config.alignment.max_prompt_length,
            bad_rows="error" if config is None else config.data.bad_rows,
        )
        wanted = list(dict.fromkeys(prompt_key(row["prompt"]) for row in found.rows))[: self.options.prompts]
        keep = set(wanted)
        found.rows = [row for row in found.rows if prompt_key(row["prompt"]) in keep]
        return found.rows, found.fingerprint

    def _oracle(self) -> tuple[Oracle | None, str | None]:
        config = self.config
        section = None if config is None else config.oracle
        own = section if self.options.oracle is None and isinstance(section, FunctionOracle) else None
        path = self.options.oracle if own is None else own.path
        if path is not None:
            temperature = 1.0 if own is None else own.temperature
            oracle = as_oracle(load_callable(path), temperature=temperature, name=Path(path).name)
            return oracle, f"{Path(path).name} {file_fingerprint(Path(path.rpartition(':')[0]))}"
        made = None if config is None else oracle_of_run(config, self.subject.run)
        if made is None:
            why = "there is no oracle" if section is None else "people are asked in training only"
            self.left_out["reward, win_rate"] = f"{why}; give --oracle path.py:name"
            return None, None
        return made, f"{made.name} {hash_of(made.settings())[:12]}"

    def _reference(self) -> Subject | None:
        name = self.options.reference
        if name is None and self.config is not None:
            name = self.config.ref_model or self.config.model
        if name is None:
            self.left_out["kl, margin, accuracy, win rate over the reference"] = (
                "there is no reference; give --reference MODEL"
            )
            return None
        if self.config is None:
            self.left_out["margin, accuracy"] = "a bare model has no beta; evaluate its run folder"
        if self.temperature != 1.0:
            self.left_out["kl"] = "at another temperature than 1 the samples are not the model's own"
        if self.config is not None and self.config.alignment.ref_update != "never":
            self.notes.append(
                "KL and margin are to the reference that the run began with, not to that of its last round."
            )
        found = find_subject(name)
        if self.options.reference is not None:
            theirs = make_tokenizer(found.base or found.model).get_vocab()
            if theirs != self.tokenizer.get_vocab():
                raise ConfigError(
                    f"{name} has another tokenizer than {self.options.subject}, so their log-probs cannot be compared. Give a "
                    "reference of the same family."
                )
        return found

    def _against(self) -> tuple[tuple[str, ...], dict[str, Subject]]:
        """Whom the answers are judged against, and the other models among them."""
        has_pairs = bool(self.rows) and all(
            any(one["chosen_ids"] is not None for one in rows) for rows in self._by_prompt().values()
        )
        wanted = self.options.against
        if self.oracle is None or not self.rows:
            if wanted:
                raise ConfigError(
                    "--against needs prompts and an oracle that judges: give --data and --oracle."
                )
            return (), {}
        if not wanted:
            usable = {DATASET: has_pairs, REFERENCE: self.reference is not None}
            return tuple(name for name, there in usable.items() if there), {}
        if DATASET in wanted and not has_pairs:
            raise ConfigError(
                "--against dataset needs a chosen answer to every prompt; the data has prompts without."
            )
        if REFERENCE in wanted and self.reference is None:
            raise ConfigError("--against reference needs one: give --reference MODEL.")
        found = {name: find_subject(name) for name in wanted if name not in (DATASET, REFERENCE)}
        rivals = {subject.name: subject for subject in found.values()}
        if len(rivals) < len(found):
            raise ConfigError(
                "--against was given models of the same name, so their results could not be told apart. Evaluate against one of "
                "them at a time, each with an --out of its own."
            )
        taken = next((name for name in rivals if name in TAKEN or name.endswith("length_controlled")), None)
        if taken is not None:
            raise ConfigError(
                f'--against was given a model whose folder is called "{taken}", a word that the results use. Rename it.'
            )
        return tuple(found[name].name if name in found else name for name in dict.fromkeys(wanted)), rivals

    def _by_prompt(self) -> dict[str, list[EncodedRow]]:
        groups: dict[str, list[EncodedRow]] = {}
        for row in self.rows:
            groups.setdefault(prompt_key(row["prompt"]), []).append(row)
        return groups

    def _benchmark(self) -> tuple[list[Question], Score | None, str | None, str | None]:
        if self.options.questions is None:
            if self.options.scorer is not None:
                raise ConfigError("--scorer scores benchmark questions: give them with --questions FILE.")
            return [], None, None, None
        file, scorer = Path(self.options.questions), self.options.scorer
        if self.options.questions == PLAYGROUND:
            import sail.playground

            home = Path(sail.playground.__path__[0])
            file, scorer = home / "questions.jsonl", scorer or f"{home / 'scorer.py'}:score"
        if scorer is None:
            self.left_out["scores of the benchmark questions"] = (
                "there is no judge; give --scorer path.py:score (the conversations are in results.json)"
            )
        questions = load_questions(file)
        if scorer is None:
            return questions, None, None, file_fingerprint(file)
        judge, judge_file = load_callable(scorer), Path(scorer.rpartition(":")[0])
        return questions, judge, f"{Path(scorer).name} {file_fingerprint(judge_file)}", file_fingerprint(file)

    def _checkpoints(self) -> dict[int, Subject]:
        if not self.options.checkpoints:
            return {}
        found = {
            one.step or 0: one for one in checkpoint_subjects(self.subject) if one.step != self.subject.step
        }
        if not found and self.subject.run is None:
            raise ConfigError("--checkpoints needs a run folder; a bare model has none.")
        return found

    def _out(self) -> Path:
        if self.options.out is not None:
            out = Path(self.options.out)
            file = next((one for one in (out, *out.parents) if one.exists() and not one.is_dir()), None)
            if file is not None:
                raise ConfigError(f"--out {out} must be a folder, and {file} is a file. Name a folder.")
            return out
        if self.subject.run is None:
            return Path("eval") / self.subject.name
        inside = Path(self.options.subject).name if "/" in self.subject.name else ""
        return self.subject.run / (f"eval-{inside}" if inside else "eval")

    def header(self) -> dict[str, Any]:
        """What the answers depend on; a continued evaluation must have the same."""
        checkpoints = " ".join(f"{step}:{one.fingerprint[:12]}" for step, one in self.checkpoints.items())
        return {
            "model": self.subject.fingerprint,
            "reference": None if self.reference is None else self.reference.fingerprint,
            "against": " ".join(self.against),
            **{f"model {name}": rival.fingerprint for name, rival in self.rivals.items()},
            "checkpoints": checkpoints or None,
            "tokenizer": model_fingerprint(self._tokenizer_name()),
            "data": self.fingerprint,
            "prompts": len(self._by_prompt()),
            "samples": self.options.samples,
            "questions": self.questions_fingerprint,
            "seed": self.seed,
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "stop_strings": list(self._of_train(None, "stop_strings", [])),
            "batch_size": self.options.batch_size,
        }

    def setup(self) -> Setup:
        """The objects; models are loaded when they are needed."""
        groups = self._by_prompt()
        prompts = [rows[0]["prompt"] for rows in groups.values()]
        questions = Questions(
            prompts, [rows[0]["prompt_ids"] for rows in groups.values()], self.options.samples, self.seed
        )
        policy = self._voice(self.subject, self.tokenizer, questions)
        reference = None if self.reference is None else self._voice(self.reference, self.tokenizer, questions)
        rivals = {
            name: self._voice(rival, make_tokenizer(rival.base or rival.model), questions)
            for name, rival in self.rivals.items()
        }
        return Setup(
            policy,
            questions,
            self.rows,
            self.options.batch_size,
            reference=reference,
            rivals=rivals,
            checkpoints={
                step: self._voice(one, self.tokenizer, questions) for step, one in self.checkpoints.items()
            },
            frontier=self.options.checkpoints,
            step=self.subject.step,
            against=self.against,
            oracle=self.oracle,
            beta=None if self.config is None else self.config.alignment.beta,
            benchmark=self.benchmark,
            judge=self.judge,
            judge_name="" if self.scorer_fingerprint is None else self.scorer_fingerprint.split()[0],
        )

    def _voice(self, subject: Subject, tokenizer: Any, questions: Questions) -> Voice:
        """A model with its settings; its end-of-turn tokens are known from its files alone."""
        settings = SamplingSettings(
            self.max_new_tokens,
            self.temperature,
            eos_ids(tokenizer, generation_config(subject.base or subject.model)),
            tuple(self._of_train(None, "stop_strings", [])),
            tokenizer.pad_token_id,
        )
        same = tokenizer is self.tokenizer
        ids = questions.ids if same else [encode_prompt(tokenizer, prompt) for prompt in questions.prompts]
        check_room(subject, max(map(len, ids), default=0), self.max_new_tokens)
        own = stored_type(self.subject.base or self.subject.model)
        # The reference in the policy's precision: else their log-probs differ by rounding too.
        arguments = {"dtype": own} if subject is self.reference and own is not None else {}
        return Voice(Speaker(subject.name, lambda: subject.load(**arguments)), tokenizer, settings, ids)
