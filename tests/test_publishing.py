"""pipeline/preparation/publishing.py: the data set on the hub."""
import json
import re
import subprocess
import sys
from pathlib import Path

import yaml
from hub_server import READ_TOKEN, WRITE_TOKEN, Hub
from preparation_runs import arguments, save_corpus

ROOT = Path(__file__).resolve().parents[1]


def test_published_data_set_is_what_is_on_disk(tmp_path: Path) -> None:
    """The hub gets other examples, several commits, or no card; or load_dataset cannot read what it got."""
    corpus = save_corpus(tmp_path / "corpus")
    with Hub() as hub:
        environment = hub.environment(tmp_path / "cache")
        command = [sys.executable, str(ROOT / "preprocess_data.py"), *arguments(corpus, tmp_path / "data"),
                   "--hf_repository"]

        def publish(name: str, token: str, *more: str) -> subprocess.CompletedProcess:
            return subprocess.run([*command, name, *more], env=environment | {"HF_TOKEN": token},
                                  capture_output=True, text=True)

        refused = publish("tester/data", READ_TOKEN)
        assert refused.returncode == 1
        assert "the token may only read" in refused.stderr
        assert not (tmp_path / "data").exists()  # before the work, not after it
        done = publish("tester/data", WRITE_TOKEN, "--publish_raw")
        assert done.returncode == 0, done.stderr
        repository = hub.repository("tester/data", "dataset")
        titles = [commit.title for commit in repository.commits.values()]
        assert titles == ["initial commit", "Add the data set"]
        files = repository.head.files
        assert files["raw/raw.jsonl"].content == (corpus / "raw.jsonl").read_bytes()
        card = files["README.md"].content.decode()
        assert "## Leakage" in card
        assert "`raw/raw.jsonl`" in card
        assert repository.private
        assert f"publishing to the dataset tester/data, new and private: {len(files)} files, " in done.stdout
        settings = yaml.safe_load(card.split("---")[1])
        assert [part["config_name"] for part in settings["configs"]] == ["default", "files"]
        for part in settings["configs"]:
            assert {file["path"] for file in part["data_files"]} <= set(files)
        check = ("import datasets, sys\n"
                 "a, b = datasets.load_dataset('tester/data'), datasets.load_from_disk(sys.argv[1])\n"
                 "assert all(a[s][:] == b[s][:] for s in ('train', 'validation', 'test')) and len(a) == 3\n"
                 "a = datasets.load_dataset('tester/data', 'files')\n"
                 "b = datasets.load_from_disk(sys.argv[1] + '/files')\n"
                 "assert all(a[s][:] == b[s][:] for s in ('train', 'validation', 'test')) and len(a) == 3")
        subprocess.run([sys.executable, "-c", check, str(tmp_path / "data")], env=environment, check=True,
                       capture_output=True)
        assert not (tmp_path / "data.hub").exists()
        assert WRITE_TOKEN not in done.stdout + done.stderr


def test_a_data_set_with_a_secret_stays_on_the_disk(tmp_path: Path) -> None:
    """The key in one file of a code base is on the hub, or the work on the data set is lost with the push."""
    corpus, token = save_corpus(tmp_path / "corpus"), "ghp_" + "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7aB3dE6gH9"
    raw = corpus / "raw.jsonl"
    text = "\n".join(f"val number{i} = {i}" for i in range(200)) + f'\nval token = "{token}"\n'
    raw.write_text(raw.read_text() + json.dumps({"file_text": text}) + "\n")
    with Hub() as hub:
        done = subprocess.run([sys.executable, str(ROOT / "preprocess_data.py"),
                               *arguments(corpus, tmp_path / "data"), "--hf_repository", "tester/data"],
                              env=hub.environment(tmp_path / "cache"), capture_output=True, text=True)
        assert done.returncode == 1
        assert not hub.repositories
    said = done.stderr.splitlines()[-1]
    assert re.search(r"secrets in what would be published: .*files/\w+\.parquet \(GitHub token 1\)", said)
    assert "take them out, or publish them with --allow_secrets" in said
    assert "secrets in line 61 (GitHub token 1): --drop_secrets leaves such files out" in done.stdout
    assert token not in done.stdout + done.stderr
    assert (tmp_path / "data" / "dataset_dict.json").is_file()
