// Ends this process when whoever started it is gone, however it went: its end of our stdin closes then.
process.stdin.on("end", () => process.exit(0)).on("error", () => process.exit(0)).resume();
