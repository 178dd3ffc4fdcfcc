"""What the subcommands do: each takes `Context` and `Arguments`, and returns what to show."""
