"""What each subcommand takes, as tables; what it does is imported when it is used."""
