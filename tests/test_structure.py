"""The structure of the code: who may import whom, how long things are, and what has to be said."""
import ast
import graphlib
import itertools
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

MODULE_LINES = 350
FUNCTION_LINES = 73
MODULES_OF_A_STAGE = 13  # at most, in the folder of a stage
LOOSE_MODULES = 7  # of pipeline/ itself, at most
LONGER_FUNCTIONS = {"build_parser"}  # a list of flags, read one at a time: in pieces it is no easier
STAGES = ("parse_data", "preprocess_data", "train", "merge_lora", "benchmarking")
SCRIPTS = (*STAGES, "bleu")
SCRIPTS_OF_FOLDERS = {("scoring", "bleu")}  # (folder, script that it may import): bleu.py is a library too
# The folders of pipeline/, from the ground up: each imports those before it alone.  A stage's folder imports
# no other stage's, and no feature (methods, retrieval, fim) imports a stage's.
GROUND = ("run", "hub", "model", "data", "prompts", "tasks", "decoding", "methods", "scoring", "retrieval",
          "fim")
STAGE_FOLDERS = ("sources", "preparation", "training", "merging", "evaluation")
HEAVY = {"torch", "transformers", "peft", "datasets", "bitsandbytes", "git", "pandas", "matplotlib"}

ROOT = Path(__file__).resolve().parents[1]
FILES = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
         for file in sorted([*ROOT.glob("*.py"), *(ROOT / "pipeline").rglob("*.py")])}  # by module
FOLDERS = {module.split(".")[1] for module in FILES if module.count(".") > 1}


class Import(NamedTuple):
    """A module of this project that is imported, and the line where."""
    module: str
    line: int


def tree(module: str) -> ast.Module:
    """Return the syntax tree of a module."""
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


def functions(module: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield the functions and methods of a module, nested ones too."""
    for node in ast.walk(module):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def own_imports(module: str) -> Iterator[Import]:
    """Yield what a module imports of this project, within functions too."""
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}, line {node.lineno}: a relative import hides where it leads"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in inner]
        else:
            continue
        yield from (Import(name, node.lineno) for name in dict.fromkeys(names) if name in FILES)


def folder(module: str) -> str | None:
    """Return the folder of a module of pipeline/; None: it is loose."""
    _, name, *rest = module.split(".")
    return name if rest or name in FOLDERS else None


def pipeline_modules() -> list[str]:
    """Return the modules of pipeline/."""
    return [module for module in FILES if module.startswith("pipeline.")]


# ------------------------------------------------------------------------------------------------------------
# Imports
# ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("script", STAGES)
def test_no_stage_imports_another(script: str) -> None:
    """A stage cannot be used or read by itself."""
    assert not {found.module for found in own_imports(script)} & (set(STAGES) - {script})


def test_no_module_imports_a_script() -> None:
    """A module cannot be used or read without a stage."""
    for module in pipeline_modules():
        for found in own_imports(module):
            if found.module in SCRIPTS:
                assert (folder(module), found.module) in SCRIPTS_OF_FOLDERS, f"{module}, line {found.line}"


def allowed_folders(module: str) -> set[str | None]:
    """Return the folders whose modules a module of pipeline/ may import."""
    own = folder(module)
    if own is None:  # python -m pipeline
        return {None, *FOLDERS}
    return {own, *(GROUND if own in STAGE_FOLDERS else GROUND[:GROUND.index(own)])}


def test_a_folder_stands_on_those_below_it_alone() -> None:
    """To understand how data is prepared, one has to read how models are trained."""
    for module in pipeline_modules():
        for found in own_imports(module):
            if found.module.startswith("pipeline."):
                assert folder(found.module) in allowed_folders(module), \
                    f"{module}, line {found.line}, imports {found.module}"


def test_imports_make_no_circle() -> None:
    """Two modules can only be understood, and loaded, together."""
    graph = {module: {found.module for found in own_imports(module)} - {module} for module in FILES}
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the circle


def test_the_folders_are_found() -> None:
    """The tests above would pass on an empty list, or on a rule that allows everything."""
    assert {*GROUND, *STAGE_FOLDERS} == FOLDERS
    tree_of_docs = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    assert re.findall(r"^  (\w+)/ ", tree_of_docs, re.MULTILINE) == [*GROUND, *STAGE_FOLDERS]
    assert folder("pipeline.__main__") is None
    assert folder("pipeline.training.loss") == folder("pipeline.training") == "training"
    assert "training" not in allowed_folders("pipeline.fim.spans") | allowed_folders("pipeline.merging.card")
    assert Import("bleu", 1)[0] in {found.module for found in own_imports("pipeline.scoring.scores")}
    assert "pipeline.training.checkpoints" in {found.module for found in own_imports("train")}


def test_the_folders_are_small() -> None:
    """A folder grows until a name in it says nothing."""
    sizes = Counter(folder(module) for module in pipeline_modules()
                    if FILES[module].name != "__init__.py")
    assert sizes[None] <= LOOSE_MODULES
    assert {name: sizes[name] for name in STAGE_FOLDERS if sizes[name] > MODULES_OF_A_STAGE} == {}


def test_no_two_modules_have_one_name() -> None:
    """A message, an import or a colleague names a module, and two are meant."""
    names = Counter(file.stem for file in FILES.values() if file.name != "__init__.py")
    assert [name for name, number in names.items() if number > 1] == []


def inner_import_blocks(text: str) -> Iterator[list[ast.stmt]]:
    """Yield the imports within functions: those that follow one another together."""
    bodies = [getattr(node, part, []) for function in functions(ast.parse(text))
              for node in ast.walk(function) for part in ("body", "orelse", "finalbody")]
    for body in bodies:
        for imports, block in itertools.groupby(body if isinstance(body, list) else [],
                                                lambda node: isinstance(node, ast.Import | ast.ImportFrom)):
            if imports:
                yield list(block)


def imports_without_a_reason(text: str) -> set[str]:
    """Return the imports within functions that have no comment on their lines, nor above their block.  The
    block at the head of a stage's function has one: what is heavy waits."""
    lines = text.splitlines()
    found = set()
    for block in inner_import_blocks(text):
        if not lines[block[0].lineno - 2].lstrip().startswith("# "):
            found |= {ast.unparse(node) for node in block
                      if not re.search("  # (?!noqa)", " ".join(lines[node.lineno - 1:node.end_lineno]))}
    return found


def test_an_import_within_a_function_says_why() -> None:
    """What a module stands on is found only by reading all of it, and nobody knows whether it may move up."""
    found = {module: imports_without_a_reason(file.read_text(encoding="utf-8"))
             for module, file in FILES.items()}
    assert {module: imports for module, imports in found.items() if imports} == {}


@pytest.mark.parametrize(("body", "found"), [
    ("import a  # it is slow", set()), ("# slow\n    import a\n\n    from b import c\n    import d", set()),
    ("import a", {"import a"}), ("import a  # noqa: F401", {"import a"}),
    ("x = 1  # not this\n    import a", {"import a"}),
    ("# slow\n    x = 1\n    import a\n    from b import (\n        c)", {"import a", "from b import c"}),
    ("try:\n        import a\n    finally:\n        import b  # slow", {"import a"})])
def test_a_missing_reason_is_seen(body: str, found: set[str]) -> None:
    """The test above sees nothing."""
    assert imports_without_a_reason(f"import os\ndef f():\n    {body}\n") == found


@pytest.mark.parametrize("script", [*SCRIPTS, "pipeline.__main__"])
def test_help_and_a_wrong_flag_need_no_heavy_import(script: str) -> None:
    """--help fails or takes seconds, or a mistyped flag is noticed only after torch has been loaded."""
    code = (f"import sys, {script}\n"
            "for flag, status in (('--help', 0), ('--no_such_flag', 2)):\n"
            f"    try: {script}.main([flag])\n"
            "    except SystemExit as e: assert e.code == status, (flag, e.code)\n"
            "    else: raise AssertionError(flag)\n"
            f"heavy = {HEAVY} & set(sys.modules)\n"
            "assert not heavy, heavy")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert "%%" not in done.stdout, done.stdout  # a percent sign is written twice in a help text, shown once


@pytest.mark.parametrize("script", sorted(file.name for file in (ROOT / "demo").glob("*.py")
                                          if "__main__" in file.read_text(encoding="utf-8")))
def test_help_of_the_demo_writes_nothing(script: str, tmp_path: Path) -> None:
    """--help is taken for the name of the output."""
    done = subprocess.run([sys.executable, ROOT / "demo" / script, "--help"], cwd=tmp_path,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------------
# Sizes and docstrings
# ------------------------------------------------------------------------------------------------------------

def test_no_module_is_too_long() -> None:
    """A module grows until nobody reads it."""
    lengths = {module: file.read_text(encoding="utf-8").count("\n") for module, file in FILES.items()}
    assert {module: length for module, length in lengths.items()
            if length > MODULE_LINES} == {}


def test_no_function_is_too_long() -> None:
    """A function grows until nobody can say what it does."""
    lengths = {f"{module}.{node.name}": node.end_lineno - node.lineno + 1
               for module in FILES for node in functions(tree(module)) if node.name not in LONGER_FUNCTIONS}
    assert {name: length for name, length in lengths.items() if length > FUNCTION_LINES} == {}


def test_every_module_says_what_it_is_for() -> None:
    """A reader opens file after file to find the one that he looks for."""
    assert [module for module, file in FILES.items()
            if file.name != "__init__.py" and not ast.get_docstring(tree(module))] == []


@pytest.mark.parametrize("place", [*SCRIPTS, "pipeline"])
def test_every_public_function_is_documented(place: str) -> None:
    """A reader finds a function that does not say what it returns."""
    public = {f"{module}.{node.name}": node for module in FILES if module.split(".")[0] == place
              for node in tree(module).body if isinstance(node, ast.FunctionDef | ast.ClassDef)
              and not node.name.startswith("_") and node.name != "main"}
    assert [name for name, node in public.items() if not ast.get_docstring(node)] == []


def test_the_top_level_is_flat() -> None:
    """Scripts are added that nobody documents."""
    assert {path.stem for path in ROOT.glob("*.py")} == set(SCRIPTS)
