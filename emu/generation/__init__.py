"""Generation: one engine under every job, and batches that requests join and leave."""

from emu.generation.batch_requests import DocumentTextRequest, FillRequest, GridRequest, TextRequest
from emu.generation.batcher import Batcher
from emu.generation.engine import Engine
from emu.generation.generation_stats import GenerationStats
from emu.generation.sampling import Sampling
from emu.generation.ticket import RequestCancelled, RequestTooLarge, Ticket

__all__ = [
    "Batcher",
    "DocumentTextRequest",
    "Engine",
    "FillRequest",
    "GenerationStats",
    "GridRequest",
    "RequestCancelled",
    "RequestTooLarge",
    "Sampling",
    "TextRequest",
    "Ticket",
]
