"""`refdiff generate --prompts-file`: answer the prompts that have no answer yet, in order, with progress."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

from refdiff.cli.flags import UsageError
from refdiff.cli.loading import find_checkpoint, named_folder
from refdiff.cli.parser import build_parser
from refdiff.cli.prompts_file.answers import SAME_ANSWER, Answers, digest, open_answers
from refdiff.cli.prompts_file.batches import Answering, Task
from refdiff.cli.prompts_file.reading import Prompt, read_prompts
from refdiff.cli.terminal import minutely, name_flags, note, progress_bar, waiting
from refdiff.errors import CheckpointError


def answer_file(args: argparse.Namespace) -> int:
    """Answer the prompts that have no answer yet.

    All prompts are checked before the model is loaded. A prompt that fails is reported on standard error, leaves no
    line, and is tried again by the next run; the exit status is then 1.
    """
    with waiting("reading the prompts", quiet=args.quiet):
        prompts = read_prompts(args.prompts_file)
    with open_answers(None if args.output == "-" else args.output) as answers:
        args = argparse.Namespace(**{**vars(args), "model": find_checkpoint(args.model, quiet=args.quiet)})
        answers.check_count(len(prompts))
        tasks = [task for task in _tasks(prompts, args) if not answers.has(task.prompt, task.seed, task.run)]
        problems = [task.prompt.problem for task in tasks if task.prompt.problem is not None]
        if problems and len(problems) == len(prompts):
            raise UsageError(problems[0] + (f"; and {len(problems) - 1} more such lines" if len(problems) > 1 else ""))
        if (done := len(prompts) - len(tasks)) and not args.quiet:
            note(f"refdiff: {done} of {len(prompts)} prompts are answered in {args.output} already")
        return 1 if tasks and _answer(tasks, answers, args) else 0


def _tasks(prompts: Sequence[Prompt], args: argparse.Namespace) -> list[Task]:
    """Return each prompt with its seed and the digest of its options."""
    model, without_effect = _identity(args), ("seed",) if args.chat else ("seed", "system")
    common = {name: value for name, value in vars(args).items() if name not in SAME_ANSWER}
    common |= {"model": model, "stop": args.stop or []}
    defaults = {**vars(build_parser().parse_args(["generate"])), "model": None, "stop": []}
    tasks = []
    for prompt in prompts:
        own = {name: value for name, value in prompt.options.items() if name not in without_effect}
        seed = prompt.options.get("seed", (args.seed or 0) + prompt.index)
        tasks.append(Task(prompt, seed, digest({**common, **own}, defaults)))
    return tasks


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


def _answer(tasks: Sequence[Task], answers: Answers, args: argparse.Namespace) -> int:
    """Write each answer as it comes, and return how many prompts failed."""
    model = Answering(args)
    failed = count = tokens = 0
    started, due, of = time.monotonic(), minutely(), f" of {len(tasks)}"
    with progress_bar(quiet=args.quiet, total=len(tasks), unit="prompt") as bar:
        try:
            for start in range(0, len(tasks), args.batch_size):
                batch = tasks[start : start + args.batch_size]
                for task, result in zip(batch, model(batch), strict=True):
                    with bar.external_write_mode():  # answers and errors may share a terminal with the bar
                        if isinstance(result, str):
                            failed += 1
                            note(f"refdiff generate: error: {name_flags(result)}")
                        else:
                            answers.write(_line(task, result))
                            count += 1
                            tokens += result["generated_tokens"]
                    bar.update()
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
