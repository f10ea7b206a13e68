"""The merged model's tokenizer: the one that the adapter was trained with, in the base's own files where it
is the base's, else byte for byte as it lay there."""
import re
import shutil
import sys
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from pipeline.model.tokenizers import encode_prompts, load_tokenizer, model_errors, tokenizer_identity
from pipeline.run.errors import PipelineError

VOCABULARY = re.compile(r"tokenizer\.json|vocab\.(json|txt)|[^/]+\.(model|tiktoken)")
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
OTHER_FILES = re.compile(r"added_tokens\.json|merges\.txt|chat_template\.(json|jinja)|"
                         r"additional_chat_templates/[^/]+\.jinja")


def tokenizer_files(folder: Path) -> dict[str, Path]:
    """Return {name: file} of the tokenizer in a folder; none where it holds no vocabulary."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.glob("*"))
             + sorted(folder.glob("additional_chat_templates/*")) if path.is_file()}
    if not any(VOCABULARY.fullmatch(name) for name in found):
        return {}
    return {name: path for name, path in found.items()
            if name in SETTINGS or VOCABULARY.fullmatch(name) or OTHER_FILES.fullmatch(name)}


def write_tokenizer(adapter: Path, base: Path, folder: Path) -> None:
    """Copy the adapter's tokenizer into `folder`, which holds the model's config.json; the base's where the
    adapter has none, or one that does the same.

    A library that saves a tokenizer writes its files anew; converters and servers know the base's own.

    An adapter with a vocabulary alone (tokenizer.model) has the base's settings of it.  Raises PipelineError
    where it cannot be loaded, or has tokens without an embedding.
    """
    own, of_base = tokenizer_files(adapter), tokenizer_files(base)
    files, source = (of_base, base) if not own or same_tokenizer(adapter, base) else (own, adapter)
    if files is own and not set(SETTINGS) & set(own):
        files = own | {name: file for name, file in of_base.items() if name in SETTINGS}
    if not files:
        raise PipelineError(f"neither the adapter {adapter} nor its base {base} holds a tokenizer; put the "
                            "files of the one that it was trained with beside the adapter")
    for name, file in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
    try:
        tokenizer = load_tokenizer(str(folder))
    except PipelineError as error:
        raise PipelineError(str(error).replace(str(folder), str(source))) from error
    check_added_tokens(tokenizer, source, base)


def same_tokenizer(adapter: Path, base: Path) -> bool:
    """Return whether two folders hold tokenizers that do the same, chat template and special tokens too."""
    if not (tokenizer_files(base) and set(SETTINGS) & set(tokenizer_files(adapter))):
        return False
    try:
        pair = [load_tokenizer(str(folder)) for folder in (adapter, base)]
    except PipelineError:  # told where the one that is copied is loaded
        return False
    first, second = ([tokenizer_identity(tokenizer), tokenizer.chat_template, tokenizer.special_tokens_map]
                     for tokenizer in pair)
    return first == second


def check_added_tokens(tokenizer: Any, source: Path, base: Path) -> None:
    """Raise PipelineError where the tokenizer has tokens for which the base has no embedding and that the
    base's own tokenizer, whose last ones may be for images, does not have either."""
    with model_errors(str(base)):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    rows = config.get_text_config().vocab_size
    beyond = {token for token, number in tokenizer.get_vocab().items() if number >= rows}
    if beyond and tokenizer_files(base):
        beyond -= set(load_tokenizer(str(base)).get_vocab())
    if beyond:
        raise PipelineError(f"{source}: its tokenizer has {len(beyond)} tokens more than the base model "
                            f"{base}, such as {min(beyond)!r}; they were added, and their embeddings are not "
                            "in the adapter: train it without them, or on a base that has them; nothing was "
                            "written")


def proof_prompts(base: Path, merged: Path, prompts: list[str]) -> list[list[int]]:
    """Return prompts in the tokens of the base's own tokenizer, and say where the merged model's differ."""
    found = encode_prompts(load_tokenizer(str(merged)), prompts)
    if not tokenizer_files(base):
        return found
    expected = encode_prompts(load_tokenizer(str(base)), prompts)
    if found != expected:
        print("WARNING: the adapter's tokenizer, which the merged model has, gives other tokens than that of "
              f"the base model {base}; make sure that the adapter was trained with it", file=sys.stderr)
    return expected
