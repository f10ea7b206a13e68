"""The stages on a GPU, on a device that is not there: tests that test_gpu.py runs in a process of their
own."""
import fake_cuda  # isort: skip  before torch

import contextlib
import gc
import io
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from evaluation_runs import predictions
from evaluation_runs import run_stage as run_benchmark
from safetensors.torch import load_file
from training_runs import command, curve_of, manifest_of

import train
from pipeline.evaluation import comparison
from pipeline.evaluation import predictions as evaluation_predictions
from pipeline.tasks import codexglue
from pipeline.training import training_report
from pipeline.training.trainer import CompletionTrainer

pytestmark = pytest.mark.usefixtures("one_thread", "short_completions")
FEW_TOKENS = ("--tokens_per_batch", 120)  # two or three batches a step


@pytest.fixture
def short_completions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The completions of the report, two tokens each: most of a tiny run is otherwise spent on them."""
    monkeypatch.setattr(training_report, "SHOWN_TOKENS", 2)


@pytest.fixture(scope="session")
def model_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return a function that gives the folder of a tiny model of an architecture, in a precision."""
    made: dict[tuple[str, str], Path] = {}
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}

    def folder(architecture: str, precision: str) -> Path:
        key = architecture, precision
        if key not in made:
            made[key] = tmp_path_factory.mktemp("model")
            tiny_models.save_model(made[key], architecture, dtype=dtypes[precision])
        return made[key]
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a data set of 24 examples."""
    return tiny_models.save_dataset(tmp_path_factory.mktemp("data") / "prepared", train=24, chunk_tokens=20)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[Any, list], None]]:
    """Return a list of what is called before every training step, with the trainer and the step's rows."""
    called: list[Callable[[Any, list], None]] = []
    step = CompletionTrainer.training_step

    def training_step(self: Any, model: Any, inputs: list, number: Any = None) -> Any:
        for before in called:
            before(self, inputs)
        return step(self, model, inputs, number)

    monkeypatch.setattr(CompletionTrainer, "training_step", training_step)
    return called


def run(model: Path, data: Path, output: Path, *more: object) -> list[dict[str, Any]]:
    """Train three steps and return the curve; what stands in `more` comes last and wins."""
    train.main(command(model, data, output, "--max_steps", 3, "--eval_steps", 100, "--lr_scheduler_type",
                       "constant_with_warmup", "--learning_rate", 3e-3, *more))
    return curve_of(output)


def losses(curve: list[dict[str, Any]]) -> list[float]:
    return [row.get("validation_loss", row.get("train_loss")) for row in curve]


def test_the_device_refuses_and_notes_what_cuda_does() -> None:
    """The other tests would pass on a device that takes everything and sees nothing."""
    with fake_cuda.gpu() as device:
        ours = torch.ones(3, device="cuda", requires_grad=True)
        for wrong in (lambda: ours + torch.ones(3), lambda: ours.detach().numpy(),
                      lambda: torch.nn.functional.linear(ours, torch.ones(2, 3))):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        (2 * ours).sum().backward()
        assert ours.grad.device.type == "cuda"
        assert not device.waits
        assert ours.sum().item() == 3
        assert len(ours.detach()[ours.detach() > 0]) == 3
        torch.tensor([1.0], device="cuda")
        torch.ones(1).to("cuda", non_blocking=True)
        torch.ones(1).pin_memory().to("cuda", non_blocking=True)
        assert len(device.waits) == 4, device.waits
        with torch.autocast("cuda", dtype=torch.bfloat16):
            assert torch.pow(ours.bfloat16(), 3.0).dtype == torch.float32  # bfloat16 on a CPU
        before = device.memory
        block = torch.zeros(1000, device="cuda")
        assert device.memory - before == 4000
        del block
        assert device.memory == before


@pytest.mark.parametrize(("architecture", "quantization", "precision", "more"), [
    ("phi", "nf4", "bf16", ()), ("phi", "none", "bf16", ("--gradient_checkpointing",)),
    ("phi", "none", "fp16", ()), ("llama", "nf4", "fp16", ()), ("qwen2", "none", "bf16", ()),
    ("gpt2", "nf4", "bf16", ()),
    ("llama", "none", "bf16", ("--lora_dropout", 0.1))])
def test_a_run_learns_what_a_cpu_learns_and_waits_once_a_step(
        architecture: str, quantization: str, precision: str, more: tuple,
        model_of: Callable[[str, str], Path], data: Path, tmp_path: Path, steps: list) -> None:
    """On a GPU a run fails or learns something else, keeps activations and logits in float32, or leaves the
    device idle while the host reads what it knows."""
    model, waits, batches = model_of(architecture, precision), [], []
    settings = (*FEW_TOKENS, "--quantization", quantization, "--logging_steps", 3, *more)
    steps.append(lambda trainer, rows: waits.append(len(fake_cuda.DEVICE.waits)))
    with fake_cuda.gpu(bf16=precision == "bf16") as device:
        steps.append(lambda trainer, rows: batches.append(Counter(device.made)))
        found = losses(run(model, data, tmp_path / "gpu", *settings, "--precision", "auto"))
    assert manifest_of(tmp_path / "gpu")["precision"] == precision
    # fp16 on a GPU, whose scale a CPU has not, beside float32 on the CPU
    on_cpu = "float32" if precision == "fp16" else precision
    expected = losses(run(model, data, tmp_path / "cpu", *settings, "--precision", on_cpu))
    if not more or more[0] != "--lora_dropout":  # whose random numbers differ
        assert found == pytest.approx(expected, rel=3e-3)
        # one step's work: the second's
        kinds = {name for name, dtype in batches[2] - batches[1] if dtype == "float32"}
        assert not kinds & {"native_layer_norm", "mm", "addmm", "gelu", "tanh"}
    assert found[-1] < found[0] - 0.05
    each = 2 if precision == "fp16" else 1  # the loss, and whether the scale has overflowed
    assert waits[2] - waits[1] == each, device.waits[waits[1]:waits[2]]


def test_memory_is_measured_on_the_model_that_trains(model_of: Callable[[str, str], Path], data: Path,
                                                     tmp_path: Path, steps: list,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """--tokens_per_batch auto plans with half of what a step takes, and the first large step runs out of
    memory."""
    planned, found = [], []
    measure = CompletionTrainer.measure
    monkeypatch.setattr(CompletionTrainer, "measure", lambda self, rows: (
        planned.append((measure(self, rows), rows)), planned[-1][0])[1])
    steps.append(lambda trainer, rows: found.append(trainer._measure(planned[0][1])))
    with fake_cuda.gpu():
        run(model_of("phi", "bf16"), data, tmp_path / "gpu", "--precision", "bf16")
    run(model_of("phi", "bf16"), data, tmp_path / "cpu", "--precision", "bf16")
    (on_gpu, on_cpu), (gpu_step, cpu_step) = (p[0][0] for p in planned), (found[0][0], found[3][0])
    assert on_gpu == pytest.approx(gpu_step, rel=0.01)
    assert on_cpu == pytest.approx(cpu_step, rel=0.01)


def test_one_process_takes_one_of_two_gpus(model_of: Callable[[str, str], Path], data: Path, tmp_path: Path,
                                           capsys: pytest.CaptureFixture) -> None:
    """With two GPUs and without torchrun, a step holds twice the examples, or training fails
    (DataParallel)."""
    found = []
    for count in (1, 2):
        with fake_cuda.gpu(count=count):
            found.append(run(model_of("llama", "bf16"), data, tmp_path / str(count), "--precision", "bf16"))
        told = capsys.readouterr().err
        assert ("torchrun --nproc_per_node 2 train.py ... uses them all" in told) == (count == 2)
    assert found[0] == found[1]


def test_memory_that_ends_anywhere_in_a_step_is_given_back(model_of: Callable[[str, str], Path], data: Path,
                                                           tmp_path: Path, steps: list,
                                                           monkeypatch: pytest.MonkeyPatch,
                                                           capsys: pytest.CaptureFixture) -> None:
    """A failed step keeps its activations, so that half of the batch does not fit either; or counts twice."""
    settings = ("--precision", "bf16", "--quantization", "nf4", "--max_steps", 2)
    model, before, held, at = model_of("llama", "bf16"), [0], [], 0

    def begin(trainer: Any, rows: list) -> None:
        if trainer.state.global_step == 1:
            before[0], device.operations, device.fail_at = device.memory, 0, at

    def end() -> None:
        if 0 < device.fail_at <= device.operations:
            # one thread runs the backward pass here, and its queue keeps the failed tasks until the next
            torch.ones(1, requires_grad=True).sum().backward()
            held.append(device.memory - before[0])
            device.fail_at = 0

    steps.append(begin)
    with fake_cuda.gpu() as device:
        monkeypatch.setattr(torch.cuda, "empty_cache", end)
        expected = losses(run(model, data, tmp_path / "whole", *settings))
        gc.disable()
        try:
            for at in (30, 430):  # in the forward pass, and in the backward pass
                held.clear()
                found = losses(run(model, data, tmp_path / str(at), *settings))
                assert "out of memory: going on with --tokens_per_batch" in capsys.readouterr().err, at
                assert held == [0], (at, held)
                assert found == pytest.approx(expected, rel=2e-3), at
        finally:
            gc.enable()


def test_a_step_that_overflows_in_fp16_changes_nothing(model_of: Callable[[str, str], Path], data: Path,
                                                       tmp_path: Path, steps: list) -> None:
    """A step of infinite gradients moves the weights, or the learning rate, which then is another than
    planned."""
    seen: list[dict[str, Any]] = []

    def look(trainer: Any, rows: list) -> None:
        scaler = trainer.accelerator.scaler
        if not seen:
            scaler.load_state_dict({**scaler.state_dict(), "scale": 2.0**25})
        weights = [p.detach().values.clone() for p in trainer.model.parameters() if p.requires_grad]
        seen.append({"scale": scaler.get_scale(), "weights": torch.cat([w.flatten() for w in weights]),
                     "step": trainer.lr_scheduler.last_epoch,
                     "rate": trainer.optimizer.param_groups[0]["lr"]})  # the first one is 0

    steps.append(look)
    with fake_cuda.gpu(bf16=False):
        run(model_of("llama", "fp16"), data, tmp_path / "out", "--precision", "fp16", "--max_steps", 10,
            "--lr_scheduler_type", "linear")
    overflowed = [i for i in range(9) if seen[i + 1]["scale"] < seen[i]["scale"]]
    assert overflowed
    assert overflowed != list(range(9))
    for i in range(9):
        stayed = seen[i]["weights"].equal(seen[i + 1]["weights"])
        assert stayed == (i in overflowed or seen[i]["rate"] == 0)
        assert seen[i + 1]["step"] - seen[i]["step"] == (i not in overflowed)


def test_a_resumed_run_writes_what_an_undisturbed_one_writes(model_of: Callable[[str, str], Path], data: Path,
                                                             tmp_path: Path, steps: list) -> None:
    """A checkpoint of a GPU's run, with its loss scale, cannot be gone on with, or to another result."""
    stop: list[int] = []

    def interrupt(trainer: Any, rows: list) -> None:
        if trainer.state.global_step in stop:
            raise KeyboardInterrupt

    steps.append(interrupt)
    settings = ("--precision", "fp16", "--quantization", "nf4", "--max_steps", 4, "--eval_steps", 2)
    model = model_of("phi", "fp16")
    with fake_cuda.gpu(bf16=False):
        whole = run(model, data, tmp_path / "whole", *settings)
        stop.append(2)
        with pytest.raises(SystemExit):
            run(model, data, tmp_path / "broken", *settings)
        stop.clear()
        assert run(model, data, tmp_path / "broken", *settings, "--resume") == whole
    adapters = [load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "broken")]
    assert all(adapters[0][name].equal(adapters[1][name]) for name in adapters[0])


def test_the_benchmark_writes_what_a_cpu_writes_and_waits_once_a_token(
        model_of: Callable[[str, str], Path], data: Path, tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the models write something else; or the device is idle while the host asks it, in each layer,
    which rows have moved, and at each token whether anything is padded."""
    model, waits, passes = model_of("phi", "float32"), [], []
    tiny_models.save_adapter(tmp_path / "adapter", model)
    folders = SimpleNamespace(merged=tmp_path / "adapter", base=model, data=data,
                              codexglue=tiny_models.save_codexglue(tmp_path / "codexglue.jsonl", 6))
    monkeypatch.setattr(codexglue, "CODEXGLUE_MAX_NEW_TOKENS", 16)
    load, generate = comparison.load_model, evaluation_predictions.generate_within_memory

    def loaded(*names: Any) -> Any:
        model = load(*names)
        model.register_forward_pre_hook(lambda module, inputs, kwargs: passes.append(kwargs["use_cache"]),
                                        with_kwargs=True)
        return model

    def counted(*what: Any) -> Any:
        before = len(fake_cuda.DEVICE.waits)
        found = generate(*what)
        waits.extend(fake_cuda.DEVICE.waits[before:])
        return found

    settings = ("--context_tokens", 0, "--sample", 0)
    run_benchmark(folders, tmp_path / "cpu", *settings)
    monkeypatch.setattr(comparison, "load_model", loaded)
    monkeypatch.setattr(evaluation_predictions, "generate_within_memory", counted)
    with fake_cuda.gpu():
        run_benchmark(folders, tmp_path / "gpu", *settings)
    written = [{name.rpartition(".")[0].rpartition(".")[0]: [row.get("prediction") for row in rows]
                for name, rows in predictions(tmp_path / device).items()} for device in ("cpu", "gpu")]
    assert written[0] == written[1]
    assert len(written[0]) == 4
    assert len(waits) <= sum(passes), Counter(waits)


def test_the_measurement_on_a_gpu_runs_whole(model_of: Callable[[str, str], Path], tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch,
                                             capsys: pytest.CaptureFixture) -> None:
    """Who has a GPU for half an hour finds that perf/gpu.py does not run."""
    stage = sys.modules["train"]
    monkeypatch.syspath_prepend(str(Path(train.__file__).parent / "perf"))
    monkeypatch.delitem(sys.modules, "train")  # perf/train.py has its name
    import gpu  # beside it

    monkeypatch.setitem(sys.modules, "train", stage)
    monkeypatch.setattr(CompletionTrainer, "training_step", CompletionTrainer.training_step)
    monkeypatch.setattr(gpu, "EXAMPLE_TOKENS", 20)
    monkeypatch.setattr(gpu, "SIZE", 64)
    small = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1,
             "num_attention_heads": 2, "max_position_embeddings": 512}
    monkeypatch.setattr(gpu, "PHI", gpu.PHI | small)

    def child(code: str, *arguments: object) -> str:  # in this process, where the device is
        monkeypatch.setattr(sys, "argv", ["-c", *map(str, arguments)])
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(code, {"__name__": "__main__"})  # noqa: S102  of perf/train.py and perf/gpu.py
        return out.getvalue().strip().splitlines()[-1]

    monkeypatch.setattr(gpu, "child", child)
    with fake_cuda.gpu():
        gpu.main(["--tokenizer", str(model_of("phi", "bf16")), "--examples", "64"])
    shown = capsys.readouterr().out
    for candidate in ("LoRA, bf16", "QLoRA, NF4", "reference recipe, bf16 LoRA"):
        assert re.search(rf"^{candidate}: [\d,]+ tokens a second", shown, re.MULTILINE), shown
