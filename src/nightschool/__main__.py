"""`python -m nightschool` is the same as `nightschool`."""

from nightschool.cli import main

main()
