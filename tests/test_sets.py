"""pipeline/evaluation/sets.py: the sets, on the same examples."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny_models
from evaluation_runs import arguments, with_files

import benchmarking
from pipeline.evaluation import sets
from pipeline.evaluation.candidates import Candidate, identify_model
from pipeline.evaluation.processes import Processes
from pipeline.evaluation.sets import make_tasks
from pipeline.prompts.prompter import PLAIN_FORMS
from pipeline.tasks import codexglue
from pipeline.tasks.answers import ROLES
from pipeline.tasks.task import Task


def tasks_of(folders: SimpleNamespace, *options: object, processes: Processes | None = None) -> list[Task]:
    """Return the tasks of a run with these options."""
    args = benchmarking.build_parser().parse_args(arguments(folders, Path("results"), *options))
    more = [processes] if processes else []
    source, tokenizer = identify_model(str(folders.base), None), tiny_models.make_tokenizer()
    models = [Candidate(role, source, tokenizer, PLAIN_FORMS) for role in ROLES]
    return make_tasks(args, models, "float32", *more)


@pytest.mark.parametrize(("options", "names"), [
    ((), ["Kotlin", "Kotlin, 512 tokens of context"]), (("--context_tokens", 0), ["Kotlin"]),
    (("--context_tokens", 30), ["Kotlin, 30 tokens of context"]),
    (("--context_tokens", 30, 0, 30), ["Kotlin, 30 tokens of context", "Kotlin"])])
def test_a_set_for_each_context(options: tuple, names: list[str], folders: SimpleNamespace,
                                tmp_path: Path) -> None:
    """A context is left out, evaluated twice, or on other examples than the others."""
    tasks = tasks_of(with_files(folders, tmp_path / "data", test=12), *options, "--sample", 5)
    assert [task.name for task in tasks] == ["Python stand-in", *names]
    drawn = {tuple((e.id, e.reference, e.group) for e in task.examples) for task in tasks[1:]}
    assert len(drawn) == 1
    assert {len(task.examples) for task in tasks} == {5}
    assert {task.max_new_tokens for task in tasks[1:]} == {12}


@pytest.mark.parametrize(("options", "left_out"), [((), [512]), (("--context_tokens", 512), [512]),
                                                   (("--context_tokens", 64, 512), [64, 512])])
def test_without_whole_files_the_one_chunk_set_is_left(options: tuple, left_out: list[int],
                                                       folders: SimpleNamespace,
                                                       capsys: pytest.CaptureFixture) -> None:
    """A data set without files ends the benchmark, or leaves Kotlin out of it."""
    tasks = tasks_of(folders, *options)
    assert [task.name for task in tasks] == ["Python stand-in", "Kotlin"]
    notes = [line for line in capsys.readouterr().err.splitlines() if " tokens of context" in line]
    assert [line.rsplit(", not ")[1] for line in notes] == [f"{n} tokens of context" for n in left_out]


@pytest.mark.parametrize(("rank", "options", "reported"), [(0, (), True), (1, (), False),
                                                       (0, ("--sample", 3), False)])
def test_a_chosen_sample_is_reported_once(rank: int, options: tuple, reported: bool,
                                               folders: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture) -> None:
    """The user does not learn how many examples are evaluated; or every process draws its own."""
    class Two(Processes):
        def agree(self, make: object) -> int:
            return 2 if self.rank else make()

    monkeypatch.setattr(sets, "choose_sample", lambda sample, *rest: sample or 2)
    tasks = tasks_of(folders, *options, processes=Two(rank, 2))
    assert {len(task.examples) for task in tasks} == {3 if options else 2}
    assert ("2 examples of each set (--sample chooses)" in capsys.readouterr().err) == reported


def test_only_codexglues_own_file_is_called_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Scores on a file of somebody's own are read as CodeXGLUE's, or CodeXGLUE's as a stand-in's."""
    file = tiny_models.save_codexglue(tmp_path / "test_codexglue.jsonl")
    assert codexglue.codexglue_task(file, 0, 0).name == "Python stand-in"
    monkeypatch.setattr(codexglue, "CODEXGLUE_EXAMPLES", len(file.read_text().splitlines()))
    task = codexglue.codexglue_task(file, 0, 0)
    assert (task.name, task.source.dataset) == ("CodeXGLUE (Python)", codexglue.CODEXGLUE_DATASET)
