"""A folder, or a hub repo id → the folder that has a checkpoint's files."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict

from refdiff.browser import require
from refdiff.checkpoint_files import CONFIG_FILES, INDEX, MAX_FILES, SINGLE, WEIGHT_FILES, local_folder, read_weight_map
from refdiff.errors import CheckpointError, MissingFileError
from refdiff.hub.explain import explain, explain_errors, is_unreachable
from refdiff.hub.guard import MAX_INFO, BadAnswerError, checked_answers, download
from refdiff.messages import warn


class HubOptions(TypedDict, total=False):
    """What every `from_pretrained` takes to find the files of a checkpoint.

    revision: branch, tag or commit of a repo. cache_dir: where downloads are kept instead of the usual cache.
    local_files_only: use what has been downloaded before, without network. token: of the hub, for private repos; None
    or True is the one of `hf auth login`. subfolder: the folder in the repo, or in the folder. force_download: download
    again what is in the cache. trust_remote_code: ignored; no code of a checkpoint is ever run.
    """

    revision: str | None
    cache_dir: str | os.PathLike[str] | None
    local_files_only: bool
    token: str | bool | None
    subfolder: str
    force_download: bool
    trust_remote_code: Any


ARGUMENTS = tuple(HubOptions.__annotations__)
_REPO_ID = re.compile(r"(?:[A-Za-z0-9_.-]+/)?[A-Za-z0-9_.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")


def snapshot(
    path_or_repo: str | os.PathLike[str],
    *,
    files: Sequence[str] = CONFIG_FILES,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    subfolder: str = "",
    force_download: bool = False,
    trust_remote_code: Any = None,
    progress: bool = True,
    answered: Callable[[], None] = lambda: None,
    check: Callable[[Path], object] = lambda folder: None,
) -> Path:
    """Return the folder of a checkpoint; of a hub repo, download what is not in the cache yet.

    The string `"bundled"` is the package's own model; `"./bundled"` is a folder, as any `Path` is.

    `files` are the names or patterns to download: `CONFIG_FILES`, `WEIGHT_FILES`, `TOKENIZER_FILES`, or any of them
    added together. With `WEIGHT_FILES`, `model.safetensors` is downloaded, or where there is none, the shards that
    `model.safetensors.index.json` names; never a pickle. Files that the repo lacks are left out, except `config.json`
    and the weights. After a lost connection a download resumes, and an incomplete file is never kept. If the hub does
    not answer, files downloaded earlier are used, with a warning. On a terminal, `progress` shows a bar for each file.
    `answered` is called when the hub has answered or failed, before any bar. `check` is called with the folder when
    its config.json is downloaded, before the weights are: what it raises ends the download.

    Raises:
        CheckpointError: the download fails; the message names the repo, the revision, the file and the fix.
    """
    folder = local_folder(path_or_repo)
    if folder is not None:
        return local_folder(folder / subfolder) or folder
    repo = check_repo_id(str(path_or_repo))
    require("huggingface_hub", f"{repo}: no such folder here, and a download")
    prefix = f"{subfolder.strip('/')}/" if subfolder.strip("/") else ""
    cache = None if cache_dir is None else os.fspath(cache_dir)
    options: dict[str, Any] = {"revision": revision, "cache_dir": cache, "prefix": prefix}
    if local_files_only:
        return _find_in_cache(repo, files, **options)
    if revision is not None and _COMMIT.fullmatch(revision) and not force_download:
        # A commit never changes: if its files are in the cache, the hub need not be asked.
        try:
            return _find_in_cache(repo, files, **options)
        except CheckpointError:
            pass
    with _progress_bars(progress):
        return _download(repo, files, answered, check, token=token, force=force_download, **options)


def repo_label(repo: str, revision: str | None) -> str:
    """Return the name of a repo for messages, with its revision unless that is the default."""
    return repo if revision is None else f"{repo} at revision {revision}"


def check_repo_id(repo: str) -> str:
    """Return `repo` if it can be a repo id, or raise `CheckpointError`."""
    if not _REPO_ID.fullmatch(repo) or ".." in repo or "--" in repo or len(repo) > 193:
        raise MissingFileError(
            f"{ascii(repo)[:200]}: neither a folder nor a repo id; give a folder that exists, "
            "or an id such as kajuma/DiffLlama-0.3B-handcut"
        )
    return repo


def list_repo(repo: str, revision: str | None, token: str | bool | None = None) -> list[str]:
    """Ask the hub for the names of all files of a repo."""
    from huggingface_hub import HfApi, constants

    try:
        with checked_answers(MAX_INFO):
            info = HfApi(token=token).model_info(repo, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        commit, names = str(info.sha), [sibling.rfilename for sibling in info.siblings or []]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):  # faults in the answer's text
        commit, names = "", []
    if not all(isinstance(name, str) for name in names) or not _COMMIT.fullmatch(commit):
        # Such as the login page of a public network.
        raise BadAnswerError("its description of the repo cannot be read")
    return [name for name in names if not {"", ".", ".."} & set(name.split("/"))]


def choose(names: Collection[str], files: Sequence[str], what: str, fetch: Callable[[str], Path]) -> list[str]:
    """Return the names that match `files`, weights last; `fetch` downloads the index if it is needed.

    Raises:
        CheckpointError: the repo has no `config.json`, no weights, or not all shards.
    """
    plain = [pattern for pattern in files if pattern not in WEIGHT_FILES]
    chosen = [name for pattern in plain for name in sorted(names) if _matches(name, pattern)]
    tokenizer_alone = SINGLE not in files and "tokenizer.json" in chosen
    if "config.json" in files and "config.json" not in chosen and not tokenizer_alone:
        raise MissingFileError(f"{what}: has no config.json, but {_examples(names)}; is it a transformers model?")
    if SINGLE in files:
        chosen += _choose_weights(names, what, fetch)
    if not chosen:
        raise CheckpointError(f"{what}: has none of {', '.join(files)}, but {_examples(names)}")
    if len(chosen) > MAX_FILES:
        raise CheckpointError(f"{what}: has {len(chosen):,} files to download, expected at most {MAX_FILES:,}")
    return list(dict.fromkeys(chosen))


def _download(
    repo: str, files: Sequence[str], answered: Callable[[], None], check: Callable[[Path], object], *,
    revision: str | None, cache_dir: str | None, prefix: str, token: str | bool | None, force: bool,
) -> Path:  # fmt: skip
    what = repo_label(repo, revision)
    try:
        try:
            names = list_repo(repo, revision, token)
        finally:
            answered()
    except Exception as error:
        if not is_unreachable(error):
            raise MissingFileError(f"{what}: {explain(error)}") from None
        return _fall_back_to_cache(error, repo, files, revision=revision, cache_dir=cache_dir, prefix=prefix)

    # The first file is requested by the revision's name, so that huggingface_hub records its commit for offline use.
    # All others are requested by that commit: they form one snapshot, even if the repo changes meanwhile.
    wanted = revision or "main"
    folder = Path()

    def fetch(name: str) -> Path:
        nonlocal wanted, folder
        with explain_errors(f"{what}: {name}"):
            path = download(repo, prefix + name, revision=wanted, cache_dir=cache_dir, token=token, force=force)
        wanted = path.parents[(prefix + name).count("/")].name
        folder = path.parents[name.count("/")]
        return path

    inside = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    for name in choose(inside, files, what, fetch):
        fetch(name)
        if name == "config.json":
            check(folder)
    return folder


def _fall_back_to_cache(
    error: BaseException, repo: str, files: Sequence[str], *, revision: str | None, cache_dir: str | None, prefix: str
) -> Path:
    from huggingface_hub.errors import OfflineModeIsEnabled

    try:
        folder = _find_in_cache(repo, files, revision=revision, cache_dir=cache_dir, prefix=prefix)
    except CheckpointError as not_cached:
        if isinstance(error, OfflineModeIsEnabled):
            raise
        why = f"no such folder here, and {explain(error)}"  # a plain name can be a folder or a repo
        raise MissingFileError(f"{repo_label(repo, revision)}: {why}") from not_cached
    if not isinstance(error, OfflineModeIsEnabled):
        warn(f"{repo_label(repo, revision)}: using the copy in the cache: {explain(error)}")
    return folder


def _find_in_cache(
    repo: str, files: Sequence[str], *, revision: str | None, cache_dir: str | None, prefix: str
) -> Path:
    from huggingface_hub import snapshot_download

    what = repo_label(repo, revision)
    with explain_errors(what):
        folder = Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=cache_dir,
                local_files_only=True,
                allow_patterns=[f"{prefix}config.json"],
            ),
            prefix,
        )
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    try:
        choose(names, files, what, folder.joinpath)
    except CheckpointError as error:
        raise type(error)(
            f"{error} (in the cache, {folder}; run once without local_files_only and HF_HUB_OFFLINE for the rest)"
        ) from None
    return folder


def _choose_weights(names: Collection[str], what: str, fetch: Callable[[str], Path]) -> list[str]:
    if SINGLE in names:
        return [SINGLE]
    if INDEX not in names:
        pickles = sorted(name for name in names if name.endswith(_PICKLES))
        if pickles:
            raise CheckpointError(
                f"{what}: has its weights only as pickles such as {pickles[0]}, which can run any code when read; "
                "convert them with transformers: from_pretrained(...).save_pretrained(...)"
            )
        raise MissingFileError(f"{what}: has neither {SINGLE} nor {INDEX}, but {_examples(names)}")
    index = fetch(INDEX)
    try:
        shards = sorted(set(read_weight_map(index).values()))
    except CheckpointError as error:
        raise CheckpointError(f"{what}: {str(error).removeprefix(f'{index.parent}{os.sep}')}") from None
    missing = [name for name in shards if name not in names]
    if missing:
        raise CheckpointError(
            f"{what}: {INDEX} names {len(shards)} files, but {len(missing)} of them are missing, such as {missing[0]}"
        )
    return [INDEX, *shards]


def _matches(name: str, pattern: str) -> bool:
    # fnmatch lets * match a slash; here a pattern matches at its own depth of folders only.
    return fnmatch.fnmatchcase(name, pattern) and name.count("/") == pattern.count("/")


def _examples(names: Collection[str]) -> str:
    shown = [ascii(name)[1:-1][:80] for name in sorted(names) if not name.startswith(".git")]
    return f"has {', '.join(shown[:5])}{' and more' if len(shown) > 5 else ''}" if shown else "is empty"


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Disable huggingface_hub's progress bars unless `shown`; it shows them on a terminal only."""
    from huggingface_hub import utils

    bars: Any = utils  # its functions are public, but not declared so for type checkers
    if shown or bars.are_progress_bars_disabled():
        yield
        return
    bars.disable_progress_bars()
    try:
        yield
    finally:
        bars.enable_progress_bars()
