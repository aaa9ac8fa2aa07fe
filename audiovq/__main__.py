"""`python -m audiovq`, as launchers of several processes call it."""

from audiovq.cli import main

main()
