"""What a run's header says of the process that made it, for a person who reads it later. No secrets, no imports."""

import getpass
import os
import platform
import re
import socket
import sys
from pathlib import Path
from typing import Any

from lightning_loggers import jobs

_COMMIT = re.compile(r"[0-9a-f]{40,64}", re.ASCII)
_MAX_REFS_BYTES = 2**20


def describe() -> dict[str, Any]:
    """Host, process, versions of what is loaded, and the commit of the code; never raises."""
    facts: dict[str, Any] = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "program": sys.argv[0] if sys.argv else "",
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    try:
        facts["user"] = getpass.getuser()
    except (OSError, KeyError):  # a container's uid without a name
        facts["user"] = str(os.getuid())
    for name in ("torch", "lightning", "pytorch_lightning", "numpy"):
        version = getattr(sys.modules.get(name), "__version__", None)
        if version is not None:
            facts[name] = str(version)
    if (slurm := jobs.slurm_job()) is not None:
        facts["slurm_job"] = slurm
    if (job := jobs.describe()) is not None:
        facts["job"] = job
    if (commit := git_commit(Path.cwd())) is not None:
        facts["git_commit"] = commit
    return facts


def git_commit(folder: Path) -> str | None:
    """The commit that is checked out at or above a folder, read from git's files (no process is started)."""
    try:
        for place in (folder, *folder.parents):
            git = place / ".git"
            if git.is_file():  # a worktree: "gitdir: <path>"
                git = place / git.read_text()[:4096].partition("gitdir:")[2].strip()
            if not (git / "HEAD").is_file():
                continue
            head = (git / "HEAD").read_text()[:4096].strip()
            name = head.partition("ref: ")[2]
            if not name:
                return head if _COMMIT.fullmatch(head) else None
            common = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
            for base in (git, common):
                if (base / name).is_file():
                    commit = (base / name).read_text()[:4096].strip()
                    return commit if _COMMIT.fullmatch(commit) else None
            packed = common / "packed-refs"
            if packed.is_file() and packed.stat().st_size < _MAX_REFS_BYTES:
                for line in packed.read_text().splitlines():
                    commit, _, ref = line.partition(" ")
                    if ref == name and _COMMIT.fullmatch(commit):
                        return commit
            return None
    except (OSError, UnicodeDecodeError):
        return None
    return None
