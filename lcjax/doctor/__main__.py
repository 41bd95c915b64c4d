"""`lcjax doctor`."""

from lcjax.cli.startup import importing, leave

with importing(__name__ == "__main__"):
    from lcjax.cli.entry import command
    from lcjax.cli.flags import parse
    from lcjax.doctor.arguments import DoctorArguments

main = command(lambda argv: parse(DoctorArguments, argv, "lcjax doctor"), "lcjax.doctor.command")

if __name__ == "__main__":
    leave(main())
