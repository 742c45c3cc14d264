"""Train, evaluate, predict and export from Python: the functions behind the verbs of the command line."""
