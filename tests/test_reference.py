"""The public API: docs/reference.md lists it, every name is there, and docstrings tell shapes and errors."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import kinject
from kinject.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
ARRAY = re.compile(r"jax\.Array|np\.ndarray|np\.memmap|\bBatch\b")
SHAPE = re.compile(r"\[[^\]]*\]|scalar")


def load_hooks():
    specification = importlib.util.spec_from_file_location("docs_hooks", ROOT / "docs" / "hooks.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


HOOKS = load_hooks()
PUBLIC = {f"{package}.{name}": made for package in HOOKS.PACKAGES for name, made in HOOKS.public(package)}


def test_the_page_is_what_the_packages_say():
    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    assert page == HOOKS.reference(), "write it anew: python docs/hooks.py"
    listed = set()
    for section in re.split(r"(?m)^## ", page)[1:]:
        package = section.splitlines()[0]
        module = importlib.import_module(package)
        names = re.findall(r"(?m)^\| `(\w+)` \| .+ \|$", section)
        assert sorted(names) == sorted(one for one in module.__all__ if not one.startswith("_")), package
        listed |= {f"{package}.{name}" for name in names}
        assert all(getattr(module, name) is not None for name in names)
    assert listed == set(PUBLIC)


def test_options_of_configs_are_those_of_their_classes():
    page = (ROOT / "docs" / "options.md").read_text(encoding="utf-8")
    assert page == HOOKS.options(), "write it anew: python docs/hooks.py"
    assert "| `no_decay` |" in page and "| `ridge_penalty` |" in page


KEPT = {  # what docs/reference.md listed before the rooms were moved; whoever imports a name from there still may
    "kinject": """
        Host InputError Plugin Prediction
    """,
    "kinject.serving": """
        Contribution Explanation export_map Host Label Linked Plugin Prediction Refused
    """,
    "kinject.linking": """
        AliasLinker Linker Span
    """,
    "kinject.knowledge": """
        build_knowledge Entity filtered_ranking GraphConfig GraphResult KnowledgeBase train_graph write_knowledge
    """,
    "kinject.knowledge.importers": """
        import_biggraph import_knowledge import_npy import_openke import_pykeen import_table import_umls
        import_wikipedia2vec import_word2vec
    """,
    "kinject.plugins": """
        HostIdentity KAdapter KAdapterCombination Kformer load_plugin load_released_affine make_plugin MapTuning
        Plugin plugin_class plugin_names PlugLM register RetrievedText save_plugin StoredPlugin Table
    """,
    "kinject.tasks": """
        make_task register_task Task
    """,
    "kinject.data": """
        Encoded EntityEncoder Examples Feed HostTokenizer load_tokenizer make_examples Mention parse_record Passage
        read_records Record
    """,
    "kinject.datasets": """
        Dataset read_dataset RecordBuilder
    """,
    "kinject.models": """
        build_head Encoder EncoderConfig EncoderOutput Host JoinedHead load_host LoadedHost MaskedLMHead PlainHead
        PooledHead save_host
    """,
    "kinject.memory": """
        build_memory MemoryIndex Passage PassageMemory sharded_top_k top_k
    """,
    "kinject.training": """
        Checkpoints evaluate Fit FitConfig FitResult initial_state label_parameters make_optimizer make_train_step
        MeshConfig OptimizerConfig Placement plugged_in Program split_program TrainState
    """,
    "kinject.stages": """
        attach Experiment knowledge_identity open_host PassageEncoder ReadyHost Stage StageConfig sync
    """,
}


@pytest.mark.parametrize("package", KEPT)
def test_no_public_name_is_lost(package):
    module = importlib.import_module(package)
    assert not [name for name in KEPT[package].split() if not hasattr(module, name)]


@pytest.mark.parametrize(
    "module, names",
    [
        ("kinject.results", "FinishedRun FinishedSweep"),
        ("kinject.plots", "MARKS SHADES"),
        ("kinject.data.records", "read_records"),
        ("kinject.knowledge.build", "Given build_knowledge"),
        ("kinject.memory.store", "Passage PassageMemory"),
        ("kinject.plugins.base", "Plugin Table register"),
        ("kinject.plugins.store", "load_plugin"),
        ("kinject.stages.base", "open_host"),
        ("kinject.stages.experiment", "Experiment"),
        ("kinject.stages.passages", "PassageEncoder attach sync"),
    ],
)
def test_what_pages_and_notebooks_of_an_earlier_version_import_is_there(module, names):
    found = importlib.import_module(module)
    assert not [name for name in names.split() if not hasattr(found, name)]


def test_every_package_is_listed_or_private():
    packages = {one.name for one in pkgutil.walk_packages(kinject.__path__, "kinject.") if one.ispkg}
    private = {"kinject.cli", "kinject.data.sources", "kinject.demo", "kinject.models.families"}
    private |= {"kinject.models.kernels", "kinject.reports"}
    assert packages - private == set(HOOKS.PACKAGES) - {"kinject"}


def functions_of(name, made):
    """(name, function, docstring) of what is public in a name: a function, or a class's methods and properties."""
    if inspect.isfunction(made):
        yield name, made, inspect.getdoc(made)
        return
    for each, member in vars(made).items():
        if each.startswith("_"):
            continue
        function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
        if inspect.isfunction(function) and function.__module__ == made.__module__:
            yield f"{name}.{each}", function, documented(made, each)


def documented(cls, name):
    """The docstring of a member, or of what it overrides."""
    for one in cls.__mro__:
        member = vars(one).get(name)
        doc = member is not None and (getattr(member, "__doc__", None) or getattr(member, "__func__", member).__doc__)
        if doc:
            return doc
    return None


def arguments_told(doc):
    """The names in the section Args of a docstring, None where it has none."""
    section = re.search(r"(?ms)^\s*Args:\n(.*?)(?=^\s*(?:Returns|Raises|Yields):|\Z)", doc)
    if section is None:
        return None
    indent = re.match(r" *", section[1])[0]
    return {one for group in re.findall(rf"(?m)^{indent}(\w+(?:, \w+)*):", section[1]) for one in group.split(", ")}


def faults_of(function, doc, around):
    """What a docstring leaves out; `around` is that of the class, which may tell it for its methods."""
    if not doc:
        yield "has no docstring"
        return
    annotations = " ".join(str(one) for one in inspect.get_annotations(function).values())
    if ARRAY.search(annotations) and not SHAPE.search(doc + around):
        yield "takes or yields arrays and names no shape"
    raises = re.search(r"^\s*raise InputError", inspect.getsource(function), re.MULTILINE)
    if raises and not re.search(r"Raises|InputError", doc + around):
        yield "raises InputError and does not say when"
    told, taken = arguments_told(doc), set(inspect.signature(function).parameters) - {"self", "cls"}
    if told is not None and told != taken:
        yield f"documents the arguments {sorted(told)} and takes {sorted(taken)}"


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_tells_arguments_shapes_and_errors(name):
    made = PUBLIC[name]
    around = inspect.getdoc(made)
    assert around
    found = functions_of(name, made)
    faults = [f"{where} {fault}" for where, function, doc in found for fault in faults_of(function, doc, around)]
    assert not faults, "\n".join(faults)


def test_the_check_finds_what_is_left_out():
    def bare(one: "np.ndarray"):  # noqa: F821
        """Takes one.

        Args:
          other: what it does not take.
        """
        raise InputError("one", "it is bad")

    faults = list(faults_of(bare, bare.__doc__, ""))
    assert len(faults) == 3, faults
    assert list(faults_of(bare, "", "")) == ["has no docstring"]


def test_every_function_and_method_has_a_docstring():
    """Of the whole library, public or not; ruff's D102 does not know that an override inherits its docstring."""
    bare = []
    for found in pkgutil.walk_packages(kinject.__path__, "kinject."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for name, made in vars(module).items():
            own = getattr(made, "__module__", None) == module.__name__ and not name.startswith("_")
            if own and (inspect.isclass(made) or inspect.isfunction(made)):
                bare += [where for where, _, doc in functions_of(f"{module.__name__}.{name}", made) if not doc]
    assert not bare, bare
