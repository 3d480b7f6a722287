"""The two models: load them, split body from head, compare vocabularies, spread over processes."""
