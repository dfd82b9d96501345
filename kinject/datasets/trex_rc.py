"""T-REx-rc: sentences of Wikipedia that express a relation of Wikidata, as K-Adapter's factual pretraining has them.

Wang et al., "K-Adapter", Findings of ACL 2021, section 3.2, made it from T-REx (Elsahar et al., LREC 2018). As they do,
the builder drops P31 (instance of) and relations with fewer than 50 sentences.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from kinject.data.records import Record
from kinject.datasets.builder import RecordBuilder, Splits
from kinject.datasets.files import check, find, need, read_json, short
from kinject.datasets.relation_lines import subject_object_record
from kinject.errors import InputError

TOO_GENERAL, FEWEST, TRAIN_SHARE = "P31", 50, 0.9
SPLITS = ("train", "validation")
_ENTITY = re.compile(r"(?:.*/)?(Q\d+)")


class TrexRc(RecordBuilder):
    """Records: tokens, mentions (subject, object; linked where the label is a Wikidata id), `label`, `id`.

    With `check=False` relations of any number of sentences stay.
    """

    DESCRIPTION = "T-REx-rc: sentences with a Wikidata relation between two mentions, for K-Adapter's factual adapter."
    HOMEPAGE = "https://github.com/microsoft/K-Adapter"
    LICENSE = "CC BY-SA 4.0 (T-REx)"
    CITATION = "Wang et al., K-Adapter, Findings of ACL 2021, pages 1405-1418; Elsahar et al., T-REx, LREC 2018"
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.json and dev.json, each one JSON array of {"token": [...], "relation": "P17", "subj_start", "subj_end",
    "obj_start", "obj_end", "docid", "subj_label", "obj_label"}, ends inclusive. Without dev.json one sentence in ten of
    train.json is the validation set, at random but the same on every machine.
    """

    def files(self, folder: Path) -> list[Path]:
        dev = find(folder, "dev.json")
        return [need(folder, "train.json"), *([dev] if dev else [])]

    def splits(self, folder: Path) -> Splits:
        files = self.files(folder)
        relations = [_relations(path) for path in files]
        counts = Counter(relation for each in relations for relation in each)
        fewest = FEWEST if self.check else 1
        self.labels = sorted(one for one, count in counts.items() if one != TOO_GENERAL and count >= fewest)
        if not self.labels:
            raise InputError(folder, f"no relation has {fewest} sentences", "prepare with --no-check")
        self.left_out.update(
            {
                f"relation {TOO_GENERAL}": counts[TOO_GENERAL],
                f"relations of fewer than {fewest} sentences": sum(c for c in counts.values() if c < fewest),
            }
        )
        self.left_out += Counter()  # drops what counts nothing
        if len(files) == 2:
            return {split: partial(self._records, split, path) for split, path in zip(SPLITS, files, strict=True)}
        chosen = range(len(relations[0]))
        train = frozenset(random.Random("trex_rc").sample(chosen, round(TRAIN_SHARE * len(chosen))))
        parts = (train, frozenset(chosen) - train)
        return {split: partial(self._records, split, files[0], part) for split, part in zip(SPLITS, parts, strict=True)}

    def _records(self, split: str, path: Path, part: frozenset[int] | None = None) -> Iterator[Record]:
        known = set(self.labels)
        for index, item in enumerate(read_json(path)):
            if (part is None or index in part) and item["relation"] in known:
                entities = (_linked(item.get("subj_label")), _linked(item.get("obj_label")))
                about = {"label": item["relation"], "id": f"{split}/{index}"}
                record = subject_object_record(item, f"{path}[{index}]", entities=entities, **about)
                if record is None:
                    self.left_out["subject and object overlap"] += 1
                else:
                    yield record


def _linked(label: Any) -> str | None:
    """The id in a label such as `http://www.wikidata.org/entity/Q42`; None where it has none."""
    found = _ENTITY.fullmatch(str(label))
    return found.group(1) if found else None


def _relations(path: Path) -> list[str]:
    """The relation of every instance of a file, in order.

    Raises:
      InputError: another form, or a relation that is no property of Wikidata.
    """
    found = []
    for index, item in enumerate(check(read_json(path), list, "the whole file", str(path))):
        where = f"{path}[{index}]"
        relation = check(item, dict, "the instance", where).get("relation")
        if not isinstance(relation, str) or not re.fullmatch(r"P\d+", relation):
            mend = "take the files with Wikidata's ids, such as P17; the authors' cleaner writes numbers in their place"
            raise InputError(where, f"field 'relation' is {short(relation)}", mend)
        found.append(relation)
    if not found:
        raise InputError(path, "there is no sentence in it", "download it again")
    return found
