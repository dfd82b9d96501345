"""Loss and mapper gradients of every task against the authors' formula, written out in plain torch.

The other side knows nothing of kinject: token lists are written by hand, a slot's embedding is `W e + b` put among
the word embeddings, and transformers' BERT is given `inputs_embeds`, as the paper's code does. Dropout is off.
"""

import random

import jax
import numpy as np
import pytest
from tiny import fast_jit
from tiny_world import as_device, write_records

from kinject.data.pipeline import Feed
from kinject.data.records import read_records
from kinject.inference.host import open_host
from kinject.inference.program import split_program
from kinject.knowledge.base import KnowledgeBase, write_knowledge
from kinject.plugins.map_tuning import MapTuning
from kinject.tasks.base import make_task

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
transformers.utils.logging.disable_progress_bar()

TOLERANCE = 1e-5  # of the loss, and of the largest entry of a gradient
K = 7
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = """# $ / ? the of in was born lives where capital river flows ada lin ##da paris rome tiber bern ##ese alps"""
VOCABULARY = [*SPECIAL, *WORDS.split()]
KNOWN = ["Q1", "Q2", "Q3", "Q4"]
RELATIONS, TYPES = ["born", "capital", "river"], ["person", "place", "water"]
SHAPES = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48},
    "base": {},
}
# head and tail as (words, entity); Q9 has no vector
ADA, LINDA = (["ada"], "Q1"), (["linda"], "Q9")
PARIS, ROME, TIBER, BERNESE = (["paris"], "Q2"), (["rome"], "Q3"), (["tiber"], "Q4"), (["bernese", "alps"], "Q9")
SENTENCES = [
    ("born", [ADA, "was born in", PARIS, "?"]),
    ("born", ["the", LINDA, "born in", ROME]),
    ("born", [ADA, "lives where the", LINDA, "lives"]),
    ("capital", ["the capital", ROME, "of the", BERNESE]),
    ("capital", [PARIS, "capital of", ROME]),
    ("capital", ["in", BERNESE, "the capital of the", PARIS, "lives"]),
    ("river", [TIBER, "flows in", ROME, "river"]),
    ("river", ["the river of the", PARIS, "flows", TIBER]),
    ("river", ["where", TIBER, "flows the", BERNESE]),
]
PIECES = {"linda": ["lin", "##da"], "bernese": ["bern", "##ese"]}


def pieces(text):
    return [piece for word in text.split() for piece in PIECES.get(word, [word])]


def record(label, parts, **fields):
    tokens, mentions = [], []
    for part in parts:
        words, entity = (part.split(), None) if isinstance(part, str) else part
        if entity:
            mentions.append({"start": len(tokens), "end": len(tokens) + len(words), "entity": entity})
        tokens += [word.capitalize() for word in words]
    return {"tokens": tokens, "mentions": mentions, "label": label, **fields}


def marked(parts, markers):
    """By hand: `# Q1 / ada # was born in $ Q2 / paris $ ?`, entities without a vector too."""
    found, markers = [], list(markers)
    for part in parts:
        if isinstance(part, str):
            found += pieces(part)
        else:
            marker = markers.pop(0)
            found += [marker, part[1], "/", *pieces(" ".join(part[0])), marker]
    return found


def masked(parts, shown):
    """By hand: a mention-masked sentence, and the word that each mask hides; no markers, no slot without a vector."""
    tokens, labels, number = ["[CLS]"], [None], -1
    for part in [*parts, "END"]:
        if isinstance(part, str):
            new = ["[SEP]"] if part == "END" else pieces(part)
            tokens, labels = tokens + new, labels + [None] * len(new)
            continue
        number += 1
        words = pieces(" ".join(part[0]))
        slot = [part[1], "/"] if part[1] in KNOWN else []
        tokens += slot + (words if shown[number] else ["[MASK]"] * len(words))
        labels += [None] * len(slot) + ([None] * len(words) if shown[number] else words)
    return tokens, labels


class Reference:
    """The authors' side, in float64 so that only our rounding is measured."""

    def __init__(self, model, vectors, plugin, sentences, episodes):
        self.sentences, self.episodes = sentences, episodes
        self.model, self.vectors = model.double().requires_grad_(False), vectors
        self.mapper = torch.nn.Linear(K, model.config.hidden_size, dtype=torch.float64)
        with torch.no_grad():
            self.mapper.weight.copy_(torch.from_numpy(np.array(plugin.mapper.kernel[...]).T))
            self.mapper.bias.copy_(torch.from_numpy(np.array(plugin.mapper.bias[...])))

    def inputs(self, rows, types=None):
        length = max(map(len, rows))
        table = self.model.get_input_embeddings().weight
        zero = np.zeros(K)

        def embedding(token):
            if token[0] == "Q":
                return self.mapper(torch.from_numpy(np.float64(self.vectors.get(token, zero))))
            return table[VOCABULARY.index(token)]

        padded = [[*row, *["[PAD]"] * (length - len(row))] for row in rows]
        found = {
            "inputs_embeds": torch.stack([torch.stack([embedding(token) for token in row]) for row in padded]),
            "attention_mask": torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows]),
        }
        if types is not None:
            found["token_type_ids"] = torch.tensor([[*row, *[0] * (length - len(row))] for row in types])
        return found

    def masked_lm(self):
        examples = [
            masked(parts, shown)
            for _, parts in self.sentences
            for shown in ((False, False), (True, False), (False, True))
            if any(part[1] in KNOWN for part in parts if not isinstance(part, str))
        ]
        logits = self.model(**self.inputs([tokens for tokens, _ in examples])).logits
        at = [(row, place) for row, (_, labels) in enumerate(examples) for place, word in enumerate(labels) if word]
        hidden = [VOCABULARY.index(examples[row][1][place]) for row, place in at]
        rows, places = (torch.tensor(values) for values in zip(*at, strict=True))
        return torch.nn.functional.cross_entropy(logits[rows, places], torch.tensor(hidden))

    def relation_classification(self):
        rows = [["[CLS]", *marked(parts, "#$"), "[SEP]"] for _, parts in self.sentences]
        labels = torch.tensor([RELATIONS.index(label) for label, _ in self.sentences])
        return torch.nn.functional.cross_entropy(self.model(**self.inputs(rows)).logits, labels)

    def pooled(self, **inputs):
        return self.model.classifier(self.model.bert(**inputs).pooler_output)

    def entity_typing(self):
        rows = [["[CLS]", *marked(parts, "$"), "[SEP]"] for _, parts in TYPED]
        labels = torch.tensor([[float(name in types) for name in TYPES] for types, _ in TYPED], dtype=torch.float64)
        return torch.nn.BCEWithLogitsLoss()(self.pooled(**self.inputs(rows)), labels)

    def entity_questions(self):
        rows = [["[CLS]", *marked(parts, "$"), "[MASK]", "[SEP]"] for _, parts in ASKED if parts != UNANSWERED]
        labels = torch.tensor([VOCABULARY.index(word) for word in ("paris", "rome", "tiber")])
        logits = self.model(**self.inputs(rows)).logits
        return torch.nn.CrossEntropyLoss()(torch.stack([logits[i, len(row) - 2] for i, row in enumerate(rows)]), labels)

    def few_shot_relations(self):
        losses = []
        for seed in range(self.episodes):
            random.seed(seed)
            classes = random.sample(sorted(RELATIONS), 2)
            drawn = {}
            for name in classes:
                own = [parts for label, parts in self.sentences if label == name]
                order = random.sample(range(len(own)), 3)
                random.shuffle(order)
                drawn[name] = [marked(own[i], "#$") for i in order]
            for right, name in enumerate(classes):
                query, supports = drawn[name][2], [support for other in classes for support in drawn[other][:2]]
                pairs = [["[CLS]", *query, "[SEP]", *support, "[SEP]"] for support in supports]
                types = [[0] * (len(query) + 2) + [1] * (len(pair) - len(query) - 2) for pair in pairs]
                scores = self.pooled(**self.inputs(pairs, types))[:, 0]
                means = torch.stack([scores[:2].mean(), scores[2:].mean()])
                losses.append(torch.nn.functional.cross_entropy(means[None], torch.tensor([right])))
        return torch.stack(losses).mean()


TYPED = [
    (["person"], [ADA, "was born in the capital"]),
    (["place", "water"], ["the river of", TIBER, "flows"]),
    (["place"], ["where the", BERNESE]),
]
UNANSWERED = ["where was", ADA, "?"]
ASKED = [
    (["nothing", "PARIS", "rome"], ["where was", ADA, "born ?"]),
    (["nowhere known"], UNANSWERED),
    (["Rome"], ["the capital of", BERNESE, "?"]),
    (["Tiber"], [PARIS, "river ?"]),
]
TASKS = {
    "mention_masked_lm": ("BertForMaskedLM", None, {}),
    "relation_classification": ("BertForSequenceClassification", 3, {"labels": RELATIONS, "protocol": "thunlp"}),
    "entity_typing": ("BertForSequenceClassification", 3, {"labels": TYPES, "protocol": "thunlp"}),
    "entity_questions": ("BertForMaskedLM", None, {"protocol": "thunlp"}),
    "few_shot_relations": (
        "BertForSequenceClassification",
        1,
        {"n_way": 2, "k_shot": 2, "queries": 1, "protocol": "thunlp"},
    ),
}


def records_of(task, sentences):
    if task == "entity_typing":
        return [{**record(None, parts), "labels": types} for types, parts in TYPED]
    if task == "entity_questions":
        return [{**record(None, parts), "answers": answers} for answers, parts in ASKED]
    return [record(label, parts) for label, parts in sentences]


def torch_model(name, labels, shape, folder):
    config = transformers.BertConfig(vocab_size=len(VOCABULARY), **SHAPES[shape])
    if labels is not None:
        config.num_labels = labels
    torch.manual_seed(0)
    scale = 2.5 * (768 / config.hidden_size) ** 0.5
    model = getattr(transformers, name)._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():  # attention far from uniform, no bias at zero
            parameter.add_(0.1 * torch.randn_like(parameter)) if parameter.ndim == 1 else parameter.mul_(scale)
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """(name, labels, shape) -> torch model and its folder, made once."""
    made = {}

    def get(*key):
        if key not in made:
            folder = tmp_path_factory.mktemp("models") / "host"
            made[key] = torch_model(*key, folder), folder
        return made[key]

    return get


SHAPED = [  # each task at the tiny shape; at base shape one in every run, the others with -m slow
    pytest.param(task, shape, marks=[pytest.mark.slow] if shape == "base" and task != "mention_masked_lm" else [])
    for task in TASKS
    for shape in SHAPES
]


@pytest.mark.parametrize(("task_name", "shape"), SHAPED)
def test_loss_and_mapper_gradient(task_name, shape, models, tmp_path):
    name, labels, options = TASKS[task_name]
    model, folder = models(name, labels, shape)
    draw = np.random.default_rng(1)
    vectors = {entity: draw.standard_normal(K).astype(np.float32) for entity in KNOWN}
    table = np.stack(list(vectors.values()))
    write_knowledge(tmp_path / "kb", name="kb", ids=KNOWN, vectors=table, labels=KNOWN, source="-", license="-")
    knowledge = KnowledgeBase.open(tmp_path / "kb")

    few, large = task_name == "few_shot_relations", shape == "base"
    sentences = SENTENCES[::4] if large and not few else SENTENCES  # float64 takes its time
    episodes = 1 if large else 2
    task = make_task(task_name, **options, **({"episodes": episodes} if few else {}))
    host = open_host(folder, head=task.head)
    plugin = MapTuning(hidden_size=host.loaded.config.hidden_size, knowledge_dim=K)
    plugin.mapper.bias[...] = plugin.mapper.bias[...] + 0.3
    records = list(read_records(write_records(tmp_path / "r.jsonl", records_of(task_name, sentences))))
    examples = task.examples(records, host.encoder(None), knowledge, buckets=1)
    (batch,) = Feed(examples, knowledge.gather).evaluation(examples.size)
    program, params = split_program(host.loaded.host, plugin, task)
    trained = {path: leaf for path, leaf in params.items() if path.startswith("plugin/")}

    def loss_of(trained, params, batch):
        losses, weights = task.loss(program.outputs({**params, **trained}, batch, None), batch)
        return (losses * weights).sum() / weights.sum()

    loss, gradient = fast_jit(jax.value_and_grad(loss_of))(trained, params, as_device(batch))

    reference = Reference(model, vectors, plugin, sentences, episodes)
    expected = getattr(reference, task_name.replace("mention_", ""))()
    expected.backward()
    assert abs(float(loss) - expected.item()) <= TOLERANCE * expected.item()
    pairs = {"plugin/mapper/kernel": reference.mapper.weight.grad.T, "plugin/mapper/bias": reference.mapper.bias.grad}
    assert gradient.keys() == pairs.keys()
    for path, theirs in pairs.items():
        ours, theirs = np.asarray(gradient[path]), theirs.numpy()
        largest = np.abs(theirs).max()
        assert largest > 1e-4
        assert np.abs(ours - theirs).max() <= TOLERANCE * largest
