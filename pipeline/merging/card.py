"""The merged model's card."""
from pathlib import Path
from typing import Any

from pipeline.prompts.repository_form import MANIFEST_ENTRY, USUAL_COMMENT, RepositoryPrompt
from pipeline.run.errors import looks_like_path


def model_card(name: str, base_name: str, merged_into: str, adapter_config: dict[str, Any],
               manifest: dict[str, Any] | None) -> str:
    """Return the merged model's README.md: base, data, training settings, how to load it.

    Local paths are left out: they say nothing to a reader of the hub, and something about the machine.
    """
    training = (manifest or {}).get("arguments", {})
    base = base_name if not looks_like_path(base_name) and not Path(base_name).exists() else None
    dataset = training.get("dataset")
    if dataset and (dataset.count("/") != 1 or Path(dataset).exists() or dataset.startswith("data/")):
        dataset = None
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation",
             "tags:", "- code", "- lora"]
    lines += [f"base_model: {base}", "base_model_relation: finetune"] if base else []
    lines += ["datasets:", f"- {dataset}"] if dataset else []
    lines += ["---", f"# {name}", "",
              f"{base or 'A language model'}, fine-tuned to complete code by LoRA (rank "
              f"{adapter_config['r']}, alpha {adapter_config['lora_alpha']}); the adapter is merged into the "
              f"base model's weights{'' if merged_into == 'checkpoint' else ' as NF4 quantizes them'}.", "",
              "```python", "from transformers import AutoModelForCausalLM, AutoTokenizer", "",
              f'tokenizer = AutoTokenizer.from_pretrained("{name}")',
              f'model = AutoModelForCausalLM.from_pretrained("{name}")',
              'prompt = tokenizer("fun main() {", return_tensors="pt")',
              "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=100)[0]))", "```", ""]
    lines += prompt_section(manifest)
    shown = ("max_train_samples", "num_train_epochs", "examples_per_step", "learning_rate",
             "lr_scheduler_type", "quantization", "seed")
    if training:
        lines += ["## Training", "", "| | |", "|---|---:|",
                  *(f"| {key} | {training[key]} |" for key in shown if key in training)]
    summary = (manifest or {}).get("summary", {})
    lines += [f"| {key.replace('_', ' ')} (nats a token) | {summary[key]:.4f} |"
              for key in ("validation_loss_before", "validation_loss_after") if key in summary]
    return "\n".join(lines) + "\n"


def prompt_section(manifest: dict[str, Any] | None) -> list[str]:
    """Return how a model that was taught with pieces of a repository is to be asked; nothing of another."""
    entry = (manifest or {}).get(MANIFEST_ENTRY)
    if not entry:
        return []
    form = RepositoryPrompt(*(str(entry.get(name, "")) for name in RepositoryPrompt._fields))
    head = f"{form.repository}OWNER/NAME{form.name_end}" if form.repository else ""
    begin, end = (form.file, "") if form.file else USUAL_COMMENT
    tokens = manifest.get("arguments", {}).get("repository_tokens", "some")
    return ["## Prompt", "", f"Taught with at most {tokens} tokens of pieces of the repository's other files "
            f"before a file ({form.describe()}), the best last; the manifest's entry `{MANIFEST_ENTRY}` says "
            "so too:", "", "```", f"{head}{begin}PATH/OF/A/PIECE.kt{end}", "the piece",
            f"{begin}PATH/OF/THE/FILE.kt{end}", "the file up to the cursor", "```", ""]
