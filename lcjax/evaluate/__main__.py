"""`lcjax evaluate`."""

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from lcjax.cli.entry import command
    from lcjax.evaluate.arguments import parse

main = command(parse, "lcjax.evaluate.command")

if __name__ == "__main__":
    leave(main())
