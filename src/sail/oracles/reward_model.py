"""A reward model as an oracle: a sequence classifier with one output, read with its own tokenizer.

    p(first wins) = sigmoid((score(first) - score(second)) / temperature)

What the model is given for a prompt and a response: data/whole.py. Where a classifier of a decoder model reads its score is fixed
by the pad id of its config (the last token that is another one), so texts are padded with that id. Where the config has none,
they are padded such that the score is read at the last token, as it is for a text alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.state import is_initialized
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from sail.data.whole import WholeInput, cut_to, encode_whole, padded
from sail.errors import ConfigError, DataError, OracleError
from sail.oracles.base import ScoringOracle, sigmoid
from sail.types import Pair, Preference, Prompt

_log = logging.getLogger(__name__)

_UNLIMITED = 1_000_000
"""Tokenizers without a limit say a number far above this."""
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "tekken.json",
)


class RewardModel(ScoringOracle):
    """Bradley-Terry on the output of a sequence classifier; `score` is in the model's own unit, negated for a cost model.

    model, tokenizer: folders or names (null = the model's own tokenizer). temperature: the score difference that gives odds of e
    to 1; `sail train-reward` measures the one that calibrates. max_length: in its tokens; null = what model and tokenizer can
    take. device: null = that of the run. offload: in main memory but while it scores. It abstains only on a row that its
    tokenizer cannot read. Raises ConfigError for a model that cannot score, or not safely: see `load_classifier`.
    """

    may_abstain = True

    def __init__(
        self,
        model: str,
        *,
        tokenizer: str | None = None,
        temperature: float = 1.0,
        lower_is_better: bool = False,
        max_length: int | None = None,
        batch_size: int = 16,
        dtype: str = "auto",
        device: str | None = None,
        offload: bool = False,
    ) -> None:
        if not temperature > 0:
            raise ConfigError(f"oracle.temperature must be above 0; it is {temperature!r}.")
        self.name = f"reward model {Path(model).name}"
        self.temperature, self.sign = temperature, -1.0 if lower_is_better else 1.0
        self.batch_size, self.offload, self._device = batch_size, offload, _known_device(device)
        self.model = load_classifier(model, dtype=dtype)
        self.tokenizer = load_tokenizer(tokenizer or model)
        self.pad_id, self.reads_before_pad = _padding(self.model, self.tokenizer, model)
        self.max_length = length_limit(self.model, self.tokenizer, max_length)
        self.counts = {"scored": 0, "cut": 0, "responses_cut": 0, "unreadable": 0}
        self._told = False

    def settings(self) -> dict[str, Any]:
        """Hashes of weights and tokenizer, not paths: a moved folder is the same oracle, a retrained one is another."""
        return {
            "kind": "reward_model",
            "weights": self._weights_hash,
            "tokenizer": self._tokenizer_hash,
            "temperature": self.temperature,
            "sign": self.sign,
            "max_length": self.max_length,
            "pad_id": self.pad_id if self.reads_before_pad else None,
        }

    def report(self) -> dict[str, Any]:
        """reward_model: texts scored, cut at max_length (in how many of them the response), and rows it could not read."""
        return {"reward_model": {**self.counts, "max_length": self.max_length}}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[float | None]:
        """One score per response, higher is better; None, counted, for one that the tokenizer cannot read."""
        given = [self._encoded(prompt, text) for prompt, text in zip(prompts, responses, strict=True)]
        scores = iter(self._scores([one for one in given if isinstance(one, WholeInput)]))
        self.counts["unreadable"] += sum(isinstance(one, DataError) for one in given)
        return [None if isinstance(one, DataError) else next(scores) for one in given]

    def compare(self, pairs: Sequence[Pair]) -> list[Preference]:
        """Both responses of all pairs in one go; a pair that the tokenizer cannot read abstains, and costs that pair only."""
        firsts = [self._encoded(pair.prompt, pair.first) for pair in pairs]
        seconds = [self._encoded(pair.prompt, pair.second) for pair in pairs]
        read = [
            (row, one, two)
            for row, (one, two) in enumerate(zip(firsts, seconds, strict=True))
            if isinstance(one, WholeInput) and isinstance(two, WholeInput)
        ]
        scores = self._scores([one for _, one, _ in read] + [two for _, _, two in read])
        given = [
            Preference(None, str(one if isinstance(one, DataError) else two))
            for one, two in zip(firsts, seconds, strict=True)
        ]
        self.counts["unreadable"] += len(pairs) - len(read)
        for place, (row, _, _) in enumerate(read):
            given[row] = self.preference(scores[place], scores[len(read) + place])
        return given

    def preference(self, first: float, second: float) -> Preference:
        """p = sigmoid((first - second) / temperature)."""
        return Preference(sigmoid((first - second) / self.temperature))

    def _encoded(self, prompt: Prompt, response: str) -> WholeInput | DataError:
        if not isinstance(prompt, str) and self.tokenizer.chat_template is None:
            raise OracleError(
                f"{self.name} is asked about conversations, and its tokenizer has no chat template. Save one with its tokenizer "
                "(tokenizer.chat_template), name a tokenizer that has it in oracle.tokenizer, or write the prompts as text."
            )
        try:
            whole, cut, into_response = cut_to(
                encode_whole(self.tokenizer, prompt, response), self.max_length, self.tokenizer
            )
        except DataError as error:
            return error
        self.counts["cut"] += cut
        self.counts["responses_cut"] += into_response
        if cut and not self._told:
            self._told = True
            _log.warning(
                "sail: %s reads at most %d tokens; the beginnings of longer prompts are cut, and counted.",
                self.name,
                self.max_length,
            )
        return whole

    def _scores(self, inputs: Sequence[WholeInput]) -> list[float]:
        """Scores in the order of the inputs. Equal inputs are scored once; the rest in batches of similar length."""
        different = sorted(set(inputs), key=lambda one: (len(one.ids), one.ids))
        found: dict[WholeInput, float] = {}
        if different:
            with self._in_place() as device:
                for begin in range(0, len(different), self.batch_size):
                    batch = different[begin : begin + self.batch_size]
                    found.update(zip(batch, self._forward(batch, device), strict=True))
        self.counts["scored"] += len(different)
        ill = [value for value in found.values() if not math.isfinite(value)]
        if ill:
            raise OracleError(
                f"{self.name} gave {ill[0]} for {len(ill)} of {len(found)} texts. Its weights are broken, or its numbers too "
                "large for its dtype: try oracle.dtype: float32."
            )
        return [self.sign * found[one] for one in inputs]

    def _forward(self, batch: Sequence[WholeInput], device: torch.device) -> list[float]:
        pad_id = self.pad_id
        if not self.reads_before_pad:
            pad_id = _another_id(pad_id, {one.ids[-1] for one in batch if one.ids})
            self.model.config.get_text_config().pad_token_id = pad_id
        largest = max(max(one.ids, default=0) for one in batch)
        if largest >= self.model.get_input_embeddings().num_embeddings:
            raise OracleError(
                f"{self.name} has no token {largest}, which its tokenizer makes. Name its own tokenizer in oracle.tokenizer."
            )
        tensors = {name: value.to(device) for name, value in padded(batch, pad_id).items()}
        # In its own precision, whatever the run's: under the trainer's autocast it would score otherwise than alone.
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            outputs = self.model(**tensors).logits
        return [float(value) for value in outputs.float().reshape(len(batch)).cpu()]

    @contextmanager
    def _in_place(self) -> Iterator[torch.device]:
        """The model where it scores; back in main memory afterwards if it is to be offloaded."""
        device = self._device or _device_of_run()
        self.model.to(device)
        try:
            yield device
        finally:
            if self.offload:
                self.model.to("cpu")

    @cached_property
    def _weights_hash(self) -> str:
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().reshape(-1)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def _tokenizer_hash(self) -> str:
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        core = fast.to_str() if fast is not None else json.dumps(sorted(self.tokenizer.get_vocab().items()))
        more = json.dumps([self.tokenizer.chat_template, self.tokenizer.special_tokens_map], default=str)
        return hashlib.sha256((core + more).encode()).hexdigest()


def load_classifier(name: str, *, dtype: str = "auto") -> Any:
    """A sequence classifier with one output from a folder or a name, in evaluation mode.

    ConfigError for remote code, weights that are not safetensors, a number of outputs other than one, and a score head that is
    not in the weights: it would be made anew, and its scores be random.
    """
    refuse_folder(name)
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(_not_loaded(name, "config", error)) from error
    remote = getattr(config, "auto_map", None) or {}
    if {"AutoConfig", "AutoModel", "AutoModelForSequenceClassification"} & set(remote):
        raise ConfigError(
            f"The reward model {name!r} brings code of its own, which sail does not run. Take a model that transformers knows."
        )
    kinds = getattr(config, "architectures", None) or []
    if kinds and not any("SequenceClassification" in kind for kind in kinds):
        raise ConfigError(
            f"{name} is a {kinds[0]}, not a sequence classifier: it has no head that scores. Train one from it with "
            "sail train-reward."
        )
    if config.num_labels != 1:
        raise ConfigError(
            f"The reward model {name!r} has {config.num_labels} outputs; a reward model has one. Take a model with "
            "num_labels 1, or train one with sail train-reward."
        )
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(_not_loaded(name, "reward model", error)) from error
    if loading["missing_keys"]:
        listed = ", ".join(sorted(loading["missing_keys"])[:3])
        raise ConfigError(
            f"The weights of {name!r} lack {listed}: they would be made anew, and its scores be random. Take a trained reward "
            "model, or make one with sail train-reward."
        )
    return model.eval().requires_grad_(False)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of a folder or a name; ConfigError where there is none, or one with code of its own."""
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).exists() for file in _TOKENIZER_FILES):
        raise ConfigError(
            f"{name} holds no tokenizer. Save the reward model's own beside it, or name it in oracle.tokenizer."
        )
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(_not_loaded(name, "tokenizer", error)) from error


def refuse_folder(name: str) -> None:
    """ConfigError for a path that is no model folder with safetensors weights; a hub name passes."""
    folder = Path(name)
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ConfigError(f"There is no folder {name}, so no reward model can be loaded. Check its path.")
        return
    if (folder / "adapter_config.json").exists():
        raise ConfigError(
            f"{name} is an adapter. Merge it into its base first (peft: merge_and_unload, save_pretrained) and use that folder."
        )
    if not (folder / "config.json").exists():
        raise ConfigError(f"{name} is not a model folder: save_pretrained writes one with config.json in it.")
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"{name} holds no safetensors weights, and other kinds can run code when they are loaded. Save it again with "
            "save_pretrained."
        )


def _not_loaded(name: str, what: str, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (
        f"The {what} of {name!r} could not be loaded: {lines[0] if lines else type(error).__name__} Give a folder that "
        "save_pretrained wrote, with safetensors weights and no code of its own, or a hub name that this machine can reach."
    )


def _padding(model: Any, tokenizer: Any, name: str) -> tuple[int, bool]:
    """The pad id, and whether the model reads its score before the first such id (it stands in its config)."""
    size = model.get_input_embeddings().num_embeddings
    configured = model.config.get_text_config().pad_token_id
    if configured is not None and 0 <= configured < size:
        return int(configured), True
    for found in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if found is not None and found < size:
            return int(found), False
    raise ConfigError(
        f"Neither the config nor the tokenizer of the reward model {name!r} has a pad token. Set pad_token_id in its config to "
        "the one it was trained with."
    )


def _another_id(wanted: int, last: set[int]) -> int:
    """The wanted id, or the smallest one that no text ends with: masked, it is never read."""
    return (
        wanted
        if wanted not in last
        else next(number for number in range(len(last) + 1) if number not in last)
    )


def length_limit(
    model: Any, tokenizer: Any, wanted: int | None, *, option: str = "oracle.max_length"
) -> int | None:
    """The longest input in tokens, `wanted` if given; None where nothing limits it. ConfigError if the model can take less."""
    config = model.config.get_text_config()
    positions = getattr(config, "max_position_embeddings", None)
    if positions is not None and "roberta" in str(getattr(config, "model_type", "")):
        positions -= (config.pad_token_id or 0) + 1  # its positions count from behind the pad id
    limits = [limit for limit in (positions, tokenizer.model_max_length) if limit and limit < _UNLIMITED]
    most = min(limits, default=None)
    if wanted is None or most is None or wanted <= most:
        return wanted or most
    raise ConfigError(
        f"{option} is {wanted}, and the reward model can take {most} tokens. Lower it, or leave it out."
    )


def _known_device(name: str | None) -> torch.device | None:
    try:
        return None if name is None else torch.device(name)
    except RuntimeError as error:
        first = str(error).splitlines()[0]
        raise ConfigError(
            f"oracle.device {name!r} is no device: {first} Write cpu, cuda or cuda:1."
        ) from None


def _device_of_run() -> torch.device:
    """Where the policy is, once a trainer has been built; before that, the accelerator if there is one."""
    if is_initialized():
        return torch.device(PartialState().device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
