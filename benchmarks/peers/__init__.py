"""The programs that Glimmer is measured against, a module each."""
