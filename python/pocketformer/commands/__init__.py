"""The subcommands. Heavy imports stand inside of their functions, so that ``--help`` is quick."""
