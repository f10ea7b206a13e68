"""Errors that a user can fix, reported in one line without secrets."""
import errno
import os
import re
import signal

# Errors of the operating system that a user can fix; all others keep their traceback.
DISK_ERRORS = {
    errno.ENOSPC: "no space left on the disk: free some space",
    errno.EDQUOT: "the disk quota is used up: free some space",
    errno.EFBIG: "the file would exceed the file size limit: raise it (ulimit -f)",
    errno.EROFS: "the file system is read-only: choose another place",
    errno.EACCES: "permission denied: choose a place that you may read and write",
    errno.EPERM: "operation not permitted: choose a place that you may read and write",
    errno.ENOTDIR: "a part of the path is a file: choose another path",
    errno.EISDIR: "the path is a folder: choose another path",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
    errno.ELOOP: "the symbolic links lead in a circle: choose another path",
}


class PipelineError(Exception):
    """An error that the user can fix; its one-line message says what, where, and what to do next."""


class Terminated(BaseException):
    """SIGTERM arrived.  Raised in the main thread so that every `finally` runs."""


def disk_mistake(error: BaseException) -> str | None:
    """Return what the user has to fix where an error comes from the disk, else None.

    Libraries and programs in other languages pass the operating system's error on as text; torch.save omits
    even that.
    """
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return (f"{error.filename}: " if error.filename else "") + DISK_ERRORS[error.errno]
    for code in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        if os.strerror(code) in str(error):
            return DISK_ERRORS[code]
    # a git killed by the file size limit; Windows has no such signal
    if hasattr(signal, "SIGXFSZ") and getattr(error, "status", None) == -signal.SIGXFSZ:
        return DISK_ERRORS[errno.EFBIG]
    if "inline_container" in str(error):
        return ("a file could not be written in full: check the disk's free space, the quota, and the file "
                "size limit")
    return None


def redact(text: str) -> str:
    """Return `text` without the user names and passwords of URLs and without Hugging Face tokens."""
    text = re.sub(r"(?<=://)[^/\s]+@", "***@", text)
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if os.environ.get(name):
            text = text.replace(os.environ[name], "***")
    return re.sub(r"\bhf_[A-Za-z0-9]{20,}", "hf_***", text)


def shown_path(path: str) -> str:
    """Return a path as text that can be written: bytes that are not UTF-8 read \\xNN."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, with secrets removed."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return redact(lines[0]) if lines else type(error).__name__


def causes(error: BaseException) -> list[BaseException]:
    """Return the error, what it was raised from, and so on."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)
    return chain


def looks_like_path(name: str) -> bool:
    """Return whether `name` can only be a path: hub names are NAME or OWNER/NAME."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1
