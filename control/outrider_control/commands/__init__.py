"""The operator's subcommands of `outrider`: one module each, whose `main(arguments)` gives the exit code."""
