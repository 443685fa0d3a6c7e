"""The sections of a run file beside training: how weights are stored, what is evaluated, what is merged. No torch here."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from sail.section import Section

DTypes = Literal["float32", "bfloat16", "float16"]


class QuantizationSection(Section):
    """Frozen weights in few bits (QLoRA); every key of transformers.BitsAndBytesConfig is accepted beside these."""

    model_config = ConfigDict(extra="allow")

    load_in_4bit: bool = Field(default=False, description="Linear layers in 4 bits; needs peft.")
    load_in_8bit: bool = Field(default=False, description="Linear layers in 8 bits; needs peft.")
    bnb_4bit_quant_type: Literal["nf4", "fp4"] = Field(
        default="nf4", description="The 4-bit numbers: nf4 for normally distributed weights."
    )
    bnb_4bit_compute_dtype: DTypes = Field(
        default="bfloat16", description="What 4-bit weights are turned into to be multiplied."
    )
    bnb_4bit_use_double_quant: bool = Field(
        default=False, description="Store the scales of the 4-bit blocks in 8 bits."
    )

    @model_validator(mode="after")
    def _one_of_both(self) -> QuantizationSection:
        if self.load_in_4bit == self.load_in_8bit:
            raise PydanticCustomError(
                "refused", "needs exactly one of load_in_4bit: true and load_in_8bit: true"
            )
        return self

    @property
    def bits(self) -> int:
        """4 or 8."""
        return 4 if self.load_in_4bit else 8


class EvalSection(Section):
    """The stage eval of sail pipeline: the options of sail eval; null = its default, or the run's."""

    data: str | None = Field(default=None, min_length=1, description="Held-out rows; null = data.eval.")
    oracle: str | None = Field(default=None, description="path.py:name of a judge; null = the run's oracle.")
    against: list[str] = Field(
        default=[],
        description="Whose answers to win over: dataset, reference, or runs and models; [] = what there is.",
    )
    reference: str | None = Field(
        default=None, min_length=1, description="For KL and margin; null = the start."
    )
    prompts: int = Field(default=512, gt=0, description="The first so many prompts.")
    samples: int = Field(default=1, gt=0, description="Answers per prompt.")
    questions: str | None = Field(default=None, description="Two-turn benchmark questions, or playground.")
    scorer: str | None = Field(default=None, description="path.py:score of the judge that scores them.")
    seed: int | None = Field(default=None, description="null = the run's.")
    temperature: float | None = Field(default=None, gt=0, description="null = the run's.")
    max_new_tokens: int | None = Field(default=None, gt=0, description="null = the run's.")
    batch_size: int = Field(default=64, gt=0, description="Prompts answered at once.")
    checkpoints: bool = Field(default=False, description="Also every checkpoint: reward, KL, length.")
    out: str | None = Field(default=None, min_length=1, description="Its folder; null = RUN/eval.")

    def words(self) -> list[str]:
        """The same as arguments of sail eval; what is at its default is left out."""
        found: list[str] = []
        for name, field in type(self).model_fields.items():
            value, option = getattr(self, name), f"--{name.replace('_', '-')}"
            if value == field.default:
                continue
            if name == "against":
                found += [word for one in value for word in (option, one)]
            else:
                found += [option] if value is True else [option, str(value)]
        return found


class MergeSection(Section):
    """The stage merge of sail pipeline: the run's adapter added into its base."""

    out: str | None = Field(default=None, min_length=1, description="Its folder; null = RUN/merged.")
    dtype: DTypes | None = Field(
        default=None, description="Type of the weights; null = as the base is stored."
    )

    def words(self) -> list[str]:
        """The same as arguments of sail merge."""
        given: list[tuple[str, Any]] = [("--out", self.out), ("--dtype", self.dtype)]
        return [word for option, value in given if value is not None for word in (option, value)]
