"""The stages against a hub over real HTTP: what is published, what is refused, what is lost when something
fails."""
import argparse
import base64
import contextlib
import json
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import tiny_models
from git_server import GitHandler
from hub_server import READ_TOKEN, WRITE_TOKEN, Hub, account, written_files

import train
from pipeline.hub import commits
from pipeline.hub.client import check_hub_write, push_folder
from pipeline.run.errors import PipelineError
from pipeline.run.hashes import hash_files
from pipeline.run.manifests import write_manifest

ROOT = Path(__file__).resolve().parents[1]
TINY_DATA = ("--num_proc", 1, "--validation_fraction", 0.2, "--test_fraction", 0.2, "--chunk_tokens", 30,
             "--stride_tokens", 15)
TINY_TRAINING = ("--quantization", "none", "--precision", "float32", "--max_steps", 3, "--learning_rate",
                 0.05, "--max_train_samples", 24, "--max_validation_samples", 8, "--examples_per_step", 8)
TINY_BENCHMARK = ("--codexglue_file", "python.jsonl", "--sample", 4, "--max_new_tokens", 8, "--precision",
                  "float32")


@pytest.fixture(scope="module")
def base_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model."""
    return tiny_models.save_model(tmp_path_factory.mktemp("base") / "model", "llama")


@pytest.fixture(scope="module")
def raw_file(tmp_path_factory: pytest.TempPathFactory, kotlin_file: Callable[[int], str]) -> Path:
    """The raw file that parse_data.py makes of a small git repository, with its manifest."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "code").mkdir()
    for number in range(30):
        (folder / "code" / f"File{number}.kt").write_text(kotlin_file(number))
    git = ["git", "-C", str(folder / "code"), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "code"]):
        subprocess.run([*git, *command], check=True, env=os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null",
                                                                       "GIT_CONFIG_NOSYSTEM": "1"})
    stage(folder, "parse_data.py", "--repo_url", "code", "--clone_path", "clone", "--output_file",
          "raw.jsonl")
    return folder / "raw.jsonl"


def head_of(repository: Path) -> str:
    return subprocess.run(["git", "-C", str(repository), "rev-parse", "HEAD"], check=True,
                          capture_output=True, text=True).stdout.strip()


@pytest.fixture
def hub(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Hub]:
    """The stand-in; with the parameter `xet`, large files go through Xet."""
    store = tmp_path / "store" if getattr(request, "param", "lfs") == "xet" else None
    if store:
        store.mkdir()
    with Hub(store) as running:
        yield running


def run_python(folder: Path, *arguments: object, environment: dict[str, str] | None = None,
               fails: bool = False) -> subprocess.CompletedProcess:
    """Run Python in `folder`; it has to succeed, or with `fails` to end with code 1."""
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == (1 if fails else 0), done.stderr
    return done


def stage(folder: Path, script: str, *arguments: object, environment: dict[str, str] | None = None,
          fails: bool = False) -> subprocess.CompletedProcess:
    """Run a script in `folder` as a user does."""
    return run_python(folder, ROOT / script, *arguments, environment=environment, fails=fails)


def repeated_push(said: str, environment: dict[str, str]) -> list[str]:
    """Run the command that a failed push has printed, in the project's folder, and return its arguments."""
    [line] = [line for line in said.splitlines() if line.startswith("  python ")]
    program, *arguments = shlex.split(line)
    assert program == "python"
    run_python(ROOT, *arguments, environment=environment)
    return arguments


RUN_MANY = """
import contextlib, importlib, io, json, logging, os, sys
if os.environ.get("LOG_EVERYTHING"):
    logging.basicConfig(level=logging.DEBUG)
for script, *arguments in json.loads(sys.argv[1]):
    sys.argv[0] = script + ".py"
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        try:
            code = importlib.import_module(script).main(arguments) or 0
        except SystemExit as stop:
            code = stop.code
    print("\\0" + json.dumps([code, said.getvalue()]))
"""


def run_many(folder: Path, stages: list[tuple], environment: dict[str, str]) -> list[tuple[int, str]]:
    """Run stages, each (script, arguments...), in one process that imports the libraries once; return (exit
    code, stderr) of each."""
    return results_of(start_many(folder, stages, environment))


def start_many(folder: Path, stages: list[tuple], environment: dict[str, str]) -> subprocess.CompletedProcess:
    plain = json.dumps([list(map(str, arguments)) for arguments in stages])
    return in_python(RUN_MANY, environment | {"PYTHONPATH": str(ROOT)}, plain, cwd=folder)


def results_of(done: subprocess.CompletedProcess) -> list[tuple[int, str]]:
    return [tuple(json.loads(line[1:])) for line in done.stdout.splitlines() if line.startswith("\0")]


def in_python(code: str, environment: dict[str, str], *arguments: str,
              cwd: Path | None = None) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, "-c", code, *arguments], env=environment, cwd=cwd,
                          capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done


# ----------------------------------------------------------------------------------------------------------
# The whole pipeline
# ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("hub", ["lfs", "xet"], indirect=True)
def test_the_pipeline_through_the_hub(hub: Hub, base_model: Path, raw_file: Path, tmp_path: Path) -> None:
    """A stage cannot read what the stage before it published; a table depends on the cache; offline, a stage
    asks the hub."""
    hub.add("tester/base", base_model)
    tiny_models.save_codexglue(tmp_path / "python.jsonl")
    environment = hub.environment(tmp_path / "cache")
    base, data = ("--model_name_or_path", "tester/base"), ("--dataset", "tester/data")
    benchmark = ("benchmarking", "--hf_repository", "tester/model", "--base_model", "tester/base", *data,
                 *TINY_BENCHMARK, "--output_dir")
    commands = [("preprocess_data", "--input_file", raw_file, *base, *TINY_DATA, "--hf_repository",
                 "tester/data"),
                ("train", *data, *base, *TINY_TRAINING, "--hf_repository", "tester/model"),
                ("merge_lora", "--hf_repository", "tester/model"), (*benchmark, "merged")]
    if hub.xet_store:  # the libraries imported once
        assert [code for code, _ in run_many(tmp_path, commands, environment)] == [0, 0, 0, 0]
    else:  # as a user does it
        for script, *arguments in [*commands, (*benchmark, "adapter", "--revision", "adapter")]:
            stage(tmp_path, f"{script}.py", *arguments, environment=environment)
    stage(tmp_path, "benchmarking.py", *benchmark[1:], "again",
          environment=hub.environment(tmp_path / "second_cache"))

    published = hub.repository("tester/data", "dataset")
    assert [commit.title for commit in published.commits.values()] == ["initial commit", "Add the data set"]
    assert {"README.md", "manifest.json", "data/train.parquet",
            "files/train.parquet"} <= set(published.head.files)
    assert "raw/raw.jsonl" not in published.head.files
    repository = hub.repository("tester/model")
    assert published.private
    assert repository.private
    _, adapter, merged = repository.commits.values()  # a push is one commit
    assert (repository.branches, merged.parent) == ({"main": merged.id, "adapter": adapter.id}, adapter.id)
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json",
            "manifest.json"} <= set(adapter.files)
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md",
            "manifest.json"} <= set(merged.files)
    assert not [name for name in merged.files if name.startswith("adapter_")]
    arguments = json.loads(adapter.files["manifest.json"].content)["arguments"]
    assert arguments["train_on"] == "files"  # which the published data set holds
    assert all(bool(file.xet_hash) == bool(hub.xet_store) for file in merged.files.values() if file.sha256)
    assert not [request for request in hub.requests if request.storage and "authorization" in request.headers]
    tables = {path.parent.name: path.read_text() for path in tmp_path.glob("*/table.md")}
    assert len(set(tables.values())) == 1, tables
    # the whole files have come through the hub too
    assert "| Kotlin, 512 tokens of context, n=4 | next line exact, % |" in tables["merged"]
    assert "Kotlin: " in tables["merged"].split("of the references end there")[1]
    if hub.xet_store:
        return

    in_python("import torch\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM as M\n"
              "merged, base = M.from_pretrained('tester/model'), M.from_pretrained('tester/base')\n"
              "assert not hasattr(merged, 'peft_config')\n"
              "ids = torch.arange(40)[None]\nplain = base(ids).logits\n"
              "adapted = PeftModel.from_pretrained(base, 'tester/model', revision='adapter')\n"
              "assert (merged(ids).logits - adapted(ids).logits).abs().max() < 1e-3\n"
              "assert (merged(ids).logits - plain).abs().max() > 0.1\n", environment)

    seen = len(hub.requests)
    local = [("preprocess_data", "--input_file", raw_file, *base, *TINY_DATA, "--output_dir", "offline/data"),
             ("train", *data, *base, *TINY_TRAINING, "--output_dir", "offline/adapter"),
             ("merge_lora", "--hf_repository", "offline/adapter", "--output_dir", "offline/merged"),
             (*benchmark, "offline/results")]
    results = run_many(tmp_path, local, environment | {"HF_HUB_OFFLINE": "1"})
    assert [code for code, _ in results] == [0, 0, 0, 0], results
    assert len(hub.requests) == seen
    assert (tmp_path / "offline" / "results" / "table.md").read_text() == tables["merged"]
    shown = run_python(tmp_path, "-m", "pipeline", "lineage", "offline/results/table.md",
                       environment=os.environ | {"PYTHONPATH": str(ROOT)}).stdout.splitlines()
    assert [line.split("  ")[:2] for line in shown[:5]] == [
        ["offline/results", "benchmarking.py"], ["tester/model", "merge_lora.py"],
        ["tester/model", "train.py"], ["tester/data", "preprocess_data.py"], [str(raw_file), "parse_data.py"]]
    origin = f"commit {head_of(raw_file.parent / 'code')}"[:46]
    assert [line.rsplit("  ")[-1][:46] for line in shown[5:]] == [origin]
    for code, said in run_many(tmp_path, local, hub.environment(tmp_path / "empty", HF_HUB_OFFLINE="1")):
        assert code == 1
        assert "Traceback" not in said
        assert "the hub cannot be reached and the cache does not hold it" in said.splitlines()[-1]
    assert len(hub.requests) == seen


# ----------------------------------------------------------------------------------------------------------
# Rights, before the work
# ----------------------------------------------------------------------------------------------------------

STAGES = [("preprocess_data.py", ("--input_file", "raw.jsonl")), ("train.py", ()), ("merge_lora.py", ())]


@pytest.mark.parametrize(("script", "arguments"), STAGES)
@pytest.mark.parametrize(("token", "offline", "message"), [
    (READ_TOKEN, "0", "the token may only read"),
    (WRITE_TOKEN, "1", "HF_HUB_OFFLINE is set, and publishing needs the hub")])
def test_a_stage_that_may_not_publish_does_not_begin(script: str, arguments: tuple, token: str, offline: str,
                                                     message: str, hub: Hub, raw_file: Path, tmp_path: Path,
                                                     error_line: Callable[[str], str]) -> None:
    """Hours of training, and then the token may only read."""
    (tmp_path / "raw.jsonl").symlink_to(raw_file)
    hub.add("tester/model", ADAPTER)
    done = stage(tmp_path, script, *arguments, "--hf_repository", "tester/model", fails=True,
                 environment=hub.environment(tmp_path / "cache", token, HF_HUB_OFFLINE=offline))
    assert message in error_line(done.stderr)
    assert {request.path for request in hub.requests} <= {"/api/whoami-v2"}
    assert not (tmp_path / "data").exists()
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["model", "a/b/c", "tester/mo del", "tester/..", "https://h/tester/model",
                                  "tester/model.git", ""])
def test_an_invalid_name(name: str, api_here: Hub) -> None:
    """A name that the hub cannot have fails only at the upload."""
    with pytest.raises(PipelineError, match="not a hub name of the form OWNER/NAME"):
        check_hub_write(name)


@pytest.mark.parametrize(("token", "message"),
                         [("", "no token; log in first"), ("hf_unknown", "the hub refuses the token")])
def test_no_token_or_a_wrong_one(token: str, message: str, api_here: Hub,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing or expired login is noticed only at the upload."""
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PipelineError, match=message):
        check_hub_write("tester/model")


def scoped(name: str, *permissions: str) -> dict:
    """Return a fine-grained token with permissions for one entity."""
    return account("fineGrained",
                   fineGrained={"global": [],
                                "scoped": [{"entity": {"name": name}, "permissions": list(permissions)}]})


@pytest.mark.parametrize(("whoami", "repository", "message"), [
    (account("write"), "tester/model", None),
    (account("write"), "Tester/model", None),
    (account("write"), "else/model", "neither your account .tester. nor one of its organizations"),
    (account("write", ({"name": "team", "roleInOrg": "write"},)), "team/model", None),
    (account("write", ({"name": "team"},)), "team/model", None),
    (account("write", ({"name": "team", "roleInOrg": "read"},)), "team/model",
     "role in that organization is to read only"),
    (scoped("tester", "repo.content.read", "repo.write"), "tester/model", None),
    (scoped("tester/model", "repo.write"), "tester/model", None),
    (scoped("tester/other", "repo.write"), "tester/model", "no repo.write for tester"),
    (scoped("tester", "repo.content.read"), "tester/model", "no repo.write for tester"),
    (scoped("team", "repo.write"), "team/model", None),
    (account("fineGrained"), "tester/model", None),  # a hub that does not say
    ({"name": "tester"}, "tester/model", None),
])
def test_rights_of_a_token(whoami: dict, repository: str, message: str | None,
                                          api_here: Hub) -> None:
    """A token without the right to write there is noticed only at the upload, or a good one is refused."""
    api_here.tokens[WRITE_TOKEN] = whoami
    with contextlib.nullcontext() if message is None else pytest.raises(PipelineError, match=message):
        check_hub_write(repository)


def test_a_name_of_the_other_kind_is_free(api_here: Hub, folder: Path) -> None:
    """A data set cannot have the name of a model."""
    api_here.add("tester/both", ADAPTER)
    check_hub_write("tester/both", "dataset")
    push_folder(folder, "tester/both", "Add", repo_type="dataset")
    assert set(contents(api_here, "tester/both")) == set(ADAPTER)
    assert "config.json" in api_here.repository("tester/both", "dataset").head.files


# ----------------------------------------------------------------------------------------------------------
# Pushing
# ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def api_here(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """The hub, for the clients of this process, which have read their settings long ago; pauses are short."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(commits, "HUB_PAUSES", (0, 0, 0, 0))
    for name, value in (("NO_PROXY", "127.0.0.1"), ("no_proxy", "127.0.0.1"), ("HF_TOKEN", WRITE_TOKEN)):
        monkeypatch.setenv(name, value)
    return hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What a stage might have written: a large file, a small one, one in a folder."""
    folder = tmp_path / "out"
    (folder / "sub").mkdir(parents=True)
    for name, text in (("model.safetensors", "weights"), ("config.json", "{}"), ("sub/empty.txt", "")):
        (folder / name).write_text(text)
    return folder


STALE = re.compile(r"adapter_.*")
ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"lora", "notes.txt": b"mine"}


def contents(hub: Hub, name: str = "tester/model", branch: str = "main",
             kind: str = "model") -> dict[str, bytes]:
    """Return {name: content} of a repository."""
    repository = hub.repository(name, kind)
    files = repository.commits[repository.branches[branch]].files
    return {path: file.content if file.sha256 is None else hub.large[file.sha256]
            for path, file in files.items()}


MERGED = {"model.safetensors": b"weights", "config.json": b"{}", "sub/empty.txt": b"", "notes.txt": b"mine"}


def test_a_push_is_one_commit(api_here: Hub, folder: Path) -> None:
    """A reader finds half of a push; the adapter is lost; or the same push once more makes another commit."""
    before = api_here.add("tester/model", ADAPTER)
    commit = push_folder(folder, "tester/model", "Merge", delete=STALE, keep_branch="adapter")
    repository = api_here.repository("tester/model")
    assert (repository.head.id, repository.head.parent, repository.head.title) == (commit, before.id, "Merge")
    assert contents(api_here) == MERGED
    assert repository.branches["adapter"] == before.id
    assert push_folder(folder, "tester/model", "Merge", delete=STALE, keep_branch="adapter") == commit
    assert repository.branches == {"main": commit, "adapter": before.id}
    assert len(api_here.sent("POST", "/commit/")) == 1


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_a_push_of_many_files_is_one_commit(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """Between two commits of a push the old files are gone and the new ones not all there.  This is what the
    client's upload_folder does; once it does not, it can take the place of our commit."""
    for number in range(301):
        (folder / f"part{number}.json").write_text(str(number))
    environment = hub.environment(tmp_path / "cache")
    theirs, ours = (hub.add(name, ADAPTER) for name in ("tester/theirs", "tester/ours"))
    in_python("import sys\nfrom huggingface_hub import HfApi\n"
              "HfApi().upload_folder(repo_id='tester/theirs', folder_path=sys.argv[1], "
              "parent_commit=sys.argv[2], delete_patterns='adapter_*')", environment, str(folder), theirs.id)
    run_python(ROOT, "-m", "pipeline", "push", folder, "tester/ours", "--delete", "adapter_.*",
               environment=environment)
    theirs_head, ours_head = (hub.repository(name).head for name in ("tester/theirs", "tester/ours"))
    assert set(theirs_head.files) == set(ours_head.files)
    assert ours_head.parent == ours.id
    assert theirs_head.parent != theirs.id


def test_a_second_adapter_is_kept_too(api_here: Hub, folder: Path) -> None:
    """After a second training the branch holds the first adapter, and the second is lost."""
    api_here.add("tester/model", ADAPTER)
    push_folder(folder, "tester/model", "Merge", delete=STALE, keep_branch="adapter")
    second = api_here.add("tester/model", ADAPTER | {"adapter_model.safetensors": b"second"})
    push_folder(folder, "tester/model", "Merge", delete=STALE, keep_branch="adapter")
    assert api_here.repository("tester/model").branches["adapter"] == second.id
    assert contents(api_here) == MERGED


def test_a_new_adapter_takes_the_place_of_a_merged_model(api_here: Hub, tmp_path: Path) -> None:
    """After a merge and another training, the repository holds a new adapter beside the weights that the old
    one was merged into."""
    shards = {f"model-0000{i}-of-00002.safetensors": b"w" for i in (1, 2)}
    api_here.add("tester/model", shards | {"model.safetensors.index.json": b"{}", "config.json": b"{}",
                                           "generation_config.json": b"{}", "tokenizer_config.json": b"{}",
                                           "README.md": b"mine"})
    (tmp_path / "out").mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors", "tokenizer_config.json"):
        (tmp_path / "out" / name).write_text("new")
    push_folder(tmp_path / "out", "tester/model", "Add the LoRA adapter", delete=train.MERGED_MODEL)
    assert set(contents(api_here)) == {"README.md", "adapter_config.json", "adapter_model.safetensors",
                                       "tokenizer_config.json"}


def test_a_branch_of_the_users_own_is_not_moved(api_here: Hub, folder: Path) -> None:
    """A branch that happens to have that name loses its commits."""
    api_here.add("tester/model", ADAPTER)
    own = api_here.add("tester/model", {"own.txt": b"x"}, branch="adapter")
    with pytest.raises(PipelineError, match="branch adapter holds commits that main does not"):
        push_folder(folder, "tester/model", "Merge", delete=STALE, keep_branch="adapter")
    assert api_here.repository("tester/model").branches["adapter"] == own.id
    assert set(contents(api_here)) == set(ADAPTER)


@pytest.mark.parametrize(("method", "path", "fault"), [
    ("POST", "/commit/", {"status": 503, "times": 4}),
    ("POST", "/commit/", {"status": 429, "headers": {"Retry-After": "1"}}),
    ("POST", "/commit/", {"broken": "before"}),
    ("POST", "/commit/", {"broken": "after"}),
    ("POST", "/branch/", {"broken": "after"}),
    ("GET", "/tree/", {"status": 502, "times": 2}),
    ("PUT", "/large/", {"status": 500}),
])
def test_a_temporary_failure_is_retried(method: str, path: str, fault: dict, api_here: Hub, folder: Path,
                                           capsys: pytest.CaptureFixture) -> None:
    """A restart of the hub costs the user his push, or makes two commits of it."""
    before = api_here.add("tester/model", ADAPTER)
    api_here.fail(method, path, **fault)
    push_folder(folder, "tester/model", "Merge", delete=STALE, keep_branch="adapter")
    repository = api_here.repository("tester/model")
    assert contents(api_here) == MERGED
    assert (repository.head.parent, repository.branches["adapter"]) == (before.id, before.id)
    said = capsys.readouterr().err
    if path not in ("/tree/", "/large/"):  # there the client itself tries again
        assert "trying again in" in said
    if "headers" in fault:
        assert "trying again in 1 s" in said


@pytest.mark.parametrize("fault", [{"status": 503, "times": 99}, {"status": 403},
                                   {"status": 429, "headers": {"Retry-After": "9999"}},
                                   {"broken": "before", "times": 99}])
def test_a_permanent_failure(fault: dict, api_here: Hub, folder: Path, tmp_path: Path,
                            capsys: pytest.CaptureFixture) -> None:
    """A push that fails loses the work, half of it is on the hub, or the user does not know how to repeat
    it."""
    before = api_here.add("tester/model", ADAPTER)
    injected = api_here.fail("POST", "/commit/", **fault)
    with pytest.raises(PipelineError, match="publishing failed: model tester/model: "):
        push_folder(folder, "tester/model", "Merge", delete=STALE, keep_branch="adapter")
    assert api_here.repository("tester/model").head is before
    assert (folder / "model.safetensors").read_text() == "weights"
    injected.times = 0
    arguments = repeated_push(capsys.readouterr().err, api_here.environment(tmp_path / "cache"))
    assert arguments == ["-m", "pipeline", "push", str(folder), "tester/model", "--message=Merge",
                         "--repo_type=model", "--delete=adapter_.*", "--keep_branch=adapter"]
    repository = api_here.repository("tester/model")
    assert contents(api_here) == MERGED
    assert (repository.head.title, repository.head.parent,
            repository.branches["adapter"]) == ("Merge", before.id, before.id)


def test_the_command_that_repeats_a_push_holds_any_argument(api_here: Hub, folder: Path, tmp_path: Path,
                                                            monkeypatch: pytest.MonkeyPatch,
                                                            capsys: pytest.CaptureFixture) -> None:
    """The printed command cannot be pasted: a relative folder, a space, a quote or a leading dash breaks
    it."""
    folder.rename(tmp_path / "out put")
    monkeypatch.chdir(tmp_path)
    api_here.add("tester/data", {"-old.txt": b"x"}, kind="dataset")
    injected = api_here.fail("POST", "/commit/", 403)
    with pytest.raises(PipelineError, match="publishing failed: dataset tester/data: "):
        push_folder(Path("out put"), "tester/data", "-- what 'you' \"say\"", "dataset",
                    re.compile(r"-old\.txt|\$HOME"))
    assert not injected.times
    repeated_push(capsys.readouterr().err, api_here.environment(tmp_path / "cache"))
    assert set(contents(api_here, "tester/data", kind="dataset")) == {"model.safetensors", "config.json",
                                                                      "sub/empty.txt"}
    assert api_here.repository("tester/data", "dataset").head.title == "-- what 'you' \"say\""


def test_somebody_else_commits_meanwhile(api_here: Hub, folder: Path) -> None:
    """A push on a repository that has changed fails, undoes the other's commit, or leaves an adapter beside
    the merged model."""
    api_here.add("tester/model", ADAPTER)
    added = {"others.txt": b"x", "adapter_b.json": b""}
    others = api_here.fail("POST", "/commit/", 0, change=lambda: api_here.add("tester/model", added))
    push_folder(folder, "tester/model", "Merge", delete=STALE, keep_branch="adapter")
    assert contents(api_here) == MERGED | {"others.txt": b"x"}
    assert set(contents(api_here, branch="adapter")) == {*ADAPTER, "others.txt", "adapter_b.json"}
    assert others.times == 0


def test_somebody_who_does_not_stop(api_here: Hub, folder: Path) -> None:
    """A push retries for ever."""
    api_here.add("tester/model", ADAPTER)
    api_here.fail("POST", "/commit/", 0, times=9,
                  change=lambda: api_here.add("tester/model", {"others.txt": b"x"}))
    with pytest.raises(PipelineError, match="412"):
        push_folder(folder, "tester/model", "Merge")
    assert len(api_here.sent("POST", "/commit/")) == 2


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_what_arrived_is_compared(name: str, api_here: Hub, folder: Path) -> None:
    """A file that the hub holds otherwise than it was sent passes for published."""
    api_here.add("tester/model", ADAPTER)

    def damage() -> None:
        head = api_here.repository("tester/model").head
        if name in head.files:
            head.files[name] = api_here.store(name, b"other")
    api_here.fail("GET", "/tree/", 0, times=9, change=damage)
    with pytest.raises(PipelineError, match=f"{re.escape(name)} on the hub is not what was published"):
        push_folder(folder, "tester/model", "Merge")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_push_changes_nothing(number: int, hub: Hub, folder: Path, tmp_path: Path) -> None:
    """Ctrl-C or a kill in the middle of an upload leaves half a model on the hub."""
    before = hub.add("tester/model", ADAPTER)
    held = hub.hold("PUT", "/large/")
    command = [sys.executable, "-m", "pipeline", "push", str(folder), "tester/model", "--delete",
               "adapter_.*", "--keep_branch", "adapter"]
    environment = hub.environment(tmp_path / "cache")
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    assert held.arrived.wait(300)
    running.send_signal(number)
    held.release.set()
    _, stderr = running.communicate(timeout=300)
    assert running.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 143)
    assert number == signal.SIGKILL or "To publish it alone" in stderr
    assert hub.repository("tester/model").branches == {"main": before.id}
    run_python(ROOT, *command[1:], environment=environment)
    assert contents(hub) == MERGED


def test_a_folder_that_has_changed_is_not_pushed(hub: Hub, folder: Path, tmp_path: Path) -> None:
    """The command that repeats a push publishes a file that was damaged since."""
    write_manifest(folder / "manifest.json", argparse.Namespace(), hash_files(folder), 0.0)
    (folder / "config.json").write_text("{ }")
    done = run_python(ROOT, "-m", "pipeline", "push", folder, "tester/model",
                      environment=hub.environment(tmp_path / "cache"), fails=True)
    assert "config.json: has changed" in done.stderr
    assert not hub.repositories


def test_a_data_set_whose_push_failed_is_published_by_the_next_run(hub: Hub, raw_file: Path, base_model: Path,
                                                                   tmp_path: Path) -> None:
    """What a failed push left on the disk stops the next run, or is published in place of its result."""
    command = ("--input_file", raw_file, "--model_name_or_path", base_model, *TINY_DATA, "--hf_repository",
               "tester/data", "--publish_raw", "--public")
    environment = hub.environment(tmp_path / "cache")
    hub.fail("POST", "/commit/", 403)
    failed = stage(tmp_path, "preprocess_data.py", *command, environment=environment, fails=True)
    assert "publishing failed: dataset tester/data: " in failed.stderr.splitlines()[-1]
    assert (tmp_path / "data" / "kotlin_prepared_dataset" / "dataset_dict.json").is_file()
    del hub.repositories["dataset", "tester/data"]  # or it exists, and keeps its visibility
    repeated_push(failed.stderr, environment)
    assert not hub.repository("tester/data", "dataset").private
    first = contents(hub, "tester/data", kind="dataset")
    assert {"README.md", "data/train.parquet", "raw/raw.jsonl"} <= set(first)
    stage(tmp_path, "preprocess_data.py", *command, "--seed", 1, environment=environment)
    second = contents(hub, "tester/data", kind="dataset")
    assert set(first) == set(second)
    assert first["data/train.parquet"] != second["data/train.parquet"]


# ----------------------------------------------------------------------------------------------------------
# Who can see it
# ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("exists", "public", "announced"), [
    (None, False, "new and private"),
    (None, True, "new and public"),
    ("private", False, "which exists and stays private"),
    ("public", False, "which exists and stays public"),
    ("private", True, "which exists and stays private (--public is for new ones)"),
    ("public", True, "which exists and stays public")])
def test_what_is_published_is_private(exists: str | None, public: bool, announced: str, api_here: Hub,
                                      folder: Path, capsys: pytest.CaptureFixture) -> None:
    """A company's code is there for everybody to read, because its owner did not know what the default is; or
    a repository that was private is opened."""
    if exists:
        api_here.add("tester/model", {"model.safetensors": b"weights"})
        api_here.repository("tester/model").private = exists == "private"
    before_upload = []
    api_here.fail("POST", "/preupload/", 0, change=lambda: before_upload.append(capsys.readouterr().out))
    push_folder(folder, "tester/model", "Add", public=public)
    number = 2 if exists else 3  # what is there already is not sent again
    assert before_upload == [f"publishing to the model tester/model, {announced}: {number} files, 0.0 MB\n"]
    assert api_here.repository("tester/model").private == ("private" in announced)


def test_a_repository_that_the_hub_opens_gets_nothing(api_here: Hub, folder: Path) -> None:
    """Somebody else makes the repository, for everybody to see, between the question and the upload."""
    api_here.fail("POST", "/repos/create", 0, change=lambda: api_here.add("tester/model", ADAPTER))
    with pytest.raises(PipelineError, match="was made private and is public, so nothing was uploaded"):
        push_folder(folder, "tester/model", "Add")
    assert not api_here.sent("POST", "/commit/|/preupload/")


def test_a_repository_is_made_although_the_hub_falters(api_here: Hub, folder: Path) -> None:
    """A hub that restarts costs the user his push, or the repository is made public by the second try."""
    for fault in ({"status": 500}, {"broken": "after"}):
        api_here.fail("POST", "/repos/create", **fault)
    push_folder(folder, "tester/model", "Add")
    assert api_here.repository("tester/model").private
    assert len(api_here.sent("POST", "/repos/create")) == 3


# ----------------------------------------------------------------------------------------------------------
# Secrets
# ----------------------------------------------------------------------------------------------------------

class WatchfulGitHandler(GitHandler):
    """Records the command lines of the git processes that run during a request; every user of a machine can
    read them."""
    commands: set[bytes]

    def answer(self) -> None:
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):  # it has ended meanwhile
                command = process.read_bytes()
                if b"/code/" in command and RUN_MANY.encode() not in command:
                    self.commands |= {command}
        super().answer()

    do_GET = do_POST = answer


def test_what_holds_a_secret_is_not_published(api_here: Hub, folder: Path, tmp_path: Path,
                                              capsys: pytest.CaptureFixture) -> None:
    """A private key of the code base is on the hub; or nobody can publish a false alarm."""
    (folder / "sub" / "report.md").write_text("ghp_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7aB3dE6gH9")
    with pytest.raises(PipelineError, match=r"1 secrets in what would be published: sub/report.md \(GitHub"):
        push_folder(folder, "tester/model", "Add")
    assert not api_here.repositories
    command = capsys.readouterr().err
    assert "--allow_secrets" not in command  # nobody publishes it by a command that he only pastes
    [line] = [line for line in command.splitlines() if line.startswith("  python ")]
    allowed = run_python(ROOT, *shlex.split(line)[1:], "--allow_secrets",
                         environment=api_here.environment(tmp_path / "cache"))
    assert "published all the same (--allow_secrets): 1 secrets" in allowed.stderr
    assert "sub/report.md" in contents(api_here)


def test_no_secret_leaks(hub: Hub, base_model: Path, raw_file: Path, tmp_path: Path) -> None:
    """A token or a password is published, stands in a file, or in the log that a user pastes into a forum."""
    handler = type("Handler", (WatchfulGitHandler,), {"root": raw_file.parent, "commands": set()})
    password, in_url = "s3cr@t", "s3cr%40t"  # what that server asks for
    hub.add("tester/base", base_model)
    environment = hub.environment(
        tmp_path / "cache", LOG_EVERYTHING="1", HF_DEBUG="1", HF_HUB_VERBOSITY="debug",
        TRANSFORMERS_VERBOSITY="debug", DATASETS_VERBOSITY="debug", GIT_PYTHON_TRACE="full", GIT_TRACE="1",
        GIT_CURL_VERBOSE="1", HTTPX_LOG_LEVEL="trace", GIT_CONFIG_GLOBAL="/dev/null", GIT_CONFIG_NOSYSTEM="1")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://user:{in_url}@127.0.0.1:{server.server_port}/code"
        base = ("--model_name_or_path", "tester/base")
        done = start_many(tmp_path, [
            ("parse_data", "--repo_url", f"{url}/.git", "--clone_path", "clone", "--output_file",
             "raw.jsonl"),
            ("parse_data", "--repo_url", f"{url}/missing.git", "--clone_path", "clone", "--output_file",
             "none.jsonl"),
            ("preprocess_data", "--input_file", "raw.jsonl", *base, *TINY_DATA, "--hf_repository",
             "tester/data"),
            ("train", *base, "--dataset", "tester/data", *TINY_TRAINING, "--hf_repository", "tester/model"),
            ("merge_lora", "--hf_repository", "tester/model"),
            ("train", *base, "--dataset", "tester/none", *TINY_TRAINING)], environment)
        server.shutdown()
    assert [code for code, _ in results_of(done)] == [0, 1, 0, 0, 0, 1], done.stdout
    assert "DEBUG" in done.stderr  # the logs are on
    # it was used
    assert f"Bearer {WRITE_TOKEN}" in {request.headers.get("authorization") for request in hub.requests}
    uploaded = [content for repository in hub.repositories.values() for commit in repository.commits.values()
                for file in commit.files.values()
                for content in [file.content or hub.large.get(file.sha256, b"")]]
    assert handler.commands or not Path("/proc").is_dir()
    sent = [request.body + request.path.encode() for request in hub.requests]
    written = [path.read_bytes() for path in written_files(tmp_path)]
    for secret in (WRITE_TOKEN, password, in_url, base64.b64encode(f"user:{password}".encode()).decode()):
        for name, places in (("uploaded", uploaded), ("sent", sent), ("written", written),
                             ("printed", [done.stdout.encode()]), ("logged", [done.stderr.encode()]),
                             ("run", handler.commands)):
            found = next((place for place in places if secret.encode() in place), b"")
            at = found.find(secret.encode())
            assert not found, (name, found[max(0, at - 200):at + 60])


# ----------------------------------------------------------------------------------------------------------
# Hostile repositories
# ----------------------------------------------------------------------------------------------------------

def changed(files: dict[str, bytes], name: str, **settings: object) -> dict[str, bytes]:
    """Return the files with some settings of a JSON file changed."""
    return files | {name: json.dumps(json.loads(files[name]) | settings).encode()}


class Marker:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, base_model: Path) -> Iterator[tuple[Hub, Path, Path]]:
    """A hub with hostile repositories, a folder to work in, and the file that any code of theirs would
    make."""
    folder = tmp_path_factory.mktemp("hostile")
    marker = folder / "executed"
    adapter = tiny_models.save_adapter(folder / "adapter", base_model)
    tiny_models.save_dataset(folder / "data")
    tiny_models.save_codexglue(folder / "python.jsonl")
    model, lora = ({p.name: p.read_bytes() for p in source.iterdir()} for source in (base_model, adapter))
    code = f"open({str(marker)!r}, 'w')\nclass Config: pass\nclass Model: pass\n".encode()
    pickled = pickle.dumps(Marker(marker))
    weightless = {name: content for name, content in model.items() if not name.endswith(".safetensors")}
    index = json.dumps({"metadata": {},
                        "weight_map": {"lm_head.weight": "../../../other/model.safetensors"}}).encode()
    with Hub() as hub:
        hub.add("tester/base", model)
        classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
        tokenizer = {"AutoTokenizer": [None, "own.Model"]}
        hub.add("tester/code", changed(model, "config.json", model_type="own", auto_map=classes)
                | {"own.py": code})
        hub.add("tester/tokenizer-code", changed(model, "tokenizer_config.json", tokenizer_class="Own",
                                                 auto_map=tokenizer)
                | {"own.py": code})
        hub.add("tester/pickled", weightless | {"pytorch_model.bin": pickled})
        hub.add("tester/climbing", model | {"../../climbed.json": b"{}"})
        hub.add("tester/climbing-index", weightless | {"model.safetensors.index.json": index,
                                                       "other.safetensors": b""})
        hub.add("tester/template",
                model | {"chat_template.jinja": b"{{ ''.__class__.__mro__[1].__subclasses__() }}"})
        hub.add("tester/template-name",
                changed(model, "tokenizer_config.json",
                        chat_template=[{"name": "../../climbed", "template": "x"}]))
        hub.add("tester/pickled-adapter",
                {name: data for name, data in lora.items() if name != "adapter_model.safetensors"}
                | {"adapter_model.bin": pickled})
        hub.add("tester/climbing-adapter", lora | {"../../climbed.json": b"{}"})
        other = tiny_models.save_model(folder / "other", "gpt2")
        hub.add("tester/other", other)
        for name, base in (("elsewhere", "tester/other"), ("local", str(base_model))):
            hub.add(f"tester/{name}-adapter",
                    changed(lora, "adapter_config.json", base_model_name_or_path=base))
        hub.add("tester/script", {"script.py": code + b"import datasets\n"}, kind="dataset")
        hub.add("tester/climbing", {"train.jsonl": b"{}", "../../climbed.jsonl": b"{}"}, kind="dataset")
        card = b"---\nconfigs:\n- config_name: default\n  data_files: ../../x/*.jsonl\n---\n"
        hub.add("tester/outside", {"README.md": card, "a.jsonl": b"{}"}, kind="dataset")
        hub.add("tester/pickled", {"train.pkl": pickled}, kind="dataset")
        yield hub, folder, marker


CLIMBS, TEMPLATE = "leads out of its folder", "reaches out of where it belongs"
PICKLED, CODE = "pickled weights are not loaded", "contains custom code"
SCRIPT, DOTS = "scripts are no longer supported", "cannot contain a '..'"
REFUSED = {
    "train": {
        "--model_name_or_path tester/code": CODE,
        "--model_name_or_path tester/tokenizer-code": CODE,
        "--model_name_or_path tester/pickled": PICKLED,
        "--model_name_or_path tester/climbing": CLIMBS,
        "--model_name_or_path tester/climbing-index": DOTS,
        "--model_name_or_path tester/template": TEMPLATE,
        "--model_name_or_path tester/template-name": TEMPLATE,
        "--dataset tester/script": SCRIPT,
        "--dataset tester/climbing": CLIMBS,
        "--dataset tester/outside": "data set tester/outside: ",
        "--dataset tester/pickled": "data set tester/pickled: "},
    "merge_lora": {
        "--base_model tester/code": CODE,
        "--base_model tester/pickled": PICKLED,
        "--base_model tester/climbing": CLIMBS,
        "--base_model tester/climbing-index": "names weights outside its folder",
        "--hf_repository tester/pickled-adapter": PICKLED,
        "--hf_repository tester/climbing-adapter": CLIMBS,
        "--hf_repository tester/elsewhere-adapter": "is this the right base model",
        "--hf_repository tester/local-adapter": "names a local path as its base model"},
    "benchmarking": {
        "--hf_repository tester/code": CODE,
        "--hf_repository tester/pickled": PICKLED,
        "--hf_repository tester/tokenizer-code": CODE,
        "--tokenizer tester/tokenizer-code": CODE,
        "--base_model tester/template": TEMPLATE,
        "--hf_repository tester/template": TEMPLATE,
        "--tokenizer tester/template-name": TEMPLATE,
        "--hf_repository tester/climbing": CLIMBS,
        "--hf_repository tester/climbing-index": DOTS,
        "--hf_repository tester/pickled-adapter": PICKLED,
        "--dataset tester/script": SCRIPT,
        "--hf_repository tester/elsewhere-adapter": "its adapter was made for tester/other"},
}
COMMON = {
    "train": "--model_name_or_path tester/base --dataset data --output_dir out/train --quantization none",
    "merge_lora": "--hf_repository adapter --output_dir out/merged",
    "benchmarking": "--hf_repository tester/base --base_model tester/base --dataset data --codexglue_file "
                    "python.jsonl --sample 1 --max_new_tokens 1 --output_dir out/results --precision float32",
}


@pytest.mark.parametrize("script", REFUSED)
def test_hostile_repositories_are_refused(script: str, hostile: tuple[Hub, Path, Path],
                                          tmp_path: Path) -> None:
    """A repository of somebody else runs its code on this machine, or writes outside of its folder."""
    hub, folder, marker = hostile
    before = set(written_files(folder))
    # the last of two equal flags counts
    commands = [(script, *COMMON[script].split(), *options.split()) for options in REFUSED[script]]
    results = run_many(folder, commands, hub.environment(tmp_path / "cache"))
    for (code, said), command, message in zip(results, commands, REFUSED[script].values(), strict=True):
        assert code == 1, command
        assert "Traceback" not in said, said
        assert message in said.splitlines()[-1], command
    assert not marker.exists()
    assert {path.name for path in set(written_files(folder)) - before
            if "out/results" not in str(path)} <= {".merged.lock", ".train.lock"}
    assert not [path for path in written_files(tmp_path) if path.name.startswith("climbed")]
    assert not (folder / "out" / "train").exists()
    assert not (folder / "out" / "merged").exists()
