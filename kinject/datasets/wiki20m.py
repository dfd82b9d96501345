"""wiki20m: sentences with two linked entities, the corpus of general map-tuning (Zhang et al., ACL 2023, section 3.2).

Read as a stream, so that any corpus in this form can be used, however large.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from kinject.data.records import Record
from kinject.datasets.builder import RecordBuilder, Splits
from kinject.datasets.files import check, find, need, read_json_lines
from kinject.datasets.relation_lines import opennre_record

FILES = {"train": "wiki20m_train.txt", "validation": "wiki20m_val.txt", "test": "wiki20m_test.txt"}


class Wiki20m(RecordBuilder):
    """Records: tokens, mentions (head, tail), `label` where the line has a relation, `id`.

    The paper trains on the three splits together: `?split=train+validation+test`. Entities come from distant
    supervision, so a sentence whose head and tail overlap is no fault of the file: it is left out and counted.
    """

    DESCRIPTION = "wiki20m: Wikipedia sentences with two linked entities, for mention-masked language modelling."
    HOMEPAGE = "https://github.com/thunlp/OpenNRE"
    LICENSE = "MIT"
    CITATION = "Gao et al., Manual Evaluation Matters: Reviewing Test Protocols of Distantly Supervised RE, ACL 2021"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    wiki20m_train.txt, wiki20m_val.txt and wiki20m_test.txt of OpenNRE (benchmark/download_wiki20m.sh) or of the folder
    wiki20m of PlugDataset.tar (see the README of https://github.com/thunlp/Knowledge-Plugin). The training file is
    needed, the others may be missing; any may be packed (.gz).
    """

    def files(self, folder: Path) -> list[Path]:
        need(folder, FILES["train"])
        return [path for name in FILES.values() if (path := find(folder, name))]

    def splits(self, folder: Path) -> Splits:
        self.files(folder)
        found = {split: find(folder, name) for split, name in FILES.items()}
        return {split: partial(self._records, split, path) for split, path in found.items() if path}

    def _records(self, split: str, path: Path) -> Iterator[Record]:
        for number, where, line in read_json_lines(path):
            relation = check(line.get("relation", ""), str, "relation", where)
            fields = {"label": relation} if relation else {}
            record = opennre_record(line, where, id=f"{split}/{number}", **fields)
            if record is None:
                self.left_out["head and tail overlap"] += 1
            else:
                yield record
