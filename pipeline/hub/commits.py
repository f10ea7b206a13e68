"""One commit in a hub repository, on top of the commit that was read, verified by hashes afterwards."""
import functools
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoFile

from pipeline.run.errors import PipelineError, causes, first_line
from pipeline.run.hashes import content_hashes

# seconds between the tries of what the client does not retry; a longer Retry-After than LONGEST_PAUSE fails
HUB_PAUSES, LONGEST_PAUSE = (1, 2, 4, 8), 300


def lost_connection(error: BaseException) -> bool:
    """Return whether a connection failed; by the names that the libraries' HTTP clients have in common."""
    return any(kind.__name__ in ("TransportError", "ConnectionError")
               for link in causes(error) for kind in type(link).__mro__)


def http_answer(error: BaseException) -> tuple[int, int]:
    """Return the status of the answer that an error is about and its Retry-After in seconds; 0 for none."""
    for answer in (getattr(link, "response", None) for link in causes(error)):
        if answer is not None:
            seconds = answer.headers.get("Retry-After", "")
            return answer.status_code, int(seconds) if seconds.isdigit() else 0
    return 0, 0


def with_hub_retries(attempt: Callable[[], Any], name: str) -> Any:
    """Return `attempt()`, retried with growing pauses after a temporary failure (408, 429, 5xx, a broken
    connection), and once after a conflict (412): somebody else's commit since `name` was read.

    The client itself retries listings, uploads and downloads, but neither whoami nor requests that read or
    make a repository, a branch or a commit.  A pause is at least the hub's Retry-After, up to LONGEST_PAUSE.
    """
    pauses, conflict = list(HUB_PAUSES), False
    while True:
        try:
            return attempt()
        except Exception as error:
            status, wait = http_answer(error)
            if status == 412 and not conflict:
                conflict = True
                print(f"{name}: somebody else has committed meanwhile; reading it again", file=sys.stderr)
                continue
            temporary = status in (408, 429) or status >= 500 or (not status and lost_connection(error))
            if not temporary or not pauses or wait > LONGEST_PAUSE:
                raise
            wait = max(pauses.pop(0), wait)
            print(f"{name}: {first_line(error)}; trying again in {wait} s ({len(HUB_PAUSES) - len(pauses)} "
                  f"of {len(HUB_PAUSES)})", file=sys.stderr)
            time.sleep(wait)


def commit_files(repo_id: str, repo_type: str, message: str,
                 files: Callable[[str, set[str]], dict[str, Path | bytes]],
                 delete: re.Pattern | None = None, keep_branch: str | None = None,
                 made: bool = False, public: bool = False) -> str:
    """Put `files(head commit, names there)`, {name: path or content}, into a repository in one commit on top
    of that head, and return the commit's identifier.

    The commit also deletes the other files whose whole name matches `delete`; before it, the branch
    `keep_branch` is set to the head that still has them.  PipelineError where the hashes of what the hub then
    holds differ.  If a commit succeeds and its answer is lost, the next try finds nothing to do.

    One line announces name, visibility, number of files and size before anything is uploaded.  `made`: this
    run made the repository; PipelineError where it is public without `public`.
    """
    api, hashes = HfApi(), functools.cache(content_hashes)
    announce = functools.cache(functools.partial(print, flush=True))  # once, however many tries it takes

    def attempt() -> str:
        info = api.repo_info(repo_id, repo_type=repo_type)
        if made and not (info.private or public):
            raise PipelineError(f"{repo_type} {repo_id}: was made private and is public, so nothing was "
                                "uploaded; look at its settings on the hub, or give --public")
        before = _hashes_there(repo_id, repo_type, info.sha)
        wanted = files(info.sha, set(before))
        added = [CommitOperationAdd(name, content) for name, content in wanted.items()
                 if before.get(name) not in hashes(content)]
        stale = [name for name in before if delete and delete.fullmatch(name) and name not in wanted]
        if not added and not stale:
            return info.sha
        size = sum(operation.upload_info.size for operation in added)
        announce(f"publishing to the {repo_type} {repo_id}, {visibility(bool(info.private), made, public)}: "
                 f"{len(added)} files, {size / 1e6:.1f} MB")
        if keep_branch and stale:
            api.preupload_lfs_files(repo_id, added, repo_type=repo_type)  # may fail; then no branch has moved
            _put_branch(repo_id, repo_type, keep_branch, info.sha)
        # not upload_folder: with Xet it commits in parts (after 250 files, 100 MB of small ones, 5 minutes or
        # a failure), of which only the first has the deletions and is bound to its parent
        commit = api.create_commit(repo_id, [*added, *map(CommitOperationDelete, stale)],
                                   commit_message=message, repo_type=repo_type, parent_commit=info.sha).oid
        after = _hashes_there(repo_id, repo_type, commit)
        wrong = [name for name, content in wanted.items() if after.get(name) not in hashes(content)]
        if wrong := wrong + [name for name in stale if name in after]:
            raise PipelineError(f"{repo_type} {repo_id}: {wrong[0]} on the hub is not what was published "
                                f"(commit {commit}); publish it again")
        return commit
    return with_hub_retries(attempt, repo_id)


def _hashes_there(repo_id: str, repo_type: str, commit: str) -> dict[str, str]:
    """Return {name: hash} of a repository's files: SHA-256 of a large file, git's SHA-1 of a small one."""
    tree = HfApi().list_repo_tree(repo_id, recursive=True, revision=commit, repo_type=repo_type)
    return {file.path: file.lfs.sha256 if file.lfs else file.blob_id for file in tree
            if isinstance(file, RepoFile)}


def visibility(private: bool, made: bool, public: bool) -> str:
    """Return who can see a repository, in the words of the line printed before the upload."""
    seen = "private" if private else "public"
    if made:
        return f"new and {seen}"
    return f"which exists and stays {seen}" + (" (--public is for new ones)" if private and public else "")


def _put_branch(repo_id: str, repo_type: str, branch: str, commit: str) -> None:
    """Set `branch` to `commit`, from wherever in the history of that commit it pointed before.
    PipelineError where it points elsewhere: commits that only this branch holds would be lost."""
    api = HfApi()
    heads = {ref.name: ref.target_commit for ref in api.list_repo_refs(repo_id, repo_type=repo_type).branches}
    if heads.get(branch) == commit:
        return
    if branch in heads:
        history = api.list_repo_commits(repo_id, repo_type=repo_type, revision=commit)
        if heads[branch] not in {entry.commit_id for entry in history}:
            raise PipelineError(f"{repo_type} {repo_id}: its branch {branch} holds commits that main does "
                                "not; rename that branch")
        api.delete_branch(repo_id, branch=branch, repo_type=repo_type)
    api.create_branch(repo_id, branch=branch, revision=commit, repo_type=repo_type)
