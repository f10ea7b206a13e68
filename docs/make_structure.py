"""Write the tree of docs/structure.md from the first sentence of each module's docstring.

Run:    python docs/make_structure.py
"""
import ast
import re
from pathlib import Path

PAGE = Path(__file__).resolve().parent / "structure.md"
ROOT = PAGE.parents[1]
SCRIPTS = ("parse_data", "preprocess_data", "train", "merge_lora", "benchmarking", "bleu")
FOLDERS = ("run", "hub", "model", "data", "prompts", "tasks", "decoding", "methods", "scoring", "retrieval",
           "fim", "sources", "preparation", "training", "merging", "evaluation")
PLACES = {"data/README.md": "the schema of every file",
          "demo/": "a small code base, a model fetcher and a Python stand-in for make demo",
          "docs/": "one page per topic; flags.md and the tree of structure.md are generated",
          "perf/": "speed, memory and quality against the alternatives",
          "tests/": "one file per module and script; faults.py injects faults"}
TREE = re.compile(r"(?<=^```\n)parse_data\.py .*?(?=^```)", re.MULTILINE | re.DOTALL)


def summary(file: Path) -> str:
    """Return the first sentence of a module's docstring in one line, without its full stop."""
    docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    text = " ".join(docstring.split("\n\n")[0].split())
    return re.split(r"\.(?= +[A-Z]|$)", text)[0]


def module_rows(folder: Path, indentation: int) -> list[tuple[int, str, str]]:
    """Return (indentation, file name, summary) of each module of a folder, by name."""
    return [(indentation, file.name, summary(file)) for file in sorted(folder.glob("*.py"))
            if file.stem != "__init__"]


def structure_tree() -> str:
    """Return the tree: one line per script, folder and module, folders in the order of their imports."""
    package = ROOT / "pipeline"
    rows = [(0, f"{script}.py", summary(ROOT / f"{script}.py")) for script in SCRIPTS]
    rows += [(0, "pipeline/", summary(package / "__init__.py"))]
    rows += module_rows(package, 2)
    for folder in FOLDERS:
        rows += [(2, f"{folder}/", summary(package / folder / "__init__.py"))]
        rows += module_rows(package / folder, 4)
    rows += [(0, place, meaning) for place, meaning in PLACES.items()]
    width = max(indentation + len(name) for indentation, name, _ in rows) + 2
    return "".join(f"{' ' * indentation + name:{width}}{meaning}\n" for indentation, name, meaning in rows)


def structure_page() -> str:
    """Return docs/structure.md with its tree as it should be."""
    return TREE.sub(lambda _: structure_tree(), PAGE.read_text(encoding="utf-8"), count=1)


if __name__ == "__main__":
    PAGE.write_text(structure_page(), encoding="utf-8")
