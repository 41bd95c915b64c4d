"""`lcjax push`."""

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from lcjax.cli.entry import command
    from lcjax.push.arguments import parse

main = command(parse, "lcjax.push.command")

if __name__ == "__main__":
    leave(main())
