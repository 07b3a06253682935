"""The command line: `heterodox.cli.main` is the entry, one module a command beside it."""
