"""What the programs share: options, errors, exit codes and signals."""
