"""Write docs/flags.md, the list of every flag, from the scripts' own parsers.

Run:    python docs/make_flags.py
"""
import argparse
import importlib
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
SCRIPTS = ("parse_data", "preprocess_data", "train", "merge_lora", "benchmarking", "bleu", "demo.complete")


def flag_rows(parser: argparse.ArgumentParser) -> list[str]:
    """Return a row of a Markdown table for each flag of a parser: its name with its values, and its help."""
    formatter, rows = parser._get_formatter(), []  # as --help fills in the defaults
    for action in parser._actions:
        if action.dest == "help":
            continue
        name = max(action.option_strings, key=len, default=action.metavar or action.dest)
        values = f" {' | '.join(map(str, action.choices))}" if action.choices else ""
        text = formatter._expand_help(action) if action.help else ""
        cells = (f"`{name}{values}`", "required" if action.required else "", text)
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return rows


def flags_page() -> str:
    """Return the page."""
    parts = ["# Every flag\n",
             "Written by `python docs/make_flags.py` from the scripts; `--help` says the same.\n"]
    for script in SCRIPTS:
        parser = importlib.import_module(script).build_parser()
        rows = ["| flag | | meaning |", "|---|---|---|", *flag_rows(parser)]
        parts += [f"## `{script.replace('.', '/')}.py`\n", "\n".join(rows) + "\n"]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.path.insert(0, str(DOCS.parent))
    (DOCS / "flags.md").write_text(flags_page(), encoding="utf-8")
