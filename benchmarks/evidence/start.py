"""Where every run of a seed starts: its own SFT model and its own preference pairs, made as `sail play` makes them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from sail.data.encode import EncodedDataset, encode_rows, eos_ids
from sail.data.sources import load_rows
from sail.play import ALIGN, FULL, prepare


@dataclass(frozen=True)
class Start:
    """The fine-tuned assistant of a seed and its encoded rows."""

    folder: Path
    tokenizer: Any
    train: EncodedDataset
    held_out: EncodedDataset

    def model(self) -> Any:
        """The assistant, fresh from its folder."""
        from sail.build import make_model

        return make_model(str(self.folder))


@lru_cache(maxsize=2)
def start_of(seed: int, work: Path) -> Start:
    """Prepare (or find) the start of `seed` in `work`; a finished part is not made again."""
    from sail.build import make_tokenizer

    out = work / f"start-{seed}"
    folder = prepare(out, FULL, seed)
    tokenizer = make_tokenizer(str(folder))
    ends = eos_ids(tokenizer)

    def encoded(name: str) -> EncodedDataset:
        rows = load_rows(out / "world" / name, bad_rows="skip")
        return encode_rows(
            rows,
            tokenizer,
            eos=ends,
            max_length=ALIGN["max_length"],
            max_prompt_length=ALIGN["max_prompt_length"],
            bad_rows="skip",
        )

    return Start(folder, tokenizer, encoded("pairs.jsonl"), encoded("pairs.held.jsonl"))
