"""Preparing a data set out of its published files, and what is said of it afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kinject.data.records import short
from kinject.datasets.records import Dataset, read_metadata
from kinject.errors import InputError, did_you_mean

if TYPE_CHECKING:
    from kinject.datasets.builder import RecordBuilder
    from kinject.knowledge.base import KnowledgeBase

BUILDERS = {  # data set -> module of this package : class
    "fewrel": "fewrel:Fewrel",
    "wiki80": "relations:Wiki80",
    "wiki_et": "entity_typing:WikiEt",
    "entity_questions": "entity_questions:EntityQuestions",
    "wiki20m": "relations:Wiki20m",
    "trex_rc": "relations:TrexRc",
    "treebank": "corpora:Treebank",
    "fewrel_types": "fewrel_types:FewrelTypes",
    "open_entity": "entity_typing:OpenEntity",
    "figer": "entity_typing:Figer",
    "tacred": "relations:Tacred",
    "cosmosqa": "multiple_choice:Cosmosqa",
    "socialiqa": "multiple_choice:Socialiqa",
    "medqa": "multiple_choice:Medqa",
    "squad_json": "extractive_qa:SquadJson",
    "squad_v2": "extractive_qa:SquadV2",
    "open_qa": "extractive_qa:OpenQa",
    "ner": "corpora:Ner",
    "text_classification": "corpora:TextClassification",
    "lama": "lama:Lama",
    "entity_inferences": "entity_propagation:EntityInferences",
    "ecbd": "entity_propagation:Ecbd",
    "commonsenseqa": "multiple_choice:Commonsenseqa",
    "ripple_edits": "ripple_edits:RippleEdits",
    "mquake": "editing:Mquake",
    "counterfact": "editing:Counterfact",
    "zsre": "editing:Zsre",
    "jsonl": "corpora:Jsonl",
}
BLOCK = 4096


@dataclasses.dataclass(frozen=True)
class Coverage:
    """How many of the mentions have an entity, are known to a knowledge base, and have a vector there."""

    mentions: int
    linked: int
    known: int
    with_vector: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """A prepared data set.

    Attributes:
      reference: for `read_dataset`, without a split.
      fresh: whether it was prepared now; otherwise it was there already, from the same files.
      splits: how many records each has.
      labels: how many labels it knows.
      left_out: why and how many records of the files were left out.
      coverage: by split, where a knowledge base was given.
    """

    reference: str
    fresh: bool
    splits: dict[str, int]
    labels: int
    left_out: dict[str, int]
    coverage: dict[str, Coverage]


def builder_class(name: str) -> type[RecordBuilder]:
    """The builder of a data set.

    Raises:
      InputError: there is none of that name.
    """
    if name not in BUILDERS:
        raise InputError(name, "there is no such data set", did_you_mean(name, BUILDERS))
    module, _, builder = BUILDERS[name].partition(":")
    return getattr(import_module(f"kinject.datasets.{module}"), builder)


def prepare(
    name: str, manual_dir: Path, data_dir: Path, *, check: bool = True, knowledge: KnowledgeBase | None = None
) -> list[Summary]:
    """Prepares `NAME/CONFIG`, or whatever configs of `NAME` the files are for; what is there already stays.

    Args:
      name: data set, and config.
      manual_dir: the folder of the published files.
      data_dir: where prepared data sets live.
      check: whether the files must be the published ones.
      knowledge: to count links against.

    Raises:
      InputError: whatever is wrong with the files; a data set that was prepared from other files.
    """
    name, _, config = name.partition("/")
    builder_type = builder_class(name)
    manual_dir, data_dir = manual_dir.expanduser().absolute(), data_dir.expanduser().absolute()
    if not manual_dir.is_dir() or not any(manual_dir.iterdir()):
        problem = "is empty" if manual_dir.is_dir() else "there is no such folder"
        raise InputError(manual_dir, problem, f"put the files of {name} there: python -m kinject.datasets list {name}")
    configs = [config] if config else builder_type.configs_for(manual_dir) or [""]
    made = [_make_builder(builder_type, each, data_dir, check) for each in configs]
    return [_prepare(builder, manual_dir, data_dir, knowledge) for builder in made]


def _make_builder(builder_type: type[RecordBuilder], config: str, data_dir: Path, check: bool) -> RecordBuilder:
    known = list(builder_type.builder_configs)
    if builder_type.USER_NAMED:
        from kinject.datasets.builder import corpus_config

        named = corpus_config(config, builder_type.BUILDER_CONFIGS)
        return builder_type(data_dir=data_dir, config=named, check=check)
    if config and config not in known:
        raise InputError(f"{builder_type.name}/{config}", "there is no such config", did_you_mean(config, known))
    return builder_type(data_dir=data_dir, config=config or None, check=check)


def _prepare(builder: RecordBuilder, manual_dir: Path, data_dir: Path, knowledge: KnowledgeBase | None) -> Summary:
    fresh = not (Path(builder.data_dir) / "dataset_info.json").exists()
    if fresh:
        _download_and_prepare(builder, manual_dir)
    else:
        _refuse_other_files(builder, manual_dir)
    full_name = "/".join(filter(None, (builder.name, builder.builder_config and builder.builder_config.name)))
    reference = f"tfds:{full_name}@{data_dir}"
    metadata = read_metadata(Path(builder.data_dir))
    splits = {split: info.num_examples for split, info in builder.info.splits.items()}
    coverage = {split: cover(Dataset(f"{reference}?split={split}"), knowledge) for split in splits if knowledge}
    return Summary(reference, fresh, splits, len(metadata["labels"]), metadata["left_out"], coverage)


def _download_and_prepare(builder: RecordBuilder, manual_dir: Path) -> None:
    import tensorflow_datasets as tfds

    builder.files(manual_dir)  # a missing one is said before any folder is made
    config = tfds.download.DownloadConfig(manual_dir=manual_dir)
    # nothing is downloaded, but tensorflow_datasets makes a folder for it and talks of it
    with tempfile.TemporaryDirectory() as downloads, contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_dir=downloads, download_config=config, file_format="array_record")


def _refuse_other_files(builder: RecordBuilder, manual_dir: Path) -> None:
    """Raises InputError when what is there was made from files of other names or sizes: it would not be replaced."""
    before = read_metadata(Path(builder.data_dir))["files"]
    now = {str(path.relative_to(manual_dir)): path.stat().st_size for path in builder.files(manual_dir)}
    if before != now:
        differ = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        problem = f"was prepared from other files ({short(differ[0])} differs)"
        raise InputError(builder.data_dir, problem, "delete that folder, or choose another --data-dir")


def cover(records: Dataset, knowledge: KnowledgeBase) -> Coverage:
    """Counts a split's mentions against a knowledge base, a block of ids at a time."""
    counts: Counter[str] = Counter()
    for block in _blocks(mention.entity for record in records for mention in record.mentions):
        linked = [entity for entity in block if entity is not None]
        rows = knowledge.rows(linked)
        known = rows[rows >= 0]
        has = knowledge.has_vector
        counts.update(
            mentions=len(block),
            linked=len(linked),
            known=len(known),
            with_vector=len(known) if has is None else int(has[known].sum()),
        )
    return Coverage(**{field.name: counts[field.name] for field in dataclasses.fields(Coverage)})


def _blocks(values: Iterator[Any]) -> Iterator[list[Any]]:
    while block := list(itertools.islice(values, BLOCK)):
        yield block
