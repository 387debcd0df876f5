"""How a branch joins the stream."""
