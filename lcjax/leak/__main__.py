"""`lcjax leak`."""

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from lcjax.cli.entry import command
    from lcjax.cli.flags import parse
    from lcjax.leak.arguments import LeakArguments

main = command(lambda argv: parse(LeakArguments, argv, "lcjax leak"), "lcjax.leak.command")

if __name__ == "__main__":
    leave(main())
