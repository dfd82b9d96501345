"""The paper's data sets, and a user's own corpus, as tensorflow_datasets builders that need no TensorFlow.

`python -m kinject.datasets prepare NAME --manual-dir D --data-dir E` turns the published files into random-access
records; `kinject.datasets.records.read_dataset("tfds:NAME/CONFIG@E?split=train")` reads them. One file a
kind of task: `kinject.datasets.prepare.BUILDERS` says which data set is where.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "records": ["Dataset", "read_dataset"],
        "builder": ["RecordBuilder"],
    },
)
