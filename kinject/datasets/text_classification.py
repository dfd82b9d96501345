"""Texts, or pairs of texts, with one label each, of any corpus: JSON lines, as PlugLM's domain data sets have them."""

from __future__ import annotations

from typing import Any, ClassVar

import tensorflow_datasets as tfds

from kinject.data.records import Record, parse_record
from kinject.datasets.files import check, take
from kinject.datasets.split_files import SplitFiles
from kinject.errors import InputError


class TextClassification(SplitFiles):
    """Records: text, `pair` where a line has it, `label`, `id`; mentions where a line has them."""

    DESCRIPTION = "Texts with labels, a corpus of one's own choice: ChemProt, RCT, ACL-ARC, SciERC, AGNews, IMDB, …"
    HOMEPAGE = "https://github.com/allenai/dont-stop-pretraining"
    CITATION = "Gururangan et al., Don't Stop Pretraining, ACL 2020"
    USER_NAMED = True
    BUILDER_CONFIGS: ClassVar[list[tfds.core.BuilderConfig]] = [
        tfds.core.BuilderConfig(name="corpus", description="a corpus without a name of its own")
    ]
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.jsonl, dev.jsonl and test.jsonl: a line has text, label (a string or a whole number), for pairs also pair (the
    second text), and perhaps mentions. dev and test may be missing. With a label2id.json beside them, other labels are
    refused, and theirs is the order of labels; without, it is that of their names.
    """

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record:
        label = str(check(take(line, "label", str | int, where), str | int, "label", where))
        if not label:
            raise InputError(where, "field 'label' is empty", "drop the line")
        self.known([("label", label)], where)
        pair = {"pair": take(line, "pair", str, where)} if "pair" in line else {}
        fields = {**pair, "mentions": line.get("mentions", []), "label": label, "id": identity}
        return parse_record({"text": take(line, "text", str, where), **fields}, where)
