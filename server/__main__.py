"""`python -m server` is `open-speech`."""

from server.cli import main

raise SystemExit(main())
