"""``--text given``: the transcript that stands beside the clip, as it is. A tokenizer turns it into
tokens when the table is converted, or when a model scores the clip.

There is no model and nothing to compute, so this extractor is its record alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from data_shards.extract.recipe import ExtractorRecord, Option

VERSION = "1"  # raise it when the same transcript would be treated in another way


@dataclass(frozen=True)
class Given:
    """The transcript as it was given."""

    record: ExtractorRecord


def build(modality: str, options: Mapping[str, Option]) -> Given:
    """The extractor; it has no options.

    Args:
        modality: the field that the tokens will become.
        options: empty; the registry has refused others.
    """
    return Given(ExtractorRecord(modality, "given", VERSION, dict(options)))
