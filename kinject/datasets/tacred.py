"""TACRED (Zhang et al., EMNLP 2017): relations between two marked mentions, most of them none."""

from __future__ import annotations

from typing import Any, ClassVar

from kinject.data.records import Record
from kinject.datasets.files import take
from kinject.datasets.relation_lines import subject_object_record
from kinject.datasets.split_files import SplitFiles


class Tacred(SplitFiles):
    """Records: tokens, two mentions (subject, object), `label`, `id`."""

    DESCRIPTION = "TACRED: 41 relations and no_relation between a subject and an object of one sentence."
    HOMEPAGE = "https://nlp.stanford.edu/projects/tacred/"
    LICENSE = "LDC User Agreement"
    CITATION = "Zhang et al., Position-aware Attention and Supervised Data Improve Slot Filling, EMNLP 2017"
    HAS_OWN_IDS = True
    COUNTS: ClassVar[dict[str, int]] = {"train": 68_124, "validation": 22_631, "test": 15_509}
    LABELS = 42
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train.json, dev.json and test.json of the folder data/json of LDC2018T24, or of a corrected version (Re-TACRED,
    TACREV; with --no-check): arrays of {"id", "token", "relation", "subj_start", "subj_end" (inclusive), "obj_start",
    "obj_end"}.
    """

    def record(self, line: dict[str, Any], where: str, identity: str) -> Record | None:
        label = take(line, "relation", str, where)
        self.known([("relation", label)], where)
        record = subject_object_record(line, where, label=label, id=take(line, "id", str, where))
        if record is None:
            self.leave_out_overlap(where, "subject and object")
        return record
