"""`lcjax plan`."""

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from lcjax.cli.entry import command
    from lcjax.plan.config_file import parse

main = command(parse, "lcjax.plan.command")

if __name__ == "__main__":
    leave(main())
