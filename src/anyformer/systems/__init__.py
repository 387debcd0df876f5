"""One file a paper, a folder a field; discovery walks them."""
