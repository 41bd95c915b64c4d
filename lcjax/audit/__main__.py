"""`lcjax audit`."""

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from lcjax.audit.arguments import AuditArguments
    from lcjax.cli.entry import command
    from lcjax.cli.flags import parse

main = command(lambda argv: parse(AuditArguments, argv, "lcjax audit"), "lcjax.audit.command")

if __name__ == "__main__":
    leave(main())
