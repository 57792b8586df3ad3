"""Azure ML: one module for each kind of resource; all of them send their requests through `client`."""
