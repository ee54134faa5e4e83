"""
The command `tallybook`: what the SDK can do from a shell.

This package reads arguments, calls what the SDK already has, and prints. It holds no rule of
counting or sending. The server's commands come through the entry-point group
``tallybook.commands``, so nothing here imports the server.

Data goes to standard output, words to standard error; the exit codes are in `output.Exit`.

    program          main: the parser, the commands, what becomes of an error
    record  usage  tail  queue  flush  doctor  version      one command each
    connection       questions to a server
    parser  output   how options are declared, how answers are printed
"""

from tallybook.cli.program import main

__all__ = ["main"]
