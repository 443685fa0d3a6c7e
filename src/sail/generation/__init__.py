"""Who speaks: sampling responses, and scoring them."""

from sail.generation.base import Generator, Sampled, SamplingSettings, SeedKey, calls_of_everyone
from sail.generation.joined import prompt_columns
from sail.generation.scoring import response_positions, response_scores
from sail.generation.transformers import TransformersGenerator

__all__ = [
    "Generator",
    "Sampled",
    "SamplingSettings",
    "SeedKey",
    "TransformersGenerator",
    "calls_of_everyone",
    "prompt_columns",
    "response_positions",
    "response_scores",
]
