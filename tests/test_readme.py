"""What the README says can be typed, and what the tree promises."""
import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("parse_data", "preprocess_data", "train", "merge_lora", "benchmarking")
SCRIPTS = (*STAGES, "bleu")
TOP_LEVEL = {"parse_data.py", "preprocess_data.py", "train.py", "merge_lora.py", "benchmarking.py", "bleu.py", "pipeline_io.py"}


def documented_commands() -> list[tuple[str, str, list[str]]]:
    """Return (file, script, arguments) of every command with one of the scripts in the project's texts."""
    found = []
    for file in (ROOT / "README.md", ROOT / "data" / "README.md", *(ROOT / f"{name}.py" for name in SCRIPTS)):
        text = file.read_text(encoding="utf-8").replace("\\\n", " ")
        pattern = r"^(?:Run:|Quick:)?[ $]*(?:\.venv/bin/)?(?:python3?|torchrun[^\n]*?) +(\w+)\.py\b([^\n#`|]*)"
        for script, arguments in re.findall(pattern, text, re.MULTILINE):
            if script in SCRIPTS:
                found.append((file.name, script, shlex.split(arguments)))
    return found


@pytest.mark.parametrize(("file", "script", "arguments"), documented_commands())
def test_every_documented_command_parses(file: str, script: str, arguments: list[str]) -> None:
    """A user copies a command from the README and gets a usage error."""
    importlib.import_module(script).build_parser().parse_args(arguments)


def test_commands_are_found() -> None:
    """The test above would pass on an empty list."""
    commands = documented_commands()
    assert {script for _, script, _ in commands} == set(SCRIPTS)
    assert {script for file, script, _ in commands if file == "README.md"} >= set(STAGES)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_a_wrong_flag_need_no_heavy_import(script: str) -> None:
    """--help fails or takes seconds, or a mistyped flag is noticed only after torch has been loaded."""
    code = (f"import sys, {script}\n"
            "for flag, status in (('--help', 0), ('--no_such_flag', 2)):\n"
            f"    try: {script}.main([flag])\n"
            "    except SystemExit as e: assert e.code == status, (flag, e.code)\n"
            "    else: raise AssertionError(flag)\n"
            "heavy = {'torch', 'transformers', 'peft', 'datasets', 'bitsandbytes', 'git', 'pandas', 'matplotlib'} & set(sys.modules)\n"
            "assert not heavy, heavy")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert "%%" not in done.stdout, done.stdout  # a percent sign is written twice in a help text, and shown once


@pytest.mark.parametrize("script", STAGES)
def test_no_stage_imports_another(script: str) -> None:
    """A stage cannot be used or read by itself."""
    tree = ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8"))
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not imported & (set(STAGES) - {script})


def test_the_top_level_is_flat() -> None:
    """The tree is not the one that the README shows."""
    assert {path.name for path in ROOT.glob("*.py")} == TOP_LEVEL


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_public_function_is_documented(script: str) -> None:
    """A reader finds a function that does not say what it returns."""
    tree = ast.parse((ROOT / f"{script}.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_") and node.name != "main":
            assert ast.get_docstring(node), f"{script}.{node.name}"


def test_defaults_agree_with_the_interface() -> None:
    """A script of somebody else stops working because a flag lost its name or its default."""
    expected = {
        "parse_data": {"repo_url": ["https://github.com/JetBrains/kotlin.git"], "clone_path": Path("/tmp/kotlin_repo"),  # noqa: S108
                       "extensions": [".kt"], "output_file": Path("data/kotlin_code_raw.jsonl")},
        "preprocess_data": {"input_file": Path("data/kotlin_code_raw.jsonl"), "output_dir": Path("data/kotlin_prepared_dataset"),
                            "model_name_or_path": "microsoft/phi-1_5", "chunk_tokens": 100, "stride_tokens": 35, "test_fraction": 0.01,
                            "validation_fraction": 0.01, "seed": 0, "limit": 0},
        "train": {"model_name_or_path": "microsoft/phi-1_5", "dataset": "data/kotlin_prepared_dataset", "max_train_samples": 100_000,
                  "quantization": "nf4", "hf_repository": None, "resume": False, "lora_r": 64, "lora_alpha": 0, "lora_dropout": 0.0,
                  "learning_rate": 1e-3, "num_train_epochs": 1.0, "max_steps": 0, "seed": 0, "output_dir": Path("models/adapter")},
        "merge_lora": {"output_dir": Path("models/merged"), "dtype": "base"},
        "benchmarking": {"base_model": "microsoft/phi-1_5", "dataset": "data/kotlin_prepared_dataset", "sample": 500,
                         "codexglue_file": Path("data/test_codexglue.jsonl"), "batch_size": 128, "output_dir": Path("results")},
    }
    for script, defaults in expected.items():
        required = ["--hf_repository", "x"] if script in ("merge_lora", "benchmarking") else []
        args = vars(importlib.import_module(script).build_parser().parse_args(required))
        assert {name: args[name] for name in defaults} == defaults, script
