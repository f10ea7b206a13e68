"""merge_lora.py on a hub repository, over HTTP: what is there afterwards, and what loads."""
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """The stand-in for the hub."""
    with Hub() as running:
        yield running


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, a tiny Llama, and `adapter`, an adapter of it that changes its predictions."""
    import torch
    from peft import LoraConfig, get_peft_model
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers import models as tokenizer_models
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: i for i, letter in enumerate([*alphabet, "<eos>"])}
    backend = Tokenizer(tokenizer_models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>")  # noqa: S106
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(vocab_size=257, hidden_size=32, intermediate_size=48,
                                        num_hidden_layers=2, num_attention_heads=2, eos_token_id=256,
                                        bos_token_id=256))
    base.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.peft_config["default"].base_model_name_or_path = "tester/base"
    adapted.save_pretrained(folder / "adapter")
    tokenizer.save_pretrained(folder / "adapter")
    return folder


def test_merge_into_the_same_repository(hub: Hub, models: Path, tmp_path: Path) -> None:
    """After a merge the repository loads wrongly, the adapter is lost, or a second run merges it again."""
    environment = hub.environment(tmp_path / "cache")

    def python(*arguments: object) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *map(str, arguments)], env=environment, capture_output=True,
                              text=True)

    hub.add("tester/base", models / "base")
    hub.add("tester/adapter", models / "adapter")
    hub.add("tester/adapter", {"training_args.bin": b"x", "last-checkpoint/optimizer.pt": b"x"})
    repository = hub.repository("tester/adapter")
    commits = len(repository.commits)

    merged = python(ROOT / "merge_lora.py", "--hf_repository", "tester/adapter", "--output_dir",
                    tmp_path / "merged")
    assert merged.returncode == 0, merged.stderr
    main, kept = (set(repository.commits[repository.branches[branch]].files)
                  for branch in ("main", "adapter"))
    assert len(repository.commits) == commits + 1
    assert not [name for name in main if name.startswith("adapter_") or "checkpoint" in name
                or name == "training_args.bin"]
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "manifest.json"} <= main
    assert {"adapter_model.safetensors", "adapter_config.json"} <= kept
    card = repository.head.files["README.md"].content.decode()
    assert "base_model: tester/base" in card
    assert 'from_pretrained("tester/adapter")' in card
    assert str(tmp_path) not in card

    check = ("import torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM as M\n"
             "merged = M.from_pretrained('tester/adapter'); assert not hasattr(merged, 'peft_config')\n"
             "adapted = PeftModel.from_pretrained(M.from_pretrained('tester/base'), 'tester/adapter', "
             "revision='adapter')\nids = torch.arange(40)[None]\n"
             "a, b, c = (m.eval()(ids).logits for m in (merged, adapted, M.from_pretrained('tester/base')))\n"
             "assert (a - b).abs().max() < 1e-4, (a - b).abs().max()\nassert (a - c).abs().max() > 0.1\n")
    loaded = python("-c", check)
    assert loaded.returncode == 0, loaded.stderr

    again = python(ROOT / "merge_lora.py", "--hf_repository", "tester/adapter", "--output_dir",
                   tmp_path / "again")
    assert again.returncode == 0
    assert "merged already" in again.stdout
    assert not (tmp_path / "again").exists()
    assert len(repository.commits) == commits + 1


def test_a_failed_push_leaves_everything_as_it_was(hub: Hub, models: Path, tmp_path: Path) -> None:
    """A push that the hub refuses loses the merge, or leaves half of it on the hub, or looks like a
    success."""
    environment = hub.environment(tmp_path / "cache")
    before = hub.add("tester/second", models / "adapter")
    repository = hub.repository("tester/second")
    hub.fail("POST", r"tester/second/commit/", status=400)
    command = [sys.executable, str(ROOT / "merge_lora.py"), "--hf_repository", "tester/second",
               "--base_model", str(models / "base"), "--output_dir", str(tmp_path / "merged")]
    failed = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert failed.returncode == 1
    assert repository.head is before
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    *_, repeat, last = failed.stderr.splitlines()
    assert "publishing failed: model tester/second" in last
    subprocess.run([sys.executable, *shlex.split(repeat)[1:]], cwd=ROOT, env=environment, check=True,
                   capture_output=True)
    assert "model.safetensors" in repository.head.files
    assert "adapter_model.safetensors" not in repository.head.files
    assert repository.branches["adapter"] == before.id
