"""Records, and what becomes of them: token ids with slots, examples, batches.

Public names are imported when they are asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "records": ["Mention", "Record", "parse_record", "read_records"],
        "tokenizer": ["HostTokenizer", "load_tokenizer"],
        "passage": ["Passage"],
        "encode": ["Encoded", "EntityEncoder"],
        "pipeline": ["Examples", "Feed", "make_examples"],
    },
)
