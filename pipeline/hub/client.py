"""The Hugging Face hub: its errors, what a repository holds, the right to write, and publishing a folder."""
import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, errors, is_offline_mode
from huggingface_hub.utils import validate_repo_id

from pipeline.hub.commits import commit_files, http_answer, lost_connection, with_hub_retries
from pipeline.hub.secrets_scan import refuse_secrets
from pipeline.run.errors import DISK_ERRORS, PipelineError, causes, first_line
from pipeline.run.manifests import read_manifest
from pipeline.run.outputs import MANIFEST


@contextlib.contextmanager
def hub_errors(kind: str, name: str, unreachable: str = " and the cache does not hold it; check the network, "
                                                        "or name a local folder") -> Iterator[None]:
    """Turn the errors of the Hugging Face libraries about loading or writing `name` into a PipelineError;
    `unreachable` ends its message, with advice, where the hub does not answer."""
    try:
        yield
    except Exception as error:
        chain = causes(error)

        def has(*kinds: type) -> bool:
            return any(isinstance(link, kinds) for link in chain)

        if isinstance(error, PipelineError) or (isinstance(error, OSError) and error.errno in DISK_ERRORS):
            raise
        for applies, reason in (
            (has(errors.GatedRepoError), "is gated; accept its terms on the hub and log in (hf auth login)"),
            (has(errors.RepositoryNotFoundError), "does not exist on the hub, or is private; check the name, "
                                                  "or log in (hf auth login)"),
            (has(errors.RevisionNotFoundError), "has no such revision; check it"),
            (has(errors.LocalEntryNotFoundError) or lost_connection(error),
             f"the hub cannot be reached{unreachable}"),
            (has(errors.EntryNotFoundError), f"lacks a file that is needed: {first_line(error)}"),
            (has(errors.HFValidationError), "is neither a local folder nor a valid hub name; check the "
                                            "spelling"),
            (has(errors.LocalTokenNotFoundError), "no token; log in first (hf auth login) or set HF_TOKEN"),
            (http_answer(error)[0] == 401, "the hub refuses the token; log in again (hf auth login)"),
            (has(errors.HfHubHTTPError) or isinstance(error, OSError | ValueError), first_line(error)),
        ):
            if applies:
                raise PipelineError(f"{kind} {name}: {reason}") from error
        raise


def hub_files(name: str, revision: str | None = None, repo_type: str = "model") -> tuple[str, set[str]]:
    """Return the commit of a hub repository and the names of its files; without the hub, those of the copy in
    the cache.  PipelineError where a file's name would lead out of the download folder."""
    try:
        info = HfApi().repo_info(name, revision=revision, repo_type=repo_type)
        commit, names = str(info.sha), {sibling.rfilename for sibling in info.siblings or []}
    except Exception as error:
        if not lost_connection(error):
            raise
        folder = Path(HfApi().snapshot_download(name, revision=revision, repo_type=repo_type,
                                                local_files_only=True))
        commit, names = folder.name, {path.relative_to(folder).as_posix() for path in folder.rglob("*")
                                      if path.is_file()}
    for file in sorted(names):
        if file.startswith("/") or "\\" in file or ".." in file.split("/"):
            raise PipelineError(f"{repo_type} {name}: the name of its file {file} leads out of its folder; "
                                "do not use this repository")
    return commit, names


def find_manifest(source: str, repo_type: str = "model",
                  revision: str | None = None) -> dict[str, Any] | None:
    """Return the manifest of a local folder or hub repository; None where there is none of this pipeline."""
    if Path(source).is_dir():
        return read_manifest(Path(source))
    # no such file; offline, also where the cache lacks it
    with hub_errors(repo_type, source), contextlib.suppress(errors.EntryNotFoundError):
        file = Path(HfApi().hf_hub_download(source, MANIFEST, repo_type=repo_type, revision=revision))
        with contextlib.suppress(PipelineError):  # a repository may hold some other manifest.json
            return read_manifest(file.parent)
    return None


def check_hub_write(repo_id: str, repo_type: str = "model") -> None:
    """Raise PipelineError unless `repo_id` is a valid name and the token of the environment or login may
    write there: before hours of work, not after.  Rights that the hub does not report fail at the upload."""
    flag = f"--hf_repository {repo_id}"
    try:
        validate_repo_id(repo_id)
        owner, _ = repo_id.split("/")
    except ValueError:
        raise PipelineError(f"{flag}: not a hub name of the form OWNER/NAME") from None
    if is_offline_mode():
        raise PipelineError(f"{flag}: HF_HUB_OFFLINE is set, and publishing needs the hub; unset it, or stay "
                            "local")
    with hub_errors("--hf_repository", repo_id, "; check the network, or stay local"):
        account = with_hub_retries(HfApi().whoami, repo_id)
    if refusal := _write_refusal(account, owner.casefold(), repo_id.casefold()):
        raise PipelineError(f"{flag}: {refusal}")


def _write_refusal(account: dict[str, Any], owner: str, repo_id: str) -> str | None:
    """Return why the hub would refuse a push, from its answer about the account and its token; None if it
    would not.  A token of the role `fineGrained` lists its permissions for users, organizations and
    repositories; the account lists its organizations, with its role in each."""
    token = account.get("auth", {}).get("accessToken", {})
    if token.get("role") == "read":
        return "the token may only read; log in with one that may write"
    scopes = token.get("fineGrained", {}).get("scoped")
    if token.get("role") == "fineGrained" and scopes is not None:
        writable = {str(scope.get("entity", {}).get("name")).casefold() for scope in scopes
                    if "repo.write" in scope.get("permissions", [])}
        return None if writable & {owner, repo_id} else (
            f"the token may not write there (no repo.write for {owner}); change its permissions")
    roles = {org.get("name", "").casefold(): org.get("roleInOrg") for org in account.get("orgs", [])}
    if owner not in roles and owner != account.get("name", owner).casefold():
        return (f"{owner} is neither your account ({account['name']}) nor one of its organizations; check "
                "the name")
    read_only = roles.get(owner) == "read"
    return "your role in that organization is to read only; choose another owner" if read_only else None


def push_folder(folder: Path, repo_id: str, message: str, repo_type: str = "model",
                delete: re.Pattern | None = None, keep_branch: str | None = None,
                public: bool = False, allow_secrets: bool = False) -> str:
    """Publish every file of `folder` to `repo_id`, created if it is missing, in one commit, and
    return the commit's identifier; for `delete` and `keep_branch` see `commit_files`.

    A new repository is private, or public with `public`; an existing one keeps its visibility.
    PipelineError where a text of the folder holds secrets, unless `allow_secrets`.

    On failure the folder is untouched, the repository is as it was, and a printed command repeats only the
    push.
    """
    try:
        with hub_errors(f"publishing failed: {repo_type}", repo_id, "; check the network"):
            files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*"))
                     if path.is_file()}
            refuse_secrets(files, allow_secrets)
            made = not with_hub_retries(lambda: HfApi().repo_exists(repo_id, repo_type=repo_type), repo_id)
            if made:
                with_hub_retries(lambda: HfApi().create_repo(repo_id, repo_type=repo_type, private=not public,
                                                             exist_ok=True), repo_id)
            return commit_files(repo_id, repo_type, message, lambda head, names: files, delete, keep_branch,
                                made, public)
    except BaseException:  # Ctrl-C and SIGTERM too
        options = {"message": message, "repo_type": repo_type, "delete": delete and delete.pattern,
                   "keep_branch": keep_branch}
        command = ["python", "-m", "pipeline", "push", str(folder.absolute()), repo_id,
                   *(f"--{name}={value}" for name, value in options.items() if value),
                   *(["--public"] if public else []), *(["--allow_secrets"] if allow_secrets else [])]
        print(f"{folder} is complete on disk, and not published. To publish it alone, in the project's "
              f"folder:\n  {shlex.join(command)}", file=sys.stderr)
        raise
