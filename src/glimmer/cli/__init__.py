"""The `glimmer` command: a module for each subcommand, which imports its subject when it runs."""
