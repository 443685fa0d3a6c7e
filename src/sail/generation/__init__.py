"""Who speaks: sampling responses, and scoring them."""

from sail.generation.base import Generator, Sampled, SamplingSettings, SeedKey, calls_of_everyone
from sail.generation.scoring import response_scores
from sail.generation.transformers import TransformersGenerator

__all__ = [
    "Generator",
    "Sampled",
    "SamplingSettings",
    "SeedKey",
    "TransformersGenerator",
    "calls_of_everyone",
    "response_scores",
]
