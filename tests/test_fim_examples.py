"""pipeline/fim/fim_examples.py: sequences that are written as prefix, suffix and middle."""
import json
from collections import Counter
from pathlib import Path
from typing import Any

import infilling_runs
import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from preparation_runs import TEXTS
from training_runs import arguments, command, failure, manifest_of, summary_of
from transformers import AutoModelForCausalLM

import train
from pipeline.fim.fim_examples import Infilling
from pipeline.fim.syntax_units import CONTAINER, UnitFinder
from pipeline.model.padding import IGNORED_LABEL
from pipeline.prompts.fim_formats import find_format
from pipeline.run.errors import PipelineError
from pipeline.training.sequences import middles_of, sequences_of
from pipeline.training.training_data import MIDDLES, encode_splits

pytestmark = pytest.mark.usefixtures("one_thread")

TOKENIZER = infilling_runs.with_tokens(*infilling_runs.MARKS)
P, S, M = TOKENIZER.convert_tokens_to_ids(list(infilling_runs.MARKS[:3]))
EOS = TOKENIZER.eos_token_id


STEPS = 150  # in which a tiny model learns to copy


def infilling(order: str = "psm", rate: float = 1.0, seed: int = 0) -> Infilling:
    return Infilling(find_format(TOKENIZER, "", order), rate, seed)


def parts(ids: list[int], order: str) -> tuple[str, str, str]:
    """Return the texts of prefix, suffix and middle of a sequence; SPM has the first and last as one."""
    def text(tokens: list[int]) -> str:
        return TOKENIZER.decode(tokens)

    assert ids[-1] == EOS
    s, m = ids.index(S), ids.index(M)
    assert ids[0] == P
    if order == "psm":
        return text(ids[1:s]), text(ids[s + 1:m]), text(ids[m + 1:-1])
    assert s == 1
    return "", text(ids[2:m]), text(ids[m + 1:-1])


def rows_of(examples: Any) -> list[dict[str, list[int]]]:
    return [examples[i] for i in range(len(examples))]


@settings(max_examples=50, deadline=None)
@given(st.lists(TEXTS.filter(bool), min_size=1, max_size=4), st.integers(12, 90),
       st.sampled_from(["psm", "spm"]), st.integers(0, 1000))
def test_the_parts_of_a_sequence_are_its_text(texts: list[str], sequence_tokens: int, order: str,
                                              seed: int) -> None:
    """The model is taught to write between texts what does not stand between them; or a sequence is longer
    than asked for, or a token is a label twice."""
    plain = rows_of(sequences_of(TOKENIZER, texts, 0, sequence_tokens))
    found = rows_of(sequences_of(TOKENIZER, texts, 0, sequence_tokens, infilling(order, seed=seed)))
    assert len(found) == len(plain)
    for row, before in zip(found, plain, strict=True):
        ids, labels = row["input_ids"], row["labels"]
        assert len(ids) <= sequence_tokens
        if M not in ids:
            assert row == before
            continue
        old = [token for token in before["input_ids"] if token != EOS]
        piece, context = TOKENIZER.decode(old), TOKENIZER.decode(old[:before["labels"].count(IGNORED_LABEL)])
        context = context if len(old) > 1 and before["labels"].count(IGNORED_LABEL) > 1 else ""
        prefix, suffix, middle = parts(ids, order)
        # where it is too long, the suffix loses its end, and then the prefix its beginning
        assert (prefix + middle).lstrip("\ufffd") + suffix.rstrip("\ufffd") in piece
        assert suffix == "" or piece.endswith(suffix) or len(ids) == sequence_tokens
        assert not {P, S, M} & set(labels)
        first = next(i for i, label in enumerate(labels) if label != IGNORED_LABEL)
        if order == "psm":  # what was a label before is none again
            unlearned = [token for token in ids[1:first] if token not in {S, M}]
            # where a sequence begins or its labels do within a character, they move by some of its bytes
            text = TOKENIZER.decode(unlearned)
            assert "\ufffd" in text + context or context.endswith(text)
        else:
            assert set(ids[:first]) <= {P, S, M}
        learned = [token for token in labels if token != IGNORED_LABEL]
        assert learned == [token for token in ids[first:] if token not in {P, S, M}]
        assert labels[-1] == EOS  # the end of text behind the middle, and nowhere else
        assert ids.count(EOS) == 1


def test_the_share_is_the_one_that_was_asked_for_and_the_same_again() -> None:
    """Twice as many sequences have a middle as the user said, or others in the run that goes on."""
    texts = ["".join(p + c for p, c in tiny_models.examples(6, seed=seed)) for seed in range(40)]
    runs = [sequences_of(TOKENIZER, texts, number, 64, found) for number, found in
            ((0, infilling(rate=0.3)), (0, infilling(rate=0.3)), (100, infilling(rate=0.3)),
             (0, infilling(rate=0.3, seed=1)))]
    with_middle = [[M in row["input_ids"] for row in rows_of(run)] for run in runs]
    assert np.mean(with_middle[0]) == pytest.approx(0.3, abs=0.06)
    assert with_middle[0] == with_middle[1] != with_middle[3]
    assert np.array_equal(runs[0].ids, runs[1].ids)
    assert np.array_equal(runs[0].ids[:runs[2].ends[-1]], runs[2].ids)  # the first 100 are the first 100
    counted = infilling(rate=0.3)
    sequences_of(TOKENIZER, texts, 100, 64, counted)
    assert counted.kinds.total() == sum(with_middle[2])
    assert set(counted.kinds) == {"lines", "rest", "unit"}


def test_middles_that_are_validated_on_are_labels_alone() -> None:
    """The loss of the middles that is shown is that of the text before them."""
    texts = ["".join(p + c for p, c in tiny_models.examples(4, seed=seed)) for seed in range(9)]
    for order in ("psm", "spm"):
        found = middles_of(TOKENIZER, texts, 7, 64, infilling(order, rate=0.1))
        assert len(found) == 7
        for row in rows_of(found):
            behind = row["labels"][::-1].index(IGNORED_LABEL)
            text = TOKENIZER.decode(row["labels"][-behind:-1])
            assert row["labels"][-1] == EOS
            assert text.strip()
            assert any(text in whole for whole in texts)
            if order == "psm":
                assert row["input_ids"][-behind - 1] == M


@pytest.mark.parametrize(("language", "nodes"), [
    ("kotlin", "source_file class_body function_body block statements when_expression lambda_literal"),
    ("c", "translation_unit compound_statement field_declaration_list enumerator_list"),
    ("rust", "block declaration_list field_declaration_list enum_variant_list"),
    ("go", "source_file block statement_list"), ("c_sharp", "compilation_unit block declaration_list"),
    ("php", "program compound_statement declaration_list"), ("typescript", "statement_block class_body"),
    ("ruby", "program body_statement do_block"), ("scala", "compilation_unit template_body block")])
def test_what_holds_statements_in_other_languages(language: str, nodes: str) -> None:
    """In C++, Rust and Go a tenth of the middles is left, because their grammars name blocks otherwise."""
    assert [node for node in nodes.split() if not CONTAINER.fullmatch(node)] == []
    assert not CONTAINER.fullmatch("parameter_list")
    assert not CONTAINER.fullmatch("expression_statement")


def test_units_of_a_grammar_become_middles() -> None:
    """The statements and bodies that a grammar finds are cut at other places than it said."""
    # characters of two and four bytes: the parser counts bytes, and a sequence begins at any character
    text = "".join(f"// é \U0001f600 {i}\nfun f{i}(x: Int): Int {{\n    val a = x + {i}\n    return a\n}}\n"
                   for i in range(20))
    units = {text[begin:end] for begin, end in UnitFinder()(text, "a/B.kt")}
    assert {"val a = x + 3", "return a", "{\n    val a = x + 3\n    return a\n}",
            "\n    val a = x + 3\n    return a\n"} <= units
    assert not any(unit.startswith("//") for unit in units)
    kinds: Counter = Counter()
    for seed in range(6):
        form = infilling(seed=seed)
        for row in rows_of(sequences_of(TOKENIZER, [text], 0, 120, form, ["a/B.kt"])):
            if M in row["input_ids"]:
                middle = row["input_ids"][row["input_ids"].index(M) + 1:-1]
                kinds["found"] += TOKENIZER.decode(middle) in units
        kinds.update(form.kinds)
    assert kinds["unit"] > 0.3 * (kinds["lines"] + kinds["rest"] + kinds["unit"]) > 0
    assert kinds["found"] >= kinds["unit"]


def test_a_language_without_a_grammar_has_middles_of_lines() -> None:
    """A data set in another language cannot be trained on, or nobody hears what is left out."""
    form = infilling()
    texts = ["".join(p + c for p, c in tiny_models.examples(9, seed=seed)) for seed in range(5)]
    sequences_of(TOKENIZER, texts, 0, 80, form, ["a.zig"] * 5)
    assert set(form.kinds) == {"lines", "rest"}
    [line] = form.units.missing.values()
    assert "no grammar for .zig: the middles of such files are whole lines and rests of lines" in line


def test_a_mark_in_the_text_is_an_error() -> None:
    """A word of the source code is taken for the mark of a part."""
    by_hand = find_format(TOKENIZER, "", None, ["fun", *infilling_runs.MARKS[1:3]])
    with pytest.raises(PipelineError, match="--fim_tokens: fun occurs in the files of the data set"):
        sequences_of(TOKENIZER, ["fun main() {\n}\n"], 0, 60, Infilling(by_hand, 0.5, 0))


@pytest.mark.parametrize(("flags", "said"), [
    (("--fim_order", "spm"), "--fim_order: says how, but not how many"),
    (("--fim_tokens", "a", "b", "c"), "--fim_tokens: says how, but not how many"),
    (("--fim_rate", 0.5), "has no infilling tokens"),
    (("--fim_rate", 0.5, "--fim_tokens", "<|endoftext|>", "fun", "val"), "is the end-of-text token"),
    (("--fim_rate", 0.5, "--fim_tokens", "fun", "val", "nope"), "nope is not in the vocabulary"),
    (("--fim_rate", 0.5, "--fim_tokens", "\u0100", "val", "x"), "occurs in the files of the data set"),
])
def test_what_cannot_be_taught_is_one_line(flags: tuple, said: str, model_folder: Path, files_folder: Path,
                                           tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """A mistake is a traceback, or is noticed after hours."""
    assert said in failure(command(model_folder, files_folder, tmp_path / "adapter", *flags), capsys)


@pytest.fixture(scope="module")
def infilling_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny model with the tokens of a family, which no adapter needs to train."""
    return infilling_runs.save_model(tmp_path_factory.mktemp("infilling") / "base", *infilling_runs.MARKS)


def test_pairs_have_no_middles(infilling_model: Path, dataset_folder: Path, files_folder: Path,
                               tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """The user asks for infilling, and the pairs that are trained on hold none of it."""
    for dataset, more in ((dataset_folder, ()), (files_folder, ("--train_on", "pairs"))):
        run = command(infilling_model, dataset, tmp_path / "adapter", "--fim_rate", 0.5, *more)
        line = failure(run, capsys)
        assert "--fim_rate 0.5: middles are cut from whole files" in line


def test_a_run_says_what_it_teaches(infilling_model: Path, files_folder: Path, tmp_path: Path,
                                    capsys: pytest.CaptureFixture) -> None:
    """Nobody can see whether the sequences are as the model's family writes them, nor in which format the
    adapter was trained."""
    run = ("--fim_rate", 0.6, "--fim_order", "spm", "--sequence_tokens", 80, "--eval_steps", 2)
    train.main(command(infilling_model, files_folder, tmp_path / "adapter", *run, "--dry_run"))
    shown = capsys.readouterr().out
    assert "with a middle, spm with <|fim_prefix|> <|fim_suffix|> <|fim_middle|>" in shown
    assert shown.count("one example: ") == 2 or "<|fim_prefix|><|fim_suffix|>" in shown
    assert "<|fim_middle|>" in shown
    train.main(command(infilling_model, files_folder, tmp_path / "adapter", *run))
    manifest = manifest_of(tmp_path / "adapter")
    assert manifest["infilling"]["family"] == "Qwen2.5-Coder"
    assert manifest["infilling"]["layout"] == ["P", "S", "suffix", "M", "prefix", "middle"]
    counts = manifest["counts"]
    assert 0 < sum(counts[name] for name in counts if name.startswith("middles_")) < counts["train_examples"]
    assert {"infilling_loss_before", "infilling_loss_after"} <= set(summary_of(tmp_path / "adapter"))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["trainable_token_indices"] is None  # the model knows these tokens
    assert "loss of middles" in (tmp_path / "adapter" / "report.md").read_text()


def test_a_data_set_with_too_few_middles_is_trained_on(infilling_model: Path, tmp_path: Path) -> None:
    """Validation files without a middle end the run: the mean over nothing is no number."""
    data = tiny_models.save_dataset(tmp_path / "data", files=True)
    args = arguments(infilling_model, data, "--fim_rate", 0.5, "--sequence_tokens", 8)
    found = encode_splits(args, TOKENIZER, 0.1)
    assert MIDDLES not in found.also or len(found.also[MIDDLES])


def copying_text(number: int) -> str:
    """Return a file in which the middle, one line of three, stands again behind it: with the suffix it can be
    copied, and without it must be guessed."""
    draw = np.random.default_rng(number)
    line = "".join(draw.choice(list("abcdefgh"), size=6))
    return f"{line}\n{line}\n"


def test_a_model_learns_to_copy_a_middle_that_stands_in_the_suffix(tmp_path: Path) -> None:
    """Infilling is written into the sequences, and the model cannot learn from them to look at the suffix."""
    base, losses = infilling_runs.save_model(tmp_path / "base", *infilling_runs.MARKS, tied=False), {}
    form = infilling().format
    model = AutoModelForCausalLM.from_pretrained(base)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def rows(numbers: range, suffix: bool = True) -> Any:
        examples = []
        for number in numbers:
            line = TOKENIZER(copying_text(number).split("\n")[0])["input_ids"]
            examples.append(form.sequence([], line if suffix else [], line))
        return examples

    def loss(examples: list[list[int]]) -> Any:
        by_length: dict[int, list] = {}
        for row in examples:
            by_length.setdefault(len(row), []).append(row)
        total = 0.0
        for members in by_length.values():
            ids = torch.tensor(members)
            labels = ids.clone()
            for row, target in zip(members, labels, strict=True):
                target[:row.index(M) + 1] = IGNORED_LABEL
            total = total + model(input_ids=ids, labels=labels).loss * len(members) / len(examples)
        return total

    for step in range(STEPS):
        loss(rows(range(step * 32, step * 32 + 32))).backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        losses = {name: loss(rows(range(10**6, 10**6 + 40), name == "with")).item()
                  for name in ("with", "without")}
    assert losses["with"] < 0.3 * losses["without"], losses
