"""What do jobs on Azure ML run in? The files that their environments are made of; there is no code here."""
