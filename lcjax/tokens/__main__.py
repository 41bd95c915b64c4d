"""`lcjax tokens`."""

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from lcjax.cli.entry import command
    from lcjax.cli.flags import parse
    from lcjax.tokens.arguments import TokenArguments

main = command(lambda argv: parse(TokenArguments, argv, "lcjax tokens"), "lcjax.tokens.command")

if __name__ == "__main__":
    leave(main())
