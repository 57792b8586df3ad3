"""How good generated images are: measures that need no pretrained weights, and what they say of a run."""
