"""`python -m stepwell_server`: the same as the command `stepwell`."""

from stepwell_server.cli import main

main()
