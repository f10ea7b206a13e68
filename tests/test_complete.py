"""demo/complete.py: what a model writes at a place of a file."""
import copy
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import tiny_models
from evaluation_runs import written_alone
from repository_runs import source

from pipeline.model.tokenizers import encode_prompts
from pipeline.run.errors import PipelineError

ROOT = Path(__file__).resolve().parents[1]
HEAD = "fun alpha(x: Int): Int {\n"
TEXT = HEAD + "    val a0 = x + 3\n    return a0 * 2\n}\n"


@pytest.fixture(scope="module")
def complete() -> Iterator[ModuleType]:
    """The script as a module."""
    sys.path.insert(0, str(ROOT / "demo"))
    try:
        yield importlib.import_module("complete")
    finally:
        sys.path.remove(str(ROOT / "demo"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A Kotlin file with a byte order mark and Windows' line ends."""
    path = tmp_path / "Alpha.kt"
    path.write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    return path


@pytest.mark.parametrize(("where", "before"), [
    ("1", ""), ("3", f"{HEAD}    val a0 = x + 3\n"), ("3:1", f"{HEAD}    val a0 = x + 3\n"),
    ("2:14", f"{HEAD}    val a0 = "), ("2:19", f"{HEAD}    val a0 = x + 3"), ("5", TEXT)])
def test_a_place_is_what_an_editor_shows(where: str, before: str, complete: ModuleType, file: Path) -> None:
    """The model is prompted a line or a character away from where the user points."""
    found = complete.split_at(file, complete.place(where))
    assert found == (before, TEXT[len(before):])


@pytest.mark.parametrize(("where", "said"), [("6", "has 5 lines, and no line 6"), ("2:20", "up to 19")])
def test_a_place_outside_the_file_is_an_error(where: str, said: str, complete: ModuleType,
                                              file: Path) -> None:
    """The user reads a completion of another place than he named."""
    with pytest.raises(PipelineError, match=said):
        complete.split_at(file, complete.place(where))


@pytest.mark.parametrize("where", ["0", "2:0", "-1", "a", "1:2:3", "", "1:"])
def test_a_place_that_is_none_is_refused(where: str, complete: ModuleType, file: Path) -> None:
    """A typing mistake becomes a place."""
    with pytest.raises(SystemExit) as stop:
        complete.build_parser().parse_args([str(file), "--model=x", "--", where])
    assert stop.value.code == 2


@pytest.mark.parametrize("where", ["3", "2:14"])
def test_both_models_write_what_they_write_alone(where: str, complete: ModuleType, file: Path,
                                                 folders: SimpleNamespace, one_thread: None,
                                                 capsys: pytest.CaptureFixture) -> None:
    """What is shown is not what the model says there, or the base's text stands under the other's name."""
    from transformers import AutoModelForCausalLM

    complete.main([str(file), where, "--model", str(folders.merged), "--base_model", str(folders.base),
                   "--precision", "float32", "--max_new_tokens", "12"])
    shown = capsys.readouterr().out
    tokenizer = tiny_models.make_tokenizer()
    before = TEXT[:len(complete.split_at(file, complete.place(where))[0])].rstrip(" ")
    [prompt] = encode_prompts(tokenizer, [before])
    for title, folder in (("base", folders.base), ("fine-tuned", folders.merged)):
        model = AutoModelForCausalLM.from_pretrained(folder)
        text = tokenizer.decode(written_alone(model, prompt, 12, eos_token_id=tokenizer.eos_token_id),
                                skip_special_tokens=True)
        _, _, part = shown.partition(f"--- {title}: {folder}\n")
        report, _, part = part.partition("\n")
        assert f"given {len(prompt)} tokens, in " in report
        assert "tokens per second (loaded in " in report
        assert part.startswith(text.removeprefix(" " if where == "2:14" else "") + "\n")


def test_an_adapter_is_shown_upon_the_base_that_it_names(complete: ModuleType, file: Path,
                                                         folders: SimpleNamespace,
                                                         capsys: pytest.CaptureFixture) -> None:
    """What was just trained cannot be looked at before it is merged, or is shown without the adapter."""
    texts = []
    for model in (folders.adapter, folders.merged):
        complete.main([str(file), "3", "--model", str(model), "--precision", "float32", "--max_new_tokens",
                       "8"])
        texts.append(capsys.readouterr().out.split("per second")[1].partition("\n")[2])
    assert texts[0] == texts[1]


def test_a_model_with_fim_tokens_is_given_the_text_after_the_place(complete: ModuleType, file: Path,
                                                               tmp_path: Path,
                                                               capsys: pytest.CaptureFixture) -> None:
    """The suffix is not given to a model that was trained with it, or to one that was not."""
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_models.make_tokenizer().backend_tokenizer,
                                        eos_token=tiny_models.END_OF_TEXT)
    tokenizer = copy.deepcopy(tokenizer)
    marks = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    folder = tiny_models.save_model(tmp_path / "model", "llama", seed=3)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(len(tokenizer))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prefix, suffix, middle = tokenizer.convert_tokens_to_ids(marks)
    place = TEXT.index("    return")
    plain = [tokenizer(text)["input_ids"] for text in (TEXT[:place], TEXT[place:])]
    known = {0: (plain[0], f"given {len(plain[0])} tokens, in "), 5: (
        [prefix, *plain[0], suffix, *plain[1][:5], middle],
        f"given {len(plain[0]) + 8} tokens in the FIM form of StarCoder, in ")}
    for tokens, (prompt, given) in known.items():
        complete.main([str(file), "3", "--model", str(folder), "--precision", "float32",
                       "--max_new_tokens", "9", "--suffix_tokens", str(tokens)])
        shown = capsys.readouterr().out
        ends = [tokenizer.eos_token_id, *((prefix, suffix, middle) if tokens else ())]
        text = tokenizer.decode(written_alone(model, prompt, 9, eos_token_id=ends), skip_special_tokens=True)
        assert given in shown
        assert f" per second{shown.split(' per second')[1].partition(chr(10))[0]}\n{text}\n" in shown


def test_mistakes_are_one_line(run_script: Callable, error_line: Callable, file: Path, tmp_path: Path,
                               folders: SimpleNamespace) -> None:
    """A file or a model that is not there ends in a traceback."""
    latin = tmp_path / "Latin.kt"
    latin.write_bytes("// Straße\n".encode("latin-1"))
    for arguments, said in (((tmp_path / "No.kt", "1"), "No.kt"), ((latin, "1"), "is not UTF-8 (byte 7)")):
        done = run_script("demo/complete.py", *arguments, "--model", folders.merged)
        assert done.returncode == 1
        assert said in error_line(done.stderr)


@pytest.mark.parametrize(("width", "columns"), [(120, True), (80, False)])
def test_two_texts_stand_beside_each_other_where_there_is_room(width: int, columns: bool,
                                                               complete: ModuleType) -> None:
    """Long lines run from one text into the other, or half of a text is lost."""
    left = complete.Written("base: a", "x" * 100 + "\nshort", "report")
    right = complete.Written("fine-tuned: b", "one\ntwo\nthree\nfour\nfive", "report")
    shown = complete.beside(left, right, width)
    assert (" | " in shown) == columns
    assert max(map(len, shown.split("\n"))) <= max(width, 100)
    assert shown.count("x") == 100
    assert all(word in shown for word in ("short", "one", "five"))


def test_repository_context_from_the_project(complete: ModuleType, tmp_path: Path,
                                                        folders: SimpleNamespace, one_thread: None,
                                                        capsys: pytest.CaptureFixture) -> None:
    """A model is shown the file that it writes, or its copy, or nothing of the project; or a wrong folder is
    a traceback."""
    texts = {f"src/File{number}.kt": source(number, 12) for number in (1, 9, 17, 2)}
    texts |= {"src/Copy.kt": texts["src/File1.kt"] + "// a copy\n", "src/.git/Hidden.kt": source(25),
              "notes.md": source(33)}
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    place = [str(tmp_path / "src" / "File1.kt"), "6", "--model", str(folders.base), "--precision", "float32",
             "--max_new_tokens", "4", "--context_tokens", "60"]
    complete.main([*place, "--repository", str(tmp_path), "--repository_tokens", "380"])
    captured = capsys.readouterr()
    [note] = [line for line in captured.err.splitlines() if "; snippets of " in line]
    assert note.startswith("5 files of ")
    named = note.rpartition("; snippets of ")[2].split(", ")
    assert set(named) <= {"src/File9.kt", "src/File17.kt", "src/File2.kt"}
    assert named[0] in ("src/File9.kt", "src/File17.kt")  # about the same thing
    assert " snippets among them, in " in captured.out
    with pytest.raises(SystemExit):
        complete.main([*place, "--repository", str(tmp_path / "none")])
    assert "no such folder" in capsys.readouterr().err
