"""SQuAD 2.0 (Rajpurkar et al., ACL 2018): SQuAD with questions that their passage does not answer."""

from __future__ import annotations

from typing import ClassVar

from kinject.datasets.squad_json import SquadJson


class SquadV2(SquadJson):
    """Records as of `squad_json`; a question without an answer has none in `answers` and `starts`."""

    DESCRIPTION = "SQuAD 2.0, or any data set in its JSON: questions, of which some have no answer in their passage."
    LICENSE = "CC BY-SA 4.0"
    CITATION = "Rajpurkar et al., Know What You Don't Know: Unanswerable Questions for SQuAD, ACL 2018"
    SPLITS: ClassVar[dict[str, tuple[str, ...]]] = {
        "train": ("train-v2.0.json", "train.json"),
        "validation": ("dev-v2.0.json", "dev.json"),
        "test": ("test.json",),
    }
    COUNTS: ClassVar[dict[str, int]] = {"train": 130_319, "validation": 11_873}
    KEEPS_UNANSWERED = True
    MANUAL_DOWNLOAD_INSTRUCTIONS = """\
    train-v2.0.json and dev-v2.0.json; or, with --no-check, train.json, dev.json and test.json in the same form, that of
    squad_json. Train with task_options no_answer=True.
    """
