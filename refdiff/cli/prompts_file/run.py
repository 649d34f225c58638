"""`refdiff generate --prompts-file`: answer the prompts that have no answer yet, in order, with progress."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

from refdiff import cluster
from refdiff.cli.answering import check_greedy, given_options
from refdiff.cli.flags import UsageError
from refdiff.cli.loading import find_checkpoint, named_folder
from refdiff.cli.prompts_file.answers import COMPARED, Answers
from refdiff.cli.prompts_file.batches import Answering, Result, Task, batched
from refdiff.cli.prompts_file.reading import Prompts
from refdiff.cli.terminal import connecting, minutely, name_flags, note, progress_bar, waiting
from refdiff.errors import CheckpointError

AnswerBatches = Callable[[Iterable[list[Task]]], Iterable[tuple[list[Task], list[Result]]]]


def answer_file(args: argparse.Namespace) -> int:
    """Answer this shard's prompts that have no answer yet.

    A file that can be read twice is checked as a whole before the model is loaded. A prompt that fails is reported on
    standard error, leaves no line, and is tried again by the next run; the exit status is then 1.
    """
    with (
        Prompts(args.prompts_file, args.temperature) as prompts,
        Answers(None if args.output == "-" else args.output) as answers,
    ):
        args = argparse.Namespace(**{**vars(args), "model": find_checkpoint(args.model, quiet=args.quiet)})
        model = _identity(args)
        left: int | None = None
        if prompts.repeatable:
            done, bad, left = 0, [], 0
            with waiting(f"reading {prompts.name}", quiet=args.quiet):
                for task in _tasks(prompts, answers, args, model):
                    done, left = (done + 1, left) if task is None else (done, left + 1)
                    if task is not None and task.prompt.problem is not None:
                        bad.append(task.prompt.problem)
            if bad and len(bad) == done + left:
                raise UsageError(bad[0] + (f"; and {len(bad) - 1} more such lines" if len(bad) > 1 else ""))
            _check_flags(prompts, args)
            answers.cut()
            if done and not args.quiet:
                note(f"refdiff: {done} of {done + left} prompts are answered in {args.output} already")
            if not left:
                return 0
        with _answering(args) as answer:
            tasks = (task for task in _tasks(prompts, answers, args, model) if task is not None)
            failed = _write(answer(batched(tasks, args.batch_size)), answers, left, args)
        if not prompts.repeatable:
            _check_flags(prompts, args)
        return 1 if failed else 0


def _identity(args: argparse.Namespace) -> str:
    """Return the real path of a checkpoint, or the name of a hub repo, with its commit where that is known."""
    from refdiff import hub

    if (folder := named_folder(args.model)) is not None:
        return str(folder.resolve())
    try:
        commit = hub.snapshot(args.model, local_files_only=args.offline, progress=False)
    except CheckpointError:  # loading the model gives the reason
        return str(args.model)
    return f"{args.model}@{commit.name}" if commit.parent.name == "snapshots" else str(args.model)  # or bundled


def _tasks(prompts: Prompts, answers: Answers, args: argparse.Namespace, model: str) -> Iterator[Task | None]:
    """Yield the tasks of this shard, None for a prompt that has its answer."""
    base, given = args.seed or 0, given_options(args)
    count = 0

    @lru_cache  # most prompts of a file have the same options
    def digest(own: str) -> str:
        return _digest(model, args, {**given, **json.loads(own)})

    for prompt in prompts:
        count += 1
        if prompt.problem is not None:
            if prompt.index % args.num_shards == args.shard_index:
                yield Task(prompt, 0, "")
            continue
        seed = prompt.options.get("seed", base + prompt.index)
        run = digest(json.dumps({name: value for name, value in prompt.options.items() if name != "seed"}))
        done = answers.has(prompt, seed, run)
        if prompt.index % args.num_shards == args.shard_index:
            yield None if done else Task(prompt, seed, run)
    answers.check_count(count)


def _digest(model: str, args: argparse.Namespace, given: dict[str, Any]) -> str:
    """Return a digest of the model, the form of the prompt and the options of generation.

    Its first twelve letters depend on all of them; then two on each of `COMPARED`, so that a difference has a name.
    """
    what = {
        **{name: value for name, value in given.items() if name in COMPARED},
        "model": model,
        "dtype": args.dtype,
        "system": given.get("system", args.system) if args.chat else None,
        "chat": args.chat,
        "echo": args.echo,
    }
    each = "".join(_letters(what.get(name))[:2] for name in COMPARED)
    return f"{_letters(what)[:12]}-{each}"


def _letters(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _check_flags(prompts: Prompts, args: argparse.Namespace) -> None:
    """Raise `UsageError` for a flag without effect on any prompt, and warn of fields without effect."""
    if prompts.ignored:
        note(f"refdiff: warning: {prompts.name}: unknown fields are ignored: {', '.join(prompts.ignored)}")
    if prompts.repeatable and not prompts.samples:
        check_greedy(args)
    if prompts.has_system and not args.chat:
        note(f"refdiff: warning: {prompts.name}: system has a place in a chat template only, ignored; add --chat")


@contextmanager
def _answering(args: argparse.Namespace) -> Iterator[AnswerBatches]:
    """Yield a function that answers batches in their order, here or on a cluster."""
    if args.dask is not None:
        with connecting(cluster.connected(args.dask), args.dask, quiet=args.quiet) as client:
            from refdiff.cli.prompts_file.on_cluster import answering  # which imports what `connected` asks for

            with answering(client, args) as answer:
                yield answer
        return
    model = Answering(args)
    yield lambda batches: ((batch, model(batch)) for batch in batches)


def _write(
    answered: Iterable[tuple[list[Task], list[Result]]], answers: Answers, total: int | None, args: argparse.Namespace
) -> int:
    """Write each answer as it comes, and return how many prompts failed."""
    failed = count = tokens = 0
    started, due = time.monotonic(), minutely()
    of = "" if total is None else f" of {total}"
    beside = args.output in (None, "-") and sys.stdout.isatty()  # the answers and the bar share a terminal
    with progress_bar(quiet=args.quiet, total=total, unit="prompt") as bar:
        try:
            for batch, results in answered:
                for task, result in zip(batch, results, strict=True):
                    aside = beside or isinstance(result, str)
                    with bar.get_lock() if aside else nullcontext():  # the bar is not drawn meanwhile
                        if aside:
                            bar.clear()
                        if isinstance(result, str):
                            failed += 1
                            note(f"refdiff generate: error: {name_flags(result)}")
                        else:
                            answers.write(_line(task, result))
                            count += 1
                            tokens += result["generated_tokens"]
                        bar.update()
                        if aside:
                            bar.refresh()
                if bar.disable and not args.quiet and due():
                    note(f"refdiff: {count + failed}{of} prompts")
        except KeyboardInterrupt:
            bar.close()
            again = "; the same command resumes here" if args.output not in (None, "-") else ""
            note(f"refdiff: {count}{of} prompts answered{again}")
            raise
    if not args.quiet:
        seconds = time.monotonic() - started
        note(f"{count} prompt{'s' * (count != 1)} answered, {failed} failed; {tokens} tokens in {seconds:.1f} s")
    return failed


def _line(task: Task, result: dict[str, Any]) -> dict[str, Any]:
    """Return the line of one prompt."""
    own = {} if task.prompt.id is None else {"id": task.prompt.id}
    text = task.prompt.text
    asked = {"prompt": text} if task.prompt.messages is None else {"messages": task.prompt.messages}
    return {"index": task.prompt.index, **own, **asked, **result, "run": task.run}
