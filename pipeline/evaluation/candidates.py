"""The models that are compared: what they are, and how they are loaded."""
import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM

from pipeline.fim.fim_set import choose_formats
from pipeline.hub.client import hub_errors, hub_files
from pipeline.model.device import choose_device, torch_dtype
from pipeline.model.mergeable import read_adapter_json
from pipeline.model.model_source import ModelSource
from pipeline.model.tokenizers import check_local_model, load_tokenizer, model_errors
from pipeline.model.weight_files import weight_files
from pipeline.prompts.prompter import Prompter, PromptForms
from pipeline.prompts.repository_form import COMMENTED
from pipeline.retrieval.snippet_set import choose_form
from pipeline.run.errors import PipelineError, looks_like_path
from pipeline.run.hashes import combined_hash, sha256_file
from pipeline.run.manifests import MODEL_FILES, check_manifest
from pipeline.run.outputs import MANIFEST
from pipeline.tasks.answers import ROLES
from pipeline.tasks.task import Task


class Candidate(NamedTuple):
    """One of the two models as it is evaluated."""
    role: str  # of ROLES
    source: ModelSource
    tokenizer: Any
    forms: PromptForms

    def prompter(self, task: Task) -> Prompter:
        """Return what composes the model's prompts on a set."""
        return Prompter(self.tokenizer, task.tokens, self.forms)


def identify_model(name: str, revision: str | None) -> ModelSource:
    """Return what `name` is, without loading it: a model or an adapter, local or on the hub."""
    check_local_model(name)
    folder = Path(name)
    if folder.is_dir():
        is_adapter = (folder / "adapter_config.json").is_file()
        weights = sorted(folder.glob("*.safetensors")) if is_adapter else weight_files(folder)
        if not weights:
            raise PipelineError(f"model {name}: holds no safetensors file; pickled weights are not loaded")
        if is_adapter and any(file.name.startswith("model") for file in weights):
            raise PipelineError(f"model {name}: holds an adapter and merged weights side by side, "
                                "and a load would apply the adapter twice; move one of them away")
        known = check_manifest(folder, MODEL_FILES) or {"outputs": {}}
        weights_hash = combined_hash({file.name: known["outputs"].get(file.name) or sha256_file(file)
                                      for file in weights})
        settings = {file.name: sha256_file(file) for file in sorted(folder.glob("*.json"))
                    if file.name != MANIFEST}
        identity = combined_hash({"weights": weights_hash, **settings})
        return ModelSource(name, identity, name if is_adapter else None, weights_hash=weights_hash)
    with hub_errors("model", name):
        commit, files = hub_files(name, revision)
        if not any(file.endswith(".safetensors") for file in files):
            raise PipelineError(f"model {name}: holds no safetensors file; pickled weights are not loaded")
        if "adapter_config.json" not in files:
            return ModelSource(name, commit, commit=commit)
        if "adapter_model.safetensors" not in files:
            raise PipelineError(f"model {name}: its adapter is not in safetensors; "
                                "pickled weights are not loaded")
        if any(file.startswith("model") and file.endswith(".safetensors") for file in files):
            raise PipelineError(f"model {name}: holds an adapter and merged weights side by side; "
                                "remove one of them")
        adapter = snapshot_download(name, revision=commit,
                                    allow_patterns=["adapter_config.json", "adapter_model.safetensors"])
    return ModelSource(name, commit, adapter, commit)


def check_adapter_base(source: ModelSource, base_model: str) -> None:
    """Raise PipelineError where an adapter names another hub model than `base_model`.

    A local path may be the same model: then only a note says so.
    """
    if not source.adapter:
        return
    named = read_adapter_json(Path(source.adapter)).get("base_model_name_or_path")
    if named == base_model:
        return
    if named and not any(looks_like_path(name) or Path(name).is_dir() for name in (named, base_model)):
        raise PipelineError(f"model {source.name}: its adapter was made for {named}, "
                            f"and --base_model is {base_model}; name that one")
    print(f"note: the adapter names {named} as its base; it is applied to --base_model {base_model}",
          file=sys.stderr)


def load_model(source: ModelSource, base: ModelSource, precision: str) -> Any:
    """Return the model in evaluation mode; an adapter is merged into `base`, whatever base it names."""
    whole = base if source.adapter else source
    with model_errors(whole.name):
        model = AutoModelForCausalLM.from_pretrained(whole.name, revision=whole.commit,
                                                     dtype=torch_dtype(precision), trust_remote_code=False,
                                                     use_safetensors=True)
    if source.adapter:
        from peft import PeftModel  # 5 s, which only an adapter needs

        try:
            model = PeftModel.from_pretrained(model, source.adapter).merge_and_unload()
        except (ValueError, RuntimeError) as error:
            raise PipelineError(f"model {source.name}: its adapter does not fit {base.name}: "
                                f"{str(error).splitlines()[0]}") from error
    return model.to(choose_device()).eval()


def load_tokenizers(sources: list[ModelSource], override: str | None) -> list[Any]:
    """Return the tokenizer of each model: its own; an adapter has the base's.

    `override` names that of the fine-tuned model, which is the second.
    """
    base = load_tokenizer(sources[0].name, sources[0].commit)
    if override:
        return [base, load_tokenizer(override)]
    tuned = sources[1]
    return [base, base if tuned.adapter else load_tokenizer(tuned.name, tuned.commit)]


def warn_of_another_base(base: ModelSource, manifest: dict[str, Any] | None) -> None:
    """Say where the base model is not the one, by weights or commit, of the fine-tuned model's manifest."""
    manifest = manifest or {}
    trained_on = {**(manifest.get("adapter_manifest") or {}), **manifest}.get("base_model_hash")
    if trained_on and trained_on not in (base.weights_hash, base.commit):
        found = base.weights_hash or base.commit or "unknown"
        print(f"WARNING: --base_model {base.name} is not the model that was fine-tuned "
              f"({found[:12]}, not {trained_on[:12]}): the difference is not that of the training alone",
              file=sys.stderr)


def find_models(args: argparse.Namespace) -> list[ModelSource]:
    """Return --base_model and --hf_repository; PipelineError if they cannot be compared."""
    base, tuned = identify_model(args.base_model, None), identify_model(args.hf_repository, args.revision)
    if base.adapter:
        raise PipelineError(f"--base_model {args.base_model}: is an adapter; "
                            "name the model that it was trained on")
    check_adapter_base(tuned, args.base_model)
    return [base, tuned]


def choose_candidates(args: argparse.Namespace, sources: list[ModelSource],
                      manifest: dict[str, Any] | None) -> list[Candidate]:
    """Return both models as they are evaluated, the base first; `manifest`: the fine-tuned model's."""
    tokenizers = load_tokenizers(sources, args.tokenizer)
    formats = choose_formats(sources, tokenizers, manifest) if args.suffix_tokens else None
    repository = choose_form(manifest, args.hf_repository, tokenizers) if args.repository_tokens \
        else COMMENTED
    return [Candidate(*model, PromptForms(fim, repository))
            for *model, fim in zip(ROLES, sources, tokenizers, formats or (None, None), strict=True)]
