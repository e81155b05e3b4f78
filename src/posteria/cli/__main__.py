"""``python -m posteria.cli``."""

from posteria.cli import main

main()
