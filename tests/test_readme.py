"""What the README and docs/ say: commands can be typed, links lead somewhere, and the tree, the flags and the
defaults are those that are there."""
import importlib
import importlib.util
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("parse_data", "preprocess_data", "train", "merge_lora", "benchmarking")
COMMANDS = {script: script for script in (*STAGES, "bleu")} | {
    "pipeline": "pipeline.__main__", "complete": "demo.complete"}  # modules
PLACES = {"data/README.md", "demo/", "docs/", "perf/", "tests/"}  # beside the code, in the tree
PAGES = (ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md")),
         *sorted((ROOT / "perf").rglob("*.md")))

PROSE_WIDTH = 110
UNWRAPPED = {"infilling.md", "methods.md", "repository.md", "flags.md"}  # of docs/; flags.md is generated


def documented_commands() -> list[tuple[str, str, list[str]]]:
    """Return (file, script, arguments) of every command of this project in its texts; script `pipeline` for
    `python -m pipeline`."""
    found = []
    sources = [ROOT.joinpath(*module.split(".")).with_suffix(".py") for module in COMMANDS.values()]
    for file in (*PAGES, *sources):
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        pattern = (r"^(?:Run:|Quick:)?[ $]*(?:\.venv/bin/)?(?:python3?|torchrun[^\n]*?) +"
                   r"(?:(?:demo/)?(\w+)\.py|-m (pipeline))\b([^\n#`|]*)")
        for script, package, arguments in re.findall(pattern, text, re.MULTILINE):
            if (script or package) in COMMANDS:
                found.append((file.name, script or package, shlex.split(arguments)))
    return found


@pytest.mark.parametrize(("file", "script", "arguments"), documented_commands())
def test_every_documented_command_parses(file: str, script: str, arguments: list[str]) -> None:
    """A user copies a command from the README and gets a usage error."""
    importlib.import_module(COMMANDS[script]).build_parser().parse_args(arguments)


def test_commands_are_found() -> None:
    """The test above would pass on an empty list."""
    commands = documented_commands()
    assert {script for _, script, _ in commands} == set(COMMANDS)
    assert {script for file, script, _ in commands if file == "README.md"} >= set(STAGES)


def shown_tree() -> dict[str, str]:
    """Return {path: what it is} of the tree of files in docs/structure.md; a folder ends in a slash."""
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    block = re.search(r"^```\n(parse_data\.py .*?)^```", page, re.MULTILINE | re.DOTALL)
    shown, folders = {}, {0: ""}  # by indentation
    for line in block[1].splitlines():
        indentation, name, meaning = re.fullmatch(r"( *)(\S+) +(.+)", line).groups()
        path = folders[len(indentation)] + name
        shown[path] = meaning
        if name.endswith("/"):
            folders[len(indentation) + 2] = path
    return shown


def test_the_tree_is_the_one_that_is_there() -> None:
    """A reader looks for a module that is elsewhere, or misses the one that he looks for."""
    code = [*ROOT.glob("*.py"), *(ROOT / "pipeline").rglob("*.py")]
    files = {file.relative_to(ROOT).as_posix() for file in code if file.name != "__init__.py"}
    folders = {f"{file.parent.relative_to(ROOT).as_posix()}/" for file in code if file.parent != ROOT}
    assert set(shown_tree()) == files | folders | PLACES
    assert all((ROOT / place).exists() for place in PLACES)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    """A reader follows a link, or looks for a picture, that is not there."""
    links = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    files = [link for link in links if "://" not in link]
    assert page.name != "README.md" or page.parent != ROOT or files
    assert [link for link in files if not (page.parent / link).exists()] == []


def test_every_page_is_linked() -> None:
    """A page of docs/ is there, and no reader of the README finds it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = [page.name for page in PAGES if page.parent == ROOT / "docs"]
    assert [name for name in pages if f"(docs/{name})" not in readme] == []


def wide_prose(text: str) -> list[str]:
    """Return the lines of prose of a Markdown text that are too wide; tables, code blocks and lines with just
    a link or a word are not prose."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return [line for line in prose.splitlines() if len(line) > PROSE_WIDTH and not line.startswith("|")
            and not re.fullmatch(r" *(?:[-*] +)?(?:!?\[[^\]]*\]\(\S+\)|\S+)", line)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_lines_of_prose_are_short(page: Path) -> None:
    """A change of one word shows as a change of a line that no screen shows whole."""
    if page.name not in UNWRAPPED:
        assert wide_prose(page.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(("text", "number"), [
    ("word " * 22, 0), ("word " * 23, 1), ("| " + "word " * 30, 0), ("```\n" + "word " * 30 + "\n```", 0),
    ("```\ncode\n```\n" + "word " * 30, 1), ("[a link](" + "x" * 120 + ")", 0),
    ("- word [a link](" + "x" * 120 + ")", 1)])
def test_a_wide_line_of_prose_is_seen(text: str, number: int) -> None:
    """The test above sees nothing, or sees tables and code."""
    assert len(wide_prose(text)) == number


def docs_script(name: str) -> ModuleType:
    """Return a script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_the_list_of_flags_is_whole() -> None:
    """A reader of docs/flags.md misses a flag, or believes a default of another time."""
    page = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")
    assert page == docs_script("make_flags").flags_page(), "run: python docs/make_flags.py"


def test_the_tree_is_generated() -> None:
    """A module's line in docs/structure.md describes what the module used to be."""
    make_structure = docs_script("make_structure")
    page = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    assert make_structure.structure_tree() in page, "run: python docs/make_structure.py"


def test_defaults_agree_with_the_interface() -> None:
    """A script of somebody else stops working because a flag lost its name or its default."""
    expected = {
        "parse_data": {"repo_url": ["https://github.com/JetBrains/kotlin.git"],
                       "clone_path": Path("/tmp/kotlin_repo"),  # noqa: S108
                       "extensions": [".kt"], "output_file": Path("data/kotlin_code_raw.jsonl")},
        "preprocess_data": {"input_file": Path("data/kotlin_code_raw.jsonl"),
                            "output_dir": Path("data/kotlin_prepared_dataset"),
                            "model_name_or_path": "microsoft/phi-1_5", "chunk_tokens": 100,
                            "stride_tokens": 35, "test_fraction": 0.01, "validation_fraction": 0.01,
                            "keep_trivial": False, "seed": 0, "limit": 0},
        "train": {"model_name_or_path": "microsoft/phi-1_5", "dataset": "data/kotlin_prepared_dataset",
                  "train_on": None, "sequence_tokens": 512, "end_of_text": "file_ends",
                  "max_train_samples": 100_000, "quantization": "nf4", "hf_repository": None, "resume": False,
                  "lora_r": 64, "lora_alpha": 0, "lora_dropout": 0.0, "learning_rate": 1e-3,
                  "num_train_epochs": 1.0, "max_steps": 0, "seed": 0, "output_dir": Path("models/adapter")},
        "merge_lora": {"output_dir": Path("models/merged"), "dtype": "base"},
        "benchmarking": {"base_model": "microsoft/phi-1_5", "dataset": "data/kotlin_prepared_dataset",
                         "sample": None, "context_tokens": [0, 512], "tokenizer": None,
                         "codexglue_file": Path("data/test_codexglue.jsonl"),
                         "batch_size": 128, "output_dir": Path("results")},
    }
    for script, defaults in expected.items():
        required = ["--hf_repository", "x"] if script in ("merge_lora", "benchmarking") else []
        args = vars(importlib.import_module(script).build_parser().parse_args(required))
        assert {name: args[name] for name in defaults} == defaults, script
