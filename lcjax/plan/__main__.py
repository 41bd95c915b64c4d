"""`lcjax plan`."""

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from lcjax.cli.entry import command
    from lcjax.cli.flags import parse
    from lcjax.plan.arguments import PlanArguments

main = command(lambda argv: parse(PlanArguments, argv, "lcjax plan"), "lcjax.plan.command")

if __name__ == "__main__":
    leave(main())
