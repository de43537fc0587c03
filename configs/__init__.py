"""One config per experiment; its docstring holds the command, the hardware and the numbers to expect."""
