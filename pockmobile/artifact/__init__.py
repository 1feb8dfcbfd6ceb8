"""What leaves the compiler: program files with their manifest and report, and checkpoints."""
