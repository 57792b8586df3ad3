"""Files for the environments of jobs on Azure ML: the default build context, and a conda file as a template."""
