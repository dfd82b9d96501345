"""The numbers of the authors' result files (thunlp/Knowledge-Plugin, output/**/test_result.out), in percent.

FewRel: accuracy 5-way 1-shot, 5-way 5-shot, 10-way 1-shot, 10-way 5-shot. Wiki-ET: micro precision, recall, F1.
"""

FEWREL_SETTINGS = ((5, 1), (5, 5), (10, 1), (10, 5))

ROWS = {
    "base": {
        "full": {"fewrel": (91.0, 95.1, 85.4, 90.8), "wiki80": 86.1, "wiki_et": (80.0, 75.2, 77.5), "eq": 41.7},
        "lora": {"fewrel": (90.7, 95.1, 84.9, 91.2), "wiki80": 85.3, "wiki_et": (77.7, 77.2, 77.5), "eq": 42.4},
        "houlsby": {"fewrel": (91.2, 95.2, 86.2, 91.1), "wiki80": 85.7, "wiki_et": (80.0, 75.1, 77.5), "eq": 43.6},
        "bitfit": {"fewrel": (89.2, 94.8, 83.0, 90.0), "wiki80": 82.7, "wiki_et": (76.1, 78.0, 77.1), "eq": 41.3},
    },
    "general": {
        "full": {"fewrel": (92.6, 95.6, 88.1, 91.2), "wiki80": 86.7, "wiki_et": (84.6, 69.9, 76.6), "eq": 49.0},
        "lora": {"fewrel": (92.3, 96.0, 87.4, 91.9), "wiki80": 85.8, "wiki_et": (80.6, 76.1, 78.3), "eq": 49.6},
        "houlsby": {"fewrel": (92.6, 95.8, 88.2, 91.8), "wiki80": 85.9, "wiki_et": (82.5, 76.1, 79.2), "eq": 50.8},
        "bitfit": {"fewrel": (90.4, 95.5, 85.2, 90.8), "wiki80": 83.7, "wiki_et": (79.4, 76.7, 78.0), "eq": 48.4},
    },
    "task_specific": {
        "full": {"fewrel": (92.8, 95.6, 88.2, 91.0), "wiki80": 87.8, "wiki_et": (79.1, 78.7, 78.9), "eq": 58.9},
    },
    "tuned_with_wiki": {
        "full": {"fewrel": (93.5, 96.5, 89.4, 92.8), "wiki80": 88.7, "wiki_et": (80.1, 79.7, 79.9), "eq": 62.9},
    },
    "tuned_with_downstream": {
        "full": {"fewrel": (92.7, 96.0, 88.0, 91.7), "wiki80": 88.7, "wiki_et": (81.6, 80.4, 81.0), "eq": 62.0},
    },
}
TRANSFER = {"bert": (81.2, 89.8, 72.6, 83.3), "roberta": (91.6, 96.6, 88.1, 94.5)}  # their first commit
BASE_ROBERTA_5_1 = 88.1

# mean training loss of each epoch (mapping_networks*/**/loss_*); not comparable across dropout rates
GENERAL_LOSS = {
    "transe": {
        0: (6.582, 5.844, 5.637, 5.516, 5.435),
        15: (6.634, 6.172, 6.070, 6.019, 5.988),
        25: (7.085, 6.664, 6.562, 6.512, 6.484),
        35: (7.727, 7.357, 7.248, 7.193, 7.161),
        45: (8.778, 8.480, 8.384, 8.332, 8.298),
    },
    "transr": {
        15: (6.363, 5.965, 5.861, 5.808, 5.775),
        25: (6.824, 6.473, 6.384, 6.337, 6.308),
        35: (7.504, 7.174, 7.086, 7.041, 7.012),
        45: (8.610, 8.339, 8.256, 8.211, 8.183),
    },
}
DOWNSTREAM_LOSS = {
    "eq": (7.977, 7.283, 7.112, 7.030, 6.978),
    "fewrel": (6.713, 6.035, 5.828, 5.721, 5.650),
    "wiki_et": (5.845, 4.438),
    "wiki80": (7.433, 6.947, 6.610, 6.385, 6.215, 6.084, 5.978, 5.891, 5.813, 5.743, 5.680, 5.627, 5.572, 5.523, 5.479),
}


def places(task, numbers, row):
    """{place in results.json: fraction} of one row's numbers of a task."""
    if task == "fewrel":
        return {
            f"evaluate_{n}_{k}.fewrel.{row}": round(number / 100, 4)
            for (n, k), number in zip(FEWREL_SETTINGS, numbers, strict=True)
        }
    measured = numbers[-1] if task == "wiki_et" else numbers  # of three, F1 is what is measured
    return {f"evaluate.{task}.{row}": round(measured / 100, 4)}


def row(name, task, method, as_row):
    """The same of a setting of the table; {} where the authors published none."""
    numbers = ROWS[name].get(method, {}).get(task)
    return places(task, numbers, as_row) if numbers else {}
