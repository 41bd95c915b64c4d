"""`lcjax data show`."""

import sys

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from lcjax.cli.entry import command
    from lcjax.cli.flags import parse
    from lcjax.data.show.arguments import ShowArguments
    from lcjax.errors import InputError

ACTIONS = ("show",)


def _parsed(argv: list[str] | None) -> ShowArguments:
    words = sys.argv[1:] if argv is None else argv
    if words and not words[0].startswith("-"):
        if words[0] not in ACTIONS:
            raise InputError(f"lcjax data has no {words[0]!r}; give lcjax data show --data PATH...")
        words = words[1:]
    elif not {"-h", "--help", "--version"} & set(words):
        raise InputError("lcjax data needs the word show; give lcjax data show --data PATH...")
    return parse(ShowArguments, words, "lcjax data show")


main = command(_parsed, "lcjax.data.show.command")

if __name__ == "__main__":
    leave(main())
