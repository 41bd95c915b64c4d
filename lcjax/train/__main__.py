"""`lcjax train`: flags that override a resumed run's, the demo's or the defaults."""

from __future__ import annotations

import dataclasses
import sys

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from lcjax.cli.config_file import ConfigFile, given_config
    from lcjax.cli.entry import command
    from lcjax.cli.flags import parse_in_sections
    from lcjax.errors import InputError, flag
    from lcjax.train.arguments import SECTIONS, RunArguments


def parse(argv: list[str] | None = None) -> RunArguments:
    """The arguments of a run: flags that override the resumed run's, the demo's or the defaults."""
    file = given_config(argv, RunArguments)
    if file is not None:
        file = file.without_other_start(sys.argv[1:] if argv is None else argv)
    try:
        return _from(argv, file)
    except InputError as error:
        raise error if file is None else file.blamed(error, sys.argv[1:] if argv is None else argv) from None


def _from(argv: list[str] | None, file: ConfigFile | None) -> RunArguments:
    """The arguments, from a file of settings too."""

    def over(default: RunArguments) -> RunArguments:
        return default if file is None else file.over(default)

    given = _parse(argv, over(RunArguments()))
    if given.resume_from_checkpoint is not None:
        with importing(argv is None):
            from lcjax.train.checkpoints.resumed_arguments import arguments_of_resumed_run, refuse_changed_flags
            from lcjax.train.start.flags import refuse_other_start
        saved = arguments_of_resumed_run(given)
        refuse_other_start(given, saved)
        try:
            return _parse(argv, over(saved))
        except InputError:
            refuse_changed_flags(given)
            raise
    starts = given.start_from is not None
    default = RunArguments() if given.model is not None or starts else _demo_for(given, argv, file)
    if given.adapter is None and not starts:
        return given if given.model is not None else _parse(argv, over(default))
    with importing(argv is None):
        from lcjax.train.start.flags import arguments_from_start
    return arguments_from_start(given, default, lambda own: _parse(argv, over(own)))


def _demo_for(given: RunArguments, argv: list[str] | None, file: ConfigFile | None) -> RunArguments:
    """The demo's arguments, adjusted so that none of its defaults conflicts with a given flag."""
    with importing(argv is None):
        from lcjax.train.demo import demo
    words = sys.argv[1:] if argv is None else argv
    names = [] if file is None else [flag(name) for name in file.values]
    chosen = demo()
    epochs = given.max_steps == -1 and any(word.startswith("--num-train-epochs") for word in [*words, *names])
    max_steps = -1 if epochs else given.max_steps if given.max_steps > 0 else chosen.max_steps
    warmup = 0 if given.warmup_ratio else min(chosen.warmup_steps, abs(max_steps))
    return dataclasses.replace(chosen, max_steps=max_steps, warmup_steps=warmup)


def _parse(argv: list[str] | None, default: RunArguments) -> RunArguments:
    return parse_in_sections(RunArguments, argv, "lcjax train", default, SECTIONS)


main = command(parse, "lcjax.train.command")

if __name__ == "__main__":
    leave(main())
