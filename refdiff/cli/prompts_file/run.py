"""`refdiff generate --prompts-file`: answer the prompts that have no answer yet, in order, with progress."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

from refdiff import cluster
from refdiff.cli.answering import check_greedy
from refdiff.cli.flags import UsageError
from refdiff.cli.loading import find_checkpoint, named_folder
from refdiff.cli.parser import build_parser
from refdiff.cli.prompts_file.answers import Answers, digest
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
    base, common = args.seed or 0, {**vars(args), "model": model, "stop": args.stop or []}
    defaults = {**vars(build_parser().parse_args(["generate"])), "model": None, "stop": []}
    without_effect = ("seed",) if args.chat else ("seed", "system")
    count = 0

    @lru_cache  # most prompts of a file have the same options
    def run_of(own: str) -> str:
        return digest({**common, **json.loads(own)}, defaults)

    for prompt in prompts:
        count += 1
        if prompt.problem is not None:
            if prompt.index % args.num_shards == args.shard_index:
                yield Task(prompt, 0, "")
            continue
        seed = prompt.options.get("seed", base + prompt.index)
        run = run_of(json.dumps({k: v for k, v in prompt.options.items() if k not in without_effect}))
        done = answers.has(prompt, seed, run)
        if prompt.index % args.num_shards == args.shard_index:
            yield None if done else Task(prompt, seed, run)
    answers.check_count(count)


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
