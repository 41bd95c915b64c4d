"""`lcjax generate`."""

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from lcjax.cli.entry import command
    from lcjax.cli.flags import parse
    from lcjax.generate.arguments import GenerateArguments

main = command(lambda argv: parse(GenerateArguments, argv, "lcjax generate"), "lcjax.generate.command")

if __name__ == "__main__":
    leave(main())
